"""Gradient policies: through which updates of a supervision step the gradient flows.

A policy sees the recursion as a value and never the reasoner, so any policy runs with any reasoner.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch

from loopwise.reasoners.base import GradientPolicy, Recursion, State

__all__ = ["LastCycle"]


@final
class LastCycle(GradientPolicy):
    """TRM (arXiv 2510.04871, section 4.1): no gradient but in the last cycle, and there through all its updates."""

    name: ClassVar[str] = "last-cycle"

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        with torch.no_grad():
            for _ in range(recursion.num_cycles - 1):
                for update in recursion.cycle:
                    state = update(state)
        for update in recursion.cycle:
            state = update(state)
        return state
