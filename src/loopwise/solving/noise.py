"""Noise in the state of a pass, which lets it start elsewhere, or pushes it a little before every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loopwise.reasoners.base import State
from loopwise.runtime import generator

__all__ = ["Noise", "add_noise"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of one pass: normal, in the units of the state, whose entries are about 1 in TRM and HRM.

    What is drawn is fixed by seed, start and step, and so depends on no slot and no neighbour.
    """

    seed: int
    start: int
    """Number of the pass among those of its puzzle."""
    sigma_init: float
    """Standard deviation of the noise in the initial state."""
    random_init: bool
    """Whether that noise replaces the model's own initial state, instead of being added to it."""
    sigma_step: float
    """Standard deviation of what is added to the state before each step."""


def add_noise(state: State, rows: Sequence[tuple[int, Noise, int]]) -> State:
    """The state [B, ...] with noise in rows: (row, its noise, number of the step to come; 0 for the initial state)."""
    sigmas = [noise.sigma_step if step else noise.sigma_init for _, noise, step in rows]
    noisy = [(*row, sigma) for row, sigma in zip(rows, sigmas, strict=True) if sigma]
    if not noisy:
        return state
    index = torch.tensor([row for row, *_ in noisy])
    replaced = torch.tensor([row for row, noise, step, _ in noisy if noise.random_init and not step], dtype=torch.int64)
    draws = [(generator("cpu", noise.seed, noise.start, step), sigma) for _, noise, step, sigma in noisy]

    def push(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        normal = torch.stack([sigma * torch.randn(tensor.shape[1:], generator=rng) for rng, sigma in draws])
        kept = tensor.index_fill(0, replaced.to(tensor.device), 0)
        return kept.index_add(0, index.to(tensor.device), normal.to(tensor))

    return type(state)(*map(push, state))
