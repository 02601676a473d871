"""The options of several starts, which solve and eval share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from loopwise.errors import ConfigError
from loopwise.solving.starts import Starts, as_starts
from loopwise.tasks.base import Task

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
    seed: int = 0
    """Fixes symmetries and noise."""

    def starts_of(self, count: int, task: Task[Any]) -> Starts:
        """So many starts for a task. Raises ConfigError."""
        given = any(getattr(self, field.name) != field.default for field in fields(StartOptions))
        if count == 1 and given:
            raise ConfigError("--select, --sigma-init, --sigma-step and --seed are for several starts; add --starts 8")
        starts = replace(as_starts(count, task), select=tuple(self.select.split(",")), seed=self.seed)
        if self.sigma_init or self.sigma_step:
            starts = replace(starts, views=False, sigma_init=self.sigma_init, sigma_step=self.sigma_step)
        return starts
