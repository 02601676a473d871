"""What a puzzle gets unless the caller says otherwise: how many starts, whether they guess, and when it stops."""

from __future__ import annotations

from dataclasses import replace

from loopwise.checkpoint import Model
from loopwise.errors import ConfigError
from loopwise.solving.budgets import Budget, Halted, Steps, Verified
from loopwise.solving.starts import Starts, as_starts

__all__ = ["GUESS_STARTS", "SEARCH_STARTS", "fitting", "searches", "usual_budget", "usual_count", "usual_starts"]

SEARCH_STEPS = 1000
"""Steps after which a start of a search is given up, unless its budget says otherwise."""

SEARCH_STARTS = 8
"""Chains of a search that run side by side, unless a caller says otherwise. Until they guess they differ little, so
that many are a waste; 2 to 7 cost as much (Lattice.round_rows), and one leaves a core idle.
"""

GUESS_STARTS = 4
"""Starts that guess side by side, unless a caller says otherwise. Until they guess they differ little, so that many are
a waste; few leave a core idle.
"""


def searches(model: Model, starts: Starts) -> bool:
    """Whether the model searches with these starts, by itself or by guesses: then none of them is a single pass."""
    return model.reasoner.search or starts.guess > 0


def usual_count(model: Model, guess: int) -> int:
    """How many starts, if they guess after so many steps."""
    return SEARCH_STARTS if model.reasoner.search else GUESS_STARTS if guess else 1


def usual_starts(model: Model, count: int | None = None, guess: int | None = None) -> Starts:
    """So many starts of a model, with a guess after so many steps; None is what is usual. Raises ConfigError."""
    guess = model.guess if guess is None else guess
    starts = as_starts(usual_count(model, guess) if count is None else count, model.task)
    return fitting(model, replace(starts, guess=guess))


def fitting(model: Model, starts: Starts) -> Starts:
    """The starts as a model can have them. Raises ConfigError."""
    if starts.guess and model.reasoner.search:
        raise ConfigError(f"{model.reasoner.name} guesses by itself; leave guess away")
    starts = as_starts(starts, model.task)
    return replace(starts, single=False) if starts.single and searches(model, starts) else starts


def usual_budget(model: Model, starts: Starts) -> Budget:
    """A search stops where the rules accept, all else where the model halts, after as many steps as in training."""
    if searches(model, starts):
        return Verified() | Steps(SEARCH_STEPS)
    return Halted() | Steps(int(model.halting.config.max_steps))
