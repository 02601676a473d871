"""The symbol-equivariant looped network: z <- f(z + x) over a vector for each symbol at each position.

One state, one network or several that take turns (`inject`), and x the roles of the symbols and which of them the
puzzle leaves possible. It is what the lattice reasoner computes in one look, only that the look goes on for as many
steps as one likes and nothing is eliminated or guessed: its answers are those of a single pass. The parameters have
the names that they have there, so that a training may start from a lattice's (`training.start_from`). Sources:
recurrent relational networks (arXiv 1711.08028) for the loop, SE-RRM (arXiv 2603.02193) for the equivariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.nn.layers import few_columns
from loopwise.reasoners.base import ReasonerConfig, Recursion, Update
from loopwise.reasoners.candidates import CandidateReasoner
from loopwise.reasoners.symbols import SymbolConfig
from loopwise.runtime import generator
from loopwise.types import Prediction, TaskSpec

__all__ = ["EquivariantLooped", "EquivariantLoopedConfig", "EquivariantLoopedState"]


@dataclass(frozen=True, kw_only=True)
class EquivariantLoopedConfig(SymbolConfig):
    """Options of the symbol-equivariant looped network."""

    num_layers: int = 1
    """Blocks of the network f."""
    cycles: int = 16
    """Applications of f in a supervision step."""
    inject: Literal["cycle", "block"] = "cycle"
    """Where the puzzle x is added to the state: once before f, or before each block of f, z <- block(z + x). With that,
    blocks are networks that take turns: more weights at the FLOPs of one, and what one block learned is where several
    can begin (`training.start_from` copies it).
    """

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("cycles")


class EquivariantLoopedState(NamedTuple):
    """The one state."""

    z: Tensor  # [B, L, K, D]


@final
class EquivariantLooped(CandidateReasoner[EquivariantLoopedConfig]):
    """The looped network over the fields of symbols."""

    name: ClassVar[str] = "equivariant-looped"
    Config: ClassVar[type[ReasonerConfig]] = EquivariantLoopedConfig
    default_gradient: ClassVar[str] = "full-bptt"
    round_rows: ClassVar[int] = 4  # with 9x9, hundreds of rows in each product; smaller ones were compared

    def __init__(self, config: EquivariantLoopedConfig, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype, generator("cpu", config.seed))

    def init_state(self, batch_size: int, length: int) -> EquivariantLoopedState:
        """The fixed random vector, at each symbol of each position."""
        return EquivariantLoopedState(self.start(self.z_init, batch_size, length))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + x), or that for each block in turn, `cycles` times."""
        rotation = self.f.rotation(x)

        def update(network: nn.Module) -> Update:
            return lambda state: EquivariantLoopedState(network(state.z + x, rotation))

        return Recursion(tuple(update(network) for network in self.networks()), self.config.cycles)

    def networks(self) -> list[nn.Module]:
        """The one network f, or its blocks where they take turns."""
        return list(self.f.blocks) if self.config.inject == "block" else [self.f]

    def readout(self, state: EquivariantLoopedState) -> Prediction:
        """The answer is read from z."""
        return self.prediction(state.z, few_columns(state.z, self.head.weight).squeeze(-1))
