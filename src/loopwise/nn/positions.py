"""Ways to tell positions apart: a rotation of queries and keys, or a vector added to the input.

Rotary positions follow RoFormer (arXiv 2104.09864) in the layout that pairs the first half of a head with the second;
fixed positions are the sines and cosines of "Attention is all you need" (arXiv 1706.03762). Both serve any length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation", "rotary", "rotate", "sinusoids"]


class Rotation(NamedTuple):
    """The cosines and sines of the rotation of each position, float32."""

    cos: Tensor  # [S, head size]
    sin: Tensor  # [S, head size]


def _angles(length: int, size: int, base: float, device: torch.device) -> Tensor:
    frequencies = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
    return torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)  # [length, size / 2]


def rotary(length: int, head_size: int, device: torch.device, base: float = 10_000.0) -> Rotation:
    """The rotation of `length` positions; head_size must be even."""
    angles = _angles(length, head_size, base, device)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x [B, heads, S, head size] by its positions, in float32, and return it in its own format."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    half_turn = torch.cat((-second, first), dim=-1)
    return (wide * rotation.cos + half_turn * rotation.sin).to(x.dtype)


def sinusoids(length: int, size: int, device: torch.device, base: float = 10_000.0) -> Tensor:
    """Fixed position vectors [length, size] of mean square 1/2: sines in the first half, cosines in the second."""
    angles = _angles(length, size, base, device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
