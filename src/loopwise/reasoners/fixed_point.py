"""Finding z with F(z) = z: plain iteration, Anderson mixing, Broyden's method; each row of a batch on its own.

All three see one equation a row, z [B, N] in float32 or wider. A row stops at the first z whose residual is within the
tolerance and is frozen from then on, so that it does not depend on its neighbours; the search ends when all rows have
stopped or the updates are used up, and gives each row the z of its smallest residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["FixedPoint", "Method", "relative_residual", "solve"]

Method: TypeAlias = Literal["plain", "anderson", "broyden"]
Function: TypeAlias = Callable[[Tensor], Tensor]

WINDOW = 5
"""Anderson: how many of the last iterates are mixed."""
RIDGE = 1e-6
"""Anderson: what is added to the diagonal of the Gram matrix, relative to its mean."""


class FixedPoint(NamedTuple):
    """The outcome of a search."""

    z: Tensor  # [B, N]
    residual: Tensor  # [B], |F(z) - z| / |F(z)| there


def relative_residual(new: Tensor, old: Tensor) -> Tensor:
    """|new - old| / |new| of each row: [B, ...] -> [B] float32 or wider."""
    wide = torch.promote_types(new.dtype, torch.float32)
    a, b = new.to(wide).flatten(1), old.to(wide).flatten(1)
    residual: Tensor = (a - b).norm(dim=-1) / (a.norm(dim=-1) + torch.finfo(wide).tiny)
    return residual


def solve(
    function: Function, z: Tensor, method: Method, tolerance: float, max_updates: int, unit: Tensor | None = None
) -> FixedPoint:
    """Search from z [B, N] with at most `max_updates` calls of `function`, at least one.

    Residuals are relative to |F(z)|, or to `unit` [B] where it is given: in a linear equation with no bounded solution
    |F(z)| grows without end, and would make a point look the better the further it has run away.

    Where torch.compile traces, the number of calls is `max_updates`, with the same result: a trace cannot look at data.
    """
    best = FixedPoint(z, torch.full_like(z[:, 0], torch.inf))
    search = METHODS[method]()
    for i in range(max_updates):
        value = function(z)
        residual = relative_residual(value, z) if unit is None else torch.linalg.vector_norm(value - z, dim=1) / unit
        better = residual < best.residual
        best = FixedPoint(torch.where(better.unsqueeze(1), z, best.z), torch.where(better, residual, best.residual))
        done = best.residual <= tolerance
        if i + 1 == max_updates or (not torch.compiler.is_compiling() and bool(done.all())):
            break
        z = torch.where(done.unsqueeze(1), z, search.propose(z, value))
    return best


class _Plain:
    """z <- F(z)."""

    def propose(self, z: Tensor, value: Tensor) -> Tensor:
        """The next point, given F(z) = value."""
        return value


class _Anderson:
    """Anderson (1965): the affine mix of the last values whose mixed residual is the smallest.

    A row whose residual has grown takes a plain step instead: mixing alone was seen to wander without end on a map that
    plain iteration solves.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def propose(self, z: Tensor, value: Tensor) -> Tensor:
        """The next point, given F(z) = value."""
        self.values = [*self.values[1 - WINDOW :], value]
        self.residuals = [*self.residuals[1 - WINDOW :], value - z]
        residuals = torch.stack(self.residuals, dim=1)  # [B, k, N]
        gram = residuals @ residuals.transpose(1, 2)
        size = gram.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny).view(-1, 1, 1)
        gram = gram / size + RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # Not `solve`, which refuses the whole batch for one row that is singular.
        weights, _ = torch.linalg.solve_ex(gram, torch.ones_like(gram[..., :1]))  # [B, k, 1]
        weights = weights / weights.sum(1, keepdim=True)
        mixed: Tensor = (weights * torch.stack(self.values, dim=1)).sum(1)
        if len(self.residuals) < 2:
            return mixed
        grown = self.residuals[-1].norm(dim=1) > self.residuals[-2].norm(dim=1)
        return torch.where(grown.unsqueeze(1), value, mixed)


class _Broyden:
    """Broyden (1965), his first method: an inverse Jacobian of F(z) - z that starts at -1 and learns by rank one."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.last: tuple[Tensor, Tensor] | None = None

    def propose(self, z: Tensor, value: Tensor) -> Tensor:
        """The next point, given F(z) = value."""
        g = value - z
        if self.last is not None:
            dz, dg = z - self.last[0], g - self.last[1]
            row = _add(-dz, dz, self.columns, self.rows)
            scale = (row * dg).sum(-1, keepdim=True)
            still = scale.abs() < torch.finfo(scale.dtype).tiny  # a row that has arrived
            scale = torch.where(still, torch.inf, scale)
            column = (dz - _add(-dg, dg, self.rows, self.columns)) / scale
            self.columns, self.rows = [*self.columns, column], [*self.rows, row]
        self.last = (z, g)
        return z - _add(-g, g, self.rows, self.columns)


METHODS: dict[Method, type[_Plain | _Anderson | _Broyden]] = {
    "plain": _Plain,
    "anderson": _Anderson,
    "broyden": _Broyden,
}


def _add(start: Tensor, vector: Tensor, by: list[Tensor], along: list[Tensor]) -> Tensor:
    """start + sum over i of (vector . by_i) along_i, for each row."""
    for b, a in zip(by, along, strict=True):
        start = start + (vector * b).sum(-1, keepdim=True) * a
    return start
