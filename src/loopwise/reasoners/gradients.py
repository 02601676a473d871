"""Gradient policies: through which updates of a supervision step the gradient flows, and at what price.

    last-cycle     through the last cycle (TRM)                   memory of one cycle
    last-updates   through the last k updates (HRM: 2)            memory of k updates
    full-bptt      through all                                    memory of all
    checkpointed   through all, each computed a second time       memory of one update, and a state for each
    implicit       of the fixed point itself (DEQ)                memory of one cycle (traced: of all)
    phantom        through a few damped cycles from there         memory of these

A policy sees the recursion as a value and never the reasoner, so any policy runs with any reasoner. For the last two,
F is one cycle of it: all its updates, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loopwise.errors import ConfigError
from loopwise.reasoners.base import GradientConfig, GradientPolicy, Recursion, State, Update
from loopwise.reasoners.fixed_point import Method, solve

__all__ = [
    "Checkpointed",
    "FixedPointConfig",
    "FullBPTT",
    "Implicit",
    "LastCycle",
    "LastUpdates",
    "LastUpdatesConfig",
    "Phantom",
    "PhantomConfig",
]


def _apply(updates: Sequence[Update], state: State) -> State:
    for update in updates:
        state = update(state)
    return state


@final
class LastCycle(GradientPolicy[GradientConfig]):
    """TRM (arXiv 2510.04871, section 4.1): no gradient but in the last cycle, and there through all its updates."""

    name: ClassVar[str] = "last-cycle"

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        with torch.no_grad():
            state = _apply(recursion.cycle * (recursion.num_cycles - 1), state)
        return _apply(recursion.cycle, state)


@dataclass(frozen=True, kw_only=True)
class LastUpdatesConfig(GradientConfig):
    """Options of the gradient through the last updates."""

    k: int = 2
    """Updates through which the gradient flows; HRM's two are the last of each of its networks. With 1, what the last
    update does not use learns nothing: the embedding, and all of HRM's L.
    """

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, not {self.k}")


@final
class LastUpdates(GradientPolicy[LastUpdatesConfig]):
    """HRM (arXiv 2506.21734, section 2), its one-step gradient: through the last k updates, as in truncated BPTT."""

    name: ClassVar[str] = "last-updates"
    Config: ClassVar[type[GradientConfig]] = LastUpdatesConfig

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        updates = recursion.cycle * recursion.num_cycles
        before = max(0, len(updates) - self.config.k)
        with torch.no_grad():
            state = _apply(updates[:before], state)
        return _apply(updates[before:], state)


@final
class FullBPTT(GradientPolicy[GradientConfig]):
    """Backpropagation through time (Werbos 1990): through all updates of the supervision step."""

    name: ClassVar[str] = "full-bptt"

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        return _apply(recursion.cycle * recursion.num_cycles, state)


@final
class Checkpointed(GradientPolicy[GradientConfig]):
    """Full BPTT that keeps only the state between two updates and computes each a second time (arXiv 1604.06174).

    The activations of one update are in memory at a time, however many there are; what grows is one state an update.
    """

    name: ClassVar[str] = "checkpointed"

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        for update in recursion.cycle * recursion.num_cycles:
            if torch.is_grad_enabled():
                state = checkpoint(update, state, use_reentrant=False, preserve_rng_state=False)
            else:
                state = update(state)
        return state


@dataclass(frozen=True, kw_only=True)
class FixedPointConfig(GradientConfig):
    """Options of the search for the fixed point of a cycle."""

    solver: Method = "anderson"
    """How it is searched for: plain iteration, Anderson mixing, or Broyden's method."""
    tolerance: float = 1e-3
    """The relative residual |F(z) - z| / |F(z)| at which the search of a row ends, if the number format resolves it."""
    max_cycles: int = 24
    """Most cycles in a search."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if self.tolerance < 0:
            raise ConfigError(f"tolerance must be at least 0, not {self.tolerance}")
        if self.max_cycles < 1:
            raise ConfigError(f"max_cycles must be at least 1, not {self.max_cycles}")


@final
class Implicit(GradientPolicy[FixedPointConfig]):
    """DEQ (arXiv 1909.01377, theorem 1): the gradient of the fixed point z* = F(z*), by the implicit function theorem.

    With J the Jacobian of F at z*, the gradient v of z* becomes g = v + J^T g, solved for as z* was, before it goes on
    through one cycle. The recursion's own number of cycles is not used: the search ends where it converges.
    """

    name: ClassVar[str] = "implicit"
    Config: ClassVar[type[GradientConfig]] = FixedPointConfig

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state one cycle behind the point found, which is the fixed point if it was one."""
        z, function = _search(recursion, state, self.config)
        if not torch.is_grad_enabled():
            return _unpack(function(z), state)
        if torch.compiler.is_compiling():
            return _unpack(self._series(z, function), state)
        leaf = z.requires_grad_()
        value = function(leaf)
        outcome = value.view_as(value)  # bears the hook, so that asking for the gradient of `value` does not call it

        def solve_transposed(v: Tensor) -> Tensor:
            def transposed(g: Tensor) -> Tensor:
                return v + torch.autograd.grad(value, leaf, g, retain_graph=True)[0]

            c = self.config
            unit = v.norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)
            return transposed(solve(transposed, v, c.solver, c.tolerance, c.max_cycles, unit).z)

        outcome.register_hook(solve_transposed)  # type: ignore[no-untyped-call]
        return _unpack(outcome, state)

    def _series(self, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """F(z) with the gradient of the series of J^T, `max_cycles` terms and one: that of going on from z so often.

        A trace can hold no solve whose length depends on data, and no gradient inside of a gradient.
        """
        value = carrier = function(z)
        for _ in range(self.config.max_cycles):
            carrier = function(carrier)
        return value.detach() + (carrier - carrier.detach())


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(FixedPointConfig):
    """Options of the phantom gradient."""

    steps: int = 4
    """Damped cycles through which the gradient flows."""
    damping: float = 0.5
    """Share of the new state in each of them."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping must be more than 0 and at most 1, not {self.damping}")


@final
class Phantom(GradientPolicy[PhantomConfig]):
    """Phantom gradients (arXiv 2111.05177, unrolled): find the fixed point, then differentiate a few damped cycles."""

    name: ClassVar[str] = "phantom"
    Config: ClassVar[type[GradientConfig]] = PhantomConfig

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state behind the damped cycles."""
        z, function = _search(recursion, state, self.config)
        for _ in range(self.config.steps):
            z = torch.lerp(z, function(z), self.config.damping)
        return _unpack(z, state)


def _search(recursion: Recursion, state: State, c: FixedPointConfig) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(the fixed point as vectors [B, N], cut from every graph; a cycle as a function of such vectors)."""

    def function(z: Tensor) -> Tensor:
        return _pack(_apply(recursion.cycle, _unpack(z, state)))

    # Rounding alone keeps the residual of a state in bfloat16 above 2e-3.
    tolerance = max(c.tolerance, torch.finfo(state[0].dtype).eps / 2)
    with torch.no_grad():
        return solve(function, _pack(state), c.solver, tolerance, c.max_cycles).z.detach(), function


def _pack(state: State) -> Tensor:
    """All tensors of a state as one vector a row, [B, N], in float32 or wider."""
    wide = reduce(torch.promote_types, [tensor.dtype for tensor in state], torch.float32)
    return torch.cat([tensor.to(wide).flatten(1) for tensor in state], dim=1)


def _unpack(z: Tensor, like: State) -> State:
    """The state that `_pack` made a vector of."""
    parts = torch.split(z, [tensor[0].numel() for tensor in like], dim=1)
    return type(like)(*(part.view_as(old).to(old.dtype) for part, old in zip(parts, like, strict=True)))
