"""The two variants of TRM from its paper's ablations: one state for everything, and several states of thought.

    trm-single:   z <- f(z + x) L_cycles times, then z <- f(z); the answer is read from z
    trm-multi:    z_i <- f(z_1 + ... + z_k + y + x) for i = 1, ..., k in turn, L_cycles updates in all;
                  then y <- f(y + z_1 + ... + z_k)

On Sudoku-Extreme the paper (arXiv 2510.04871) has 71.9 % with one state, 87.4 % with two, 77.6 % with seven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.errors import ConfigError
from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion, Update
from loopwise.reasoners.embedded import EmbeddedReasoner
from loopwise.reasoners.network import Network
from loopwise.reasoners.trm import TRMConfig

__all__ = ["MultiState", "MultiStateTRM", "MultiStateTRMConfig", "SingleState", "SingleStateTRM"]


class SingleState(NamedTuple):
    """The one state."""

    z: Tensor  # [B, S, D]


@final
class SingleStateTRM(EmbeddedReasoner[TRMConfig]):
    """TRM with one state that is thought and answer at once."""

    name: ClassVar[str] = "trm-single"
    Config: ClassVar[type[ReasonerConfig]] = TRMConfig

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """One fixed random vector and the one network."""
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(self.config.hidden_size), 1.0, rng))
        self.f = Network(self.config, self.config.num_layers, shape, rng)

    def init_state(self, batch_size: int, length: int) -> SingleState:
        """The fixed random vector, at each position."""
        return SingleState(self.start(self.z_init, batch_size, length))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + x), n times, then z <- f(z); all of it T times."""
        rotation = self.f.rotation(x)

        def think(state: SingleState) -> SingleState:
            return SingleState(self.f(state.z + x, rotation))

        def answer(state: SingleState) -> SingleState:
            return SingleState(self.f(state.z + x if self.config.recall else state.z, rotation))

        return Recursion((think,) * self.config.L_cycles + (answer,), self.config.H_cycles)

    def answer(self, state: SingleState) -> Tensor:
        """The answer is read from z."""
        return state.z

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]


@dataclass(frozen=True, kw_only=True)
class MultiStateTRMConfig(TRMConfig):
    """Options of TRM with several states of thought."""

    num_states: int = 0
    """k, states of thought beside the answer's; the L_cycles updates of a cycle go round them, so that of more than
    L_cycles the last never change. 0 means L_cycles."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        if self.num_states < 0:
            raise ConfigError(f"num_states must be at least 0, not {self.num_states}")

    @property
    def k(self) -> int:
        """States of thought."""
        return self.num_states or self.L_cycles


class MultiState(NamedTuple):
    """The state of the answer, and those of thought."""

    y: Tensor  # [B, S, D]
    z: Tensor  # [B, k, S, D]


@final
class MultiStateTRM(EmbeddedReasoner[MultiStateTRMConfig]):
    """TRM with k states of thought, updated in turn."""

    name: ClassVar[str] = "trm-multi"
    Config: ClassVar[type[ReasonerConfig]] = MultiStateTRMConfig

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """1 + k fixed random vectors and the one network."""
        c = self.config
        self.y_init = nn.Buffer(truncated_normal_(torch.empty(c.hidden_size), 1.0, rng))
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(c.k, c.hidden_size), 1.0, rng))
        self.f = Network(c, c.num_layers, shape, rng)

    def init_state(self, batch_size: int, length: int) -> MultiState:
        """The fixed random vectors, at each position."""
        y = self.start(self.y_init, batch_size, length)
        return MultiState(y, torch.stack([self.start(z, batch_size, length) for z in self.z_init], dim=1))

    def recursion(self, x: Tensor) -> Recursion:
        """z_i <- f(z_1 + ... + z_k + y + x), round and round, then y <- f(y + z_1 + ... + z_k); all of it T times."""
        rotation = self.f.rotation(x)

        def think(i: int) -> Update:
            def update(state: MultiState) -> MultiState:
                thought = self.f(state.z.sum(1) + (state.y + x), rotation)
                return MultiState(state.y, state.z.select_scatter(thought, 1, i))

            return update

        def answer(state: MultiState) -> MultiState:
            told = state.z.sum(1) + x if self.config.recall else state.z.sum(1)
            return MultiState(self.f(state.y + told, rotation), state.z)

        thoughts = tuple(think(i % self.config.k) for i in range(self.config.L_cycles))
        return Recursion((*thoughts, answer), self.config.H_cycles)

    def answer(self, state: MultiState) -> Tensor:
        """The answer is read from y."""
        return state.y

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]
