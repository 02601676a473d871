"""Guesses: a pass that has found no answer writes a symbol of its own into the puzzle, and thinks on.

If the guess is right, the puzzle has a clue more and is easier; if not, or if that does not help, another takes its
place after a while. The state goes on meanwhile, so that what was found is not lost. It asks nothing of a model but
that it reads puzzles with a clue more: no training, no further heads. The position is any open one, the symbol is drawn
from the network's own distribution there, and whether an answer is right is said by the rules of the puzzle as it was
given. So it is a search, and its score is reported as search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loopwise.types import TaskSpec, Tokens

__all__ = ["Guesses"]


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The guesses of one pass. What is drawn is fixed by seed, start and step, and so depends on no slot."""

    every: int
    """Supervision steps before the first guess, and between any two."""
    seed: int
    start: int
    """Number of the pass among those of its puzzle."""

    def guess(self, puzzle: Tokens, logits: npt.NDArray[np.floating], spec: TaskSpec, step: int) -> Tokens:
        """The puzzle [L] with one clue more, by the logits [L, V] after a step; as it is where nothing is open."""
        places = np.flatnonzero((puzzle != 0) & ~np.isin(puzzle, spec.givens))
        if not len(places):
            return puzzle
        rng = np.random.default_rng([self.seed, self.start, step])
        place = rng.choice(places)
        tokens = spec.guessable
        scores = logits[place, tokens].astype(np.float64)
        guessed = puzzle.copy()
        guessed[place] = tokens[np.argmax(scores + rng.gumbel(size=len(tokens)))]  # a draw from their softmax
        return guessed
