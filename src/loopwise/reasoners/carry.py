"""The carry: what sits in the slots between two supervision steps. Training, solving and serving share it.

A slot holds a puzzle, the state of the reasoning about it, and how many steps that has had. Where a slot has halted,
the next `refill` puts a fresh puzzle and a fresh state into it; all the others keep theirs. Everything a slot needs
travels with it, and no row looks at another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from loopwise.reasoners.base import Reasoner, State, where_rows
from loopwise.types import Batch

__all__ = ["Carry", "disturb", "empty_carry", "refill"]


class Carry(NamedTuple):
    """The slots."""

    state: State  # tensors [B, S, D]
    steps: Tensor  # [B] int64, supervision steps that the puzzle of this slot has had
    halted: Tensor  # [B] bool, the slot is free for a fresh puzzle
    batch: Batch


def empty_carry(reasoner: Reasoner[Any], batch: Batch) -> Carry:
    """Slots that are all free. `batch` gives shapes and device; its content does not matter."""
    slots, length = batch.inputs.shape
    device = batch.inputs.device
    return Carry(
        state=reasoner.init_state(slots, length),
        steps=torch.zeros(slots, dtype=torch.int64, device=device),
        halted=torch.ones(slots, dtype=torch.bool, device=device),
        batch=batch,
    )


def refill(reasoner: Reasoner[Any], carry: Carry, incoming: Batch, fresh: Tensor) -> Carry:
    """Put the rows of `incoming` where `fresh` [B] is true, with a fresh state and no steps."""
    slots, length = incoming.inputs.shape
    return Carry(
        state=where_rows(fresh, reasoner.init_state(slots, length), carry.state),
        steps=torch.where(fresh, 0, carry.steps),
        halted=torch.where(fresh, False, carry.halted),
        batch=where_rows(fresh, incoming, carry.batch),
    )


def disturb(state: State, sigma: float, rng: torch.Generator, *, instead: Tensor | None = None) -> State:
    """The state with normal noise of deviation `sigma` in all its numbers; with `instead` [B] only in those rows, where
    the noise takes the place of what is there. The noise is drawn where `rng` is.
    """

    def push(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = (sigma * torch.randn(tensor.shape, generator=rng, device=rng.device)).to(tensor)
        if instead is None:
            return tensor + noise
        return torch.where(instead.view(-1, *(1,) * (tensor.dim() - 1)), noise, tensor)

    return type(state)(*map(push, state))
