"""The symbol-equivariant TRM: the recursion of TRM over a vector for each symbol at each position.

If digits change names in a puzzle, they change names in every state and in the answer: this holds by construction, so
that no augmentation by names is needed. With f the network over fields, x the roles, and d the damping:

    think    z <- (1 - d) z + d f(z + y + x), L_cycles times
    answer   y <- (1 - d) y + d f(y + z)

and the two together H_cycles times. Sources: TRM (arXiv 2510.04871) for the recursion, SE-RRM (arXiv 2603.02193) for
the equivariance, EqR (arXiv 2605.21488) for the damping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.errors import ConfigError
from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion
from loopwise.reasoners.symbols import SymbolConfig, SymbolReasoner
from loopwise.runtime import generator
from loopwise.types import Batch, Prediction, TaskSpec

__all__ = ["Equivariant", "EquivariantConfig", "EquivariantState"]


@dataclass(frozen=True, kw_only=True)
class EquivariantConfig(SymbolConfig):
    """Options of the symbol-equivariant TRM."""

    H_cycles: int = 3
    """T, cycles in a supervision step."""
    L_cycles: int = 6
    """n, updates of z in a cycle."""
    damping: float = 1.0
    """Share of the new state in an update; the rest stays as it was."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("H_cycles", "L_cycles")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping must be more than 0 and at most 1, not {self.damping}")


class EquivariantState(NamedTuple):
    """The two states, of the answer and of the reasoning."""

    y: Tensor  # [B, L, K, D]
    z: Tensor  # [B, L, K, D]


@final
class Equivariant(SymbolReasoner[EquivariantConfig]):
    """TRM over the fields of symbols."""

    name: ClassVar[str] = "equivariant"
    Config: ClassVar[type[ReasonerConfig]] = EquivariantConfig

    def __init__(self, config: EquivariantConfig, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        rng = generator("cpu", config.seed)
        super().__init__(config, spec, dtype, rng)
        self.y_init = nn.Buffer(truncated_normal_(torch.empty(config.hidden_size), 1.0, rng))
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(config.hidden_size), 1.0, rng))

    def encode(self, batch: Batch) -> Tensor:
        """The roles of all symbols: x [B, L, K, D]."""
        return self.embed(batch.inputs)

    def init_state(self, batch_size: int, length: int) -> EquivariantState:
        """The two fixed random vectors, at each symbol of each position."""
        return EquivariantState(*(self.start(vector, batch_size, length) for vector in (self.y_init, self.z_init)))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + y + x), n times, then y <- f(y + z); all of it T times; each damped."""
        rotation = self.f.rotation(x)

        def damped(old: Tensor, new: Tensor) -> Tensor:
            return new if self.config.damping == 1 else torch.lerp(old, new, self.config.damping)

        def think(state: EquivariantState) -> EquivariantState:
            return EquivariantState(state.y, damped(state.z, self.f(state.z + (state.y + x), rotation)))

        def answer(state: EquivariantState) -> EquivariantState:
            return EquivariantState(damped(state.y, self.f(state.y + state.z, rotation)), state.z)

        return Recursion((think,) * self.config.L_cycles + (answer,), self.config.H_cycles)

    def readout(self, state: EquivariantState) -> Prediction:
        """The answer is read from y."""
        return self.prediction(state.y, self.head(state.y).squeeze(-1))
