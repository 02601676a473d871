"""The options of several starts, which solve and eval share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from loopwise.checkpoint import Model
from loopwise.errors import ConfigError
from loopwise.solving.starts import Starts
from loopwise.solving.usual import usual_starts

__all__ = ["StartOptions"]


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """In what several starts of a puzzle differ, and how one of them is chosen."""

    select: str = "verified,q"
    """How the best start is chosen, at a tie by the next: of verified, q (halt probability), residual, vote, first."""
    sigma_init: float = 0.0
    """Let starts differ by noise of this size in the initial state, instead of by the task's symmetries."""
    sigma_step: float = 0.0
    """Let starts differ by noise of this size before each step, instead of by the task's symmetries."""
    guess: int | None = None
    """Search: where the rules have not accepted the answer after so many steps, guess a symbol, and after as many guess
    another in its place. 0: never. By default as the model usually does.
    """
    seed: int = 0
    """Fixes symmetries, noise and guesses."""

    def starts_of(self, count: int | None, model: Model, guess: int | None = None) -> Starts:
        """So many starts of a model, None for the usual number; `guess` overrides the option. Raises ConfigError."""
        starts = usual_starts(model, count, self.guess if guess is None else guess)
        starts = replace(starts, select=tuple(self.select.split(",")), seed=self.seed)
        if self.sigma_init or self.sigma_step:
            starts = replace(starts, views=False, sigma_init=self.sigma_init, sigma_step=self.sigma_step)
        return starts

    def refuse_idle(self, starts: Starts) -> None:
        """Refuse options that make no difference to the starts, the largest number of those that are asked for."""
        usual = StartOptions(guess=self.guess, seed=self.seed if starts.guess else 0)
        if starts.count == 1 and any(getattr(self, each.name) != getattr(usual, each.name) for each in fields(usual)):
            raise ConfigError("--select, --sigma-init, --sigma-step and --seed are for several starts; add --starts 8")
