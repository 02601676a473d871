"""TRM, the Tiny Recursive Model (arXiv 2510.04871): one network of two blocks, two states, applied again and again.

With x the embedded puzzle, y the state from which the answer is read, and z the state in which the reasoning happens:

    one cycle:            z <- f(z + y + x)     L_cycles times
                          y <- f(y + z)         once
    a supervision step:   H_cycles cycles; the gradient flows through the last one (`LastCycle`)

y and z start as two fixed random vectors, the same at each position. The halting head reads y at the first register,
which carries the puzzle's identity. The numbers (initialisation, scaling, norms, widths) are those of the published
code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion
from loopwise.reasoners.embedded import EmbeddedReasoner
from loopwise.reasoners.network import Network, NetworkConfig

__all__ = ["TRM", "TRMConfig", "TRMState"]


@dataclass(frozen=True, kw_only=True)
class TRMConfig(NetworkConfig):
    """Options of TRM; the defaults are the published model."""

    num_layers: int = 2
    """Blocks of the network f."""
    H_cycles: int = 3
    """T, cycles in a supervision step."""
    L_cycles: int = 6
    """n, updates of z in a cycle."""
    recall: bool = False
    """Input recall: add x in the update of y too, y <- f(y + z + x)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("num_layers", "H_cycles", "L_cycles")


class TRMState(NamedTuple):
    """The two states of TRM (z_H and z_L in the published code)."""

    y: Tensor  # [B, S, D]
    z: Tensor  # [B, S, D]


@final
class TRM(EmbeddedReasoner[TRMConfig]):
    """The Tiny Recursive Model."""

    name: ClassVar[str] = "trm"
    Config: ClassVar[type[ReasonerConfig]] = TRMConfig

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """Two fixed random vectors and the one network."""
        self.y_init = nn.Buffer(truncated_normal_(torch.empty(self.config.hidden_size), 1.0, rng))
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(self.config.hidden_size), 1.0, rng))
        self.f = Network(self.config, self.config.num_layers, shape, rng)

    def init_state(self, batch_size: int, length: int) -> TRMState:
        """The two fixed random vectors, at each position."""
        return TRMState(*(self.start(vector, batch_size, length) for vector in (self.y_init, self.z_init)))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + y + x), n times, then y <- f(y + z); all of it T times."""
        rotation = self.f.rotation(x)

        def think(state: TRMState) -> TRMState:
            return TRMState(state.y, self.f(state.z + (state.y + x), rotation))

        def answer(state: TRMState) -> TRMState:
            told = state.z + x if self.config.recall else state.z
            return TRMState(self.f(state.y + told, rotation), state.z)

        return Recursion((think,) * self.config.L_cycles + (answer,), self.config.H_cycles)

    def answer(self, state: TRMState) -> Tensor:
        """The answer is read from y."""
        return state.y

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]
