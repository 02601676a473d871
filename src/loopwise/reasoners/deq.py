"""DEQ, the deep equilibrium model (arXiv 1909.01377): a network of infinite depth, found by solving for where it ends.

    z* = f(z* + U x)

The update is damped, z <- (1 - damping) z + damping f(z + U x), which moves no fixed point and helps to reach one.
Under `implicit` policy the fixed point is solved for, and the gradient needs nothing but the fixed point. Under any
other, the update is applied `cycles` times. How near it comes is the residual that `Solver.trace` gives for every
update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.errors import ConfigError
from loopwise.nn.layers import Linear, truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion
from loopwise.reasoners.embedded import EmbeddedReasoner
from loopwise.reasoners.network import Network, NetworkConfig

__all__ = ["DEQ", "DEQConfig", "DEQState"]


@dataclass(frozen=True, kw_only=True)
class DEQConfig(NetworkConfig):
    """Options of the deep equilibrium model."""

    num_layers: int = 2
    """Blocks of the network f."""
    cycles: int = 12
    """Updates in a supervision step under a policy that does not solve for the fixed point."""
    damping: float = 0.5
    """Share of the new state in an update; 1 is the plain iteration."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("num_layers", "cycles")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping must be more than 0 and at most 1, not {self.damping}")


class DEQState(NamedTuple):
    """Where the search for the fixed point stands."""

    z: Tensor  # [B, S, D]


@final
class DEQ(EmbeddedReasoner[DEQConfig]):
    """The deep equilibrium model."""

    name: ClassVar[str] = "deq"
    Config: ClassVar[type[ReasonerConfig]] = DEQConfig
    default_gradient: ClassVar[str] = "implicit"

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """A fixed random vector to start from, the injection U and the network."""
        c = self.config
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(c.hidden_size), 1.0, rng))
        self.U = Linear(c.hidden_size, c.hidden_size, rng)
        self.f = Network(c, c.num_layers, shape, rng)

    def init_state(self, batch_size: int, length: int) -> DEQState:
        """The fixed random vector, at each position."""
        return DEQState(self.start(self.z_init, batch_size, length))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- (1 - damping) z + damping f(z + U x)."""
        rotation = self.f.rotation(x)
        injected = self.U(x)

        def update(state: DEQState) -> DEQState:
            return DEQState(torch.lerp(state.z, self.f(state.z + injected, rotation), self.config.damping))

        return Recursion((update,), self.config.cycles)

    def answer(self, state: DEQState) -> Tensor:
        """The answer is read from z."""
        return state.z

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]
