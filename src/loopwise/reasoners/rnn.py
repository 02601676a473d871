"""The recurrent network: gated units that read the puzzle position by position, with backpropagation through time.

One update reads one position i, with what was written there before:

    h_1 <- GRU_1(x_i + y_i, h_1);   h_l <- GRU_l(h_(l-1), h_l);   y_i <- h of the last layer

One pass over all S positions is a cycle; what a position needs to know of those behind it, it hears in the second. The
register of the puzzle's identity, where there is one, is read last, so that the halting head, which looks there, has
heard everything. Under `last-updates` with k this is backpropagation through time truncated to k positions. Source: the
gated recurrent unit (arXiv 1406.1078).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.nn.layers import GatedUnit, truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion, Update
from loopwise.reasoners.embedded import EmbeddedConfig, EmbeddedReasoner

__all__ = ["RNN", "RNNConfig", "RNNState"]


@dataclass(frozen=True, kw_only=True)
class RNNConfig(EmbeddedConfig):
    """Options of the recurrent network."""

    positions: Literal["learned", "fixed", "none"] = "none"
    """Vectors that tell positions apart; the order of reading does so too."""
    registers: int = 1
    """R, extra positions in front of the puzzle; 0 leaves out the puzzle embedding too."""
    num_layers: int = 1
    """Gated units on top of each other."""
    cycles: int = 2
    """Passes over the puzzle in a supervision step."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("num_layers", "cycles")


class RNNState(NamedTuple):
    """What the units remember, and what was written at each position."""

    h: Tensor  # [B, layers, D]
    y: Tensor  # [B, S, D]


@final
class RNN(EmbeddedReasoner[RNNConfig]):
    """The gated recurrent network."""

    name: ClassVar[str] = "rnn"
    Config: ClassVar[type[ReasonerConfig]] = RNNConfig
    default_gradient: ClassVar[str] = "full-bptt"

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """Fixed random vectors for memory and positions, and the units."""
        c = self.config
        self.h_init = nn.Buffer(truncated_normal_(torch.empty(c.num_layers, c.hidden_size), 1.0, rng))
        self.y_init = nn.Buffer(truncated_normal_(torch.empty(c.hidden_size), 1.0, rng))
        self.units = nn.ModuleList(GatedUnit(c.hidden_size, rng) for _ in range(c.num_layers))

    def init_state(self, batch_size: int, length: int) -> RNNState:
        """The fixed random vectors."""
        h = self.h_init.to(self.dtype).expand(batch_size, *self.h_init.shape)
        return RNNState(h, self.start(self.y_init, batch_size, length))

    def recursion(self, x: Tensor) -> Recursion:
        """Read position after position, the register of the identity last; `cycles` passes."""

        def read(position: int) -> Update:
            def update(state: RNNState) -> RNNState:
                told = x[:, position] + state.y[:, position]
                memory = []
                for unit, h in zip(self.units, state.h.unbind(1), strict=True):
                    told = unit(told, h)
                    memory.append(told)
                return RNNState(torch.stack(memory, dim=1), state.y.select_scatter(told, 1, position))

            return update

        order = tuple(range(x.shape[1]))
        if self.config.registers:
            order = (*order[1:], 0)
        return Recursion(tuple(read(position) for position in order), self.config.cycles)

    def answer(self, state: RNNState) -> Tensor:
        """The answer is read from what was written."""
        return state.y

    def networks(self) -> list[nn.Module]:
        """The gated units."""
        return list(self.units)
