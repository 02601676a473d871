"""Several starts for one puzzle: noise, and the task's symmetries as other views of it; and the choice among them.

Start 0 is always the single pass, without noise or view, so that more starts never lose an answer that the rules
accept. Where starts guess, start 0 is the single pass only until its first guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.solving.guessing import Guesses
from loopwise.solving.noise import Noise
from loopwise.tasks.base import Inverse, Task, identity
from loopwise.types import IGNORE_LABEL, Tokens

__all__ = ["SELECTORS", "Candidate", "Starts", "as_starts", "choose"]

SIGMA = 1.0
"""The usual noise in the initial state, for tasks without symmetries: about the size of the state itself."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """How many starts a puzzle gets, in what they differ, and how one is chosen."""

    count: int = 1
    """Number of starts, the single pass among them."""
    views: bool = False
    """Show every start but the first another view of the puzzle: a symmetry of the task, undone in the answer."""
    sigma_init: float = 0.0
    """Standard deviation of noise in the initial state; the entries of a state are about 1 in TRM and HRM."""
    random_init: bool = False
    """Let that noise replace the model's own initial state, instead of being added to it."""
    sigma_step: float = 0.0
    """Standard deviation of noise that is added to the state before each step."""
    guess: int = 0
    """Steps after which a start whose answer the rules do not accept guesses a symbol, and after as many another in its
    place (solving/guessing.py); 0: never.
    """
    seed: int = 0
    """Fixes views, noise and guesses."""
    select: tuple[str, ...] = ("verified", "q")
    """How one is chosen, each rule deciding where those before it are at a tie: verified, q, residual, vote, first.

    Where `verified` is the first, the others are given up as soon as one start is verified.
    """

    single: bool = True
    """Let the single pass go on to its own end, whatever the others find, and tell it beside the answer. In a search
    no start is a single pass.
    """

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check(self)
        if self.count < 1:
            raise ConfigError(f"the number of starts must be at least 1, not {self.count}")
        if min(self.sigma_init, self.sigma_step, self.guess, self.seed) < 0:
            raise ConfigError("sigma_init, sigma_step, guess and seed must be at least 0")
        if self.random_init and not self.sigma_init:
            raise ConfigError("random_init needs sigma_init, the size of the random initial state")
        if self.count > 1 and not (self.views or self.sigma_init or self.sigma_step or self.guess):
            raise ConfigError("all starts would be the same; give one of views, sigma_init, sigma_step and guess")
        unknown = [name for name in self.select if name not in SELECTORS]
        if unknown or not self.select:
            named = f"there is no {unknown[0]!r} to select by" if unknown else "there is nothing to select by"
            raise ConfigError(f"{named}; known: {', '.join(SELECTORS)}")

    def noise(self, start: int) -> Noise | None:
        """The noise of a start."""
        if start == 0 or not (self.sigma_init or self.sigma_step):
            return None
        return Noise(
            seed=self.seed,
            start=start,
            sigma_init=self.sigma_init,
            random_init=self.random_init,
            sigma_step=self.sigma_step,
        )

    def guesses(self, start: int) -> Guesses | None:
        """The guesses of a start."""
        return Guesses(every=self.guess, seed=self.seed, start=start) if self.guess else None

    def view(self, task: Task[Any], puzzle: Tokens, start: int) -> tuple[Tokens, Inverse]:
        """The puzzle [L] as a start sees it, and the way back for its answer."""
        if start == 0 or not self.views:
            return puzzle, identity
        nothing = np.full_like(puzzle, IGNORE_LABEL)
        seen, _, inverse = task.augment(puzzle, nothing, np.random.default_rng([self.seed, start]))
        return seen, inverse


def as_starts(value: int | Starts, task: Task[Any]) -> Starts:
    """The starts of a task. A number means views where the task has symmetries, noisy initial states where it has none.

    Raises ConfigError where views are asked of a task without symmetries, or guesses of one that has nothing to guess.
    """
    if isinstance(value, Starts):
        if value.guess and not task.spec.guessable:
            raise ConfigError(
                f"{task.name} has no interchangeable symbols that can be clues, so there is nothing to guess"
            )
        if value.views and not task.symmetric:
            raise ConfigError(f"{task.name} has no symmetries to take views by; use sigma_init or sigma_step")
        return value
    return Starts(count=value, views=task.symmetric, sigma_init=0.0 if task.symmetric else SIGMA)


class Candidate(NamedTuple):
    """What a finished start came to."""

    answer: Tokens  # [L], seen from the puzzle itself
    verified: bool | None
    halt_probability: float
    residual: float
    steps: int


Selector: TypeAlias = Callable[[Candidate, Sequence[Candidate]], float]

SELECTORS: dict[str, Selector] = {
    "verified": lambda one, every: {True: 2, None: 1, False: 0}[one.verified],
    "q": lambda one, every: one.halt_probability,
    "residual": lambda one, every: -one.residual,
    "vote": lambda one, every: sum(np.array_equal(one.answer, other.answer) for other in every),
    "first": lambda one, every: -one.steps,
}
"""By name, how good a candidate is among all: the rules' word, the highest halting probability, the lowest residual,
the most frequent answer, the fewest steps.
"""


def choose(candidates: Sequence[Candidate], select: Sequence[str]) -> int:
    """The index of the best candidate by the first rule, of equals by the next, and so on; of equals the first.

    Where `verified` is the first rule, whoever needed more steps than the quickest verified one is passed over: whether
    it was given up before depends on when a slot was free for it.
    """
    quick = [c.steps for c in candidates if c.verified and select[0] == "verified"]
    allowed = [i for i, candidate in enumerate(candidates) if candidate.steps <= min(quick, default=candidate.steps)]
    every = [candidates[i] for i in allowed]
    return max(allowed, key=lambda i: [SELECTORS[name](candidates[i], every) for name in select])
