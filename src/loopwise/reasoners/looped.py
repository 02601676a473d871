"""The looped transformer: one state, one network, z <- f(z + x); the plainest recursion there is.

Or several networks that take turns (`inject`). With one cycle it is the feed-forward transformer of the same
parameters. Untied, each of the cycles has a network of its own: a feed-forward transformer of the same FLOPs and
`cycles` times the parameters. Sources: Universal Transformers (arXiv 1807.03819); looped transformers with input
injection (arXiv 2311.12424).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion, Update
from loopwise.reasoners.embedded import EmbeddedReasoner
from loopwise.reasoners.network import Network, NetworkConfig

__all__ = ["Looped", "LoopedConfig", "LoopedState"]


@dataclass(frozen=True, kw_only=True)
class LoopedConfig(NetworkConfig):
    """Options of the looped transformer."""

    num_layers: int = 2
    """Blocks of the network f."""
    cycles: int = 8
    """Applications of f in a supervision step; 1 is a feed-forward transformer."""
    tied: bool = True
    """Whether all cycles share their weights."""
    inject: Literal["cycle", "block"] = "cycle"
    """Where the puzzle x is added to the state: once before f, or before each block of f, z <- block(z + x). With that,
    blocks are networks that take turns: more weights at the FLOPs of one, and what one block learned is where several
    can begin (`training.start_from` copies it).
    """

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("num_layers", "cycles")


class LoopedState(NamedTuple):
    """The one state."""

    z: Tensor  # [B, S, D]


@final
class Looped(EmbeddedReasoner[LoopedConfig]):
    """The looped transformer."""

    name: ClassVar[str] = "looped"
    Config: ClassVar[type[ReasonerConfig]] = LoopedConfig
    default_gradient: ClassVar[str] = "full-bptt"

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """A fixed random vector, and one network or one for each cycle."""
        c = self.config
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(c.hidden_size), 1.0, rng))
        count = 1 if c.tied else c.cycles
        self.f = nn.ModuleList(Network(c, c.num_layers, shape, rng) for _ in range(count))

    def init_state(self, batch_size: int, length: int) -> LoopedState:
        """The fixed random vector, at each position."""
        return LoopedState(self.start(self.z_init, batch_size, length))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + x), or that for each block in turn, `cycles` times; untied, one update through all networks."""
        first = self.f[0]
        assert isinstance(first, Network)
        rotation = first.rotation(x)
        networks = self.networks()

        def update(*turn: nn.Module) -> Update:
            def through(state: LoopedState) -> LoopedState:
                z = state.z
                for network in turn:
                    z = network(z + x, rotation)
                return LoopedState(z)

            return through

        if not self.config.tied:
            return Recursion((update(*networks),), 1)
        return Recursion(tuple(update(network) for network in networks), self.config.cycles)

    def answer(self, state: LoopedState) -> Tensor:
        """The answer is read from z."""
        return state.z

    def networks(self) -> list[nn.Module]:
        """f, or the networks of all cycles; the blocks of these where they take turns."""
        if self.config.inject == "cycle":
            return list(self.f)
        return [block for network in self.f if isinstance(network, Network) for block in network.blocks]
