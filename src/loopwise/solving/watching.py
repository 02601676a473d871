"""Watching a model think: how much every update of a supervision step changes the state."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from loopwise.reasoners.base import GradientConfig, GradientPolicy, Recursion, State, Update
from loopwise.reasoners.fixed_point import relative_residual

__all__ = ["Change", "Watched"]


class Change(NamedTuple):
    """What one update did."""

    update: str  # its name in the reasoner's recursion, such as think or answer
    residual: float  # |new - old| / |new| of what it wrote


@final
class Watched(GradientPolicy[GradientConfig]):
    """Another policy, watched: notes the residual of each update of the first row, in the order of their execution.

    It works from outside, on the recursion as a value, so it sees every family under every policy, the search for a
    fixed point too.
    """

    name: ClassVar[str] = "watched"

    def __init__(self, watched: GradientPolicy[Any]) -> None:
        super().__init__()
        self.watched = watched
        self.seen: list[tuple[str, Tensor]] = []

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates, as the watched policy does."""
        return self.watched(Recursion(tuple(map(self._watch, recursion.cycle)), recursion.num_cycles), state)

    def _watch(self, update: Update) -> Update:
        name = getattr(update, "__name__", "update")

        def watched(state: State) -> State:
            new = update(state)
            written = [(a, b) for a, b in zip(new, state, strict=True) if a is not b]
            after, before = (torch.cat([t[:1].flatten(1) for t in side], dim=1) for side in zip(*written, strict=True))
            self.seen.append((name, relative_residual(after, before)[0]))
            return new

        return watched

    def take(self) -> tuple[Change, ...]:
        """What has been seen since the last call."""
        seen, self.seen = self.seen, []
        return tuple(Change(name, float(residual)) for name, residual in seen)
