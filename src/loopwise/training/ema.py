"""The moving average of the weights, which is what gets evaluated, shipped and solved with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from loopwise.reasoners.base import Reasoner

__all__ = ["MovingAverage"]


class MovingAverage:
    """A copy of a reasoner whose weights trail the original's: e <- decay e + (1 - decay) p.

    It starts at the initial weights. The puzzle table and the buffers are not averaged: copy and original share them.
    """

    def __init__(self, reasoner: Reasoner[Any]) -> None:
        table = reasoner.puzzle_table()
        shared = {id(tensor): tensor for tensor in (table, *reasoner.buffers()) if tensor is not None}
        self.reasoner = copy.deepcopy(reasoner, shared).eval()
        self._names = [name for name, p in reasoner.named_parameters() if p is not table]
        self._sources: list[Tensor] = [reasoner.get_parameter(name) for name in self._names]
        self._averages: list[Tensor] = [self.reasoner.get_parameter(name) for name in self._names]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take one step towards the original's present weights; with decay 0, all the way."""
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters; what the copy shares with the original is not among them."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averages that `state_dict` gave. Raises KeyError or RuntimeError when they do not fit."""
        for name, average in self.state_dict().items():
            average.copy_(state[name])
