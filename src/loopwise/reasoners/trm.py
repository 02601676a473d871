"""TRM, the Tiny Recursive Model (arXiv 2510.04871): one network of two blocks, two states, applied again and again.

With x the embedded puzzle, y the state from which the answer is read, and z the state in which the reasoning happens:

    one cycle:            z <- f(z + y + x)     L_cycles times
                          y <- f(y + z)         once
    a supervision step:   H_cycles cycles; the gradient flows through the last one (`LastCycle`)

y and z start as two fixed random vectors, the same at each position. In front of the L positions of the puzzle stand R
registers: the first carries the learned embedding of the puzzle's identity and is where the halting head reads, the
others are free memory. The numbers (initialisation, scaling, norms, widths) are those of the published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, final

import torch
from torch import Tensor, nn

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.nn.layers import (
    Attention,
    AttentionBlock,
    HaltingHead,
    Linear,
    MixerBlock,
    SwiGLU,
    swiglu_width,
    truncated_normal_,
)
from loopwise.nn.positions import Rotation, rotary, sinusoids
from loopwise.reasoners.base import Reasoner, ReasonerConfig, Recursion
from loopwise.runtime import generator
from loopwise.types import Batch, Prediction, TaskSpec

__all__ = ["TRM", "TRMConfig", "TRMState"]

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class TRMConfig(ReasonerConfig):
    """Options of TRM; the defaults are the published model."""

    hidden_size: int = 512
    """D, the size of the vector at each position."""
    num_layers: int = 2
    """Blocks of the network f."""
    H_cycles: int = 3
    """T, cycles in a supervision step."""
    L_cycles: int = 6
    """n, updates of z in a cycle."""
    core: Literal["attention", "mlp"] = "attention"
    """How positions exchange information: attention, or a SwiGLU over positions (bound to one length)."""
    num_heads: int = 8
    """Attention heads."""
    positions: Literal["rotary", "learned", "fixed", "none"] = "rotary"
    """How the attention core tells positions apart; the mlp core needs none of it (its weights do)."""
    registers: int = 16
    """R, extra positions in front of the puzzle; 0 leaves out the puzzle embedding too."""
    halting_reads: Literal["first", "mean"] = "first"
    """What the halting head sees: the first position (published), or the mean of all (learned faster if small)."""
    expansion: float = 4.0
    """Width of the SwiGLU, in units of what it works on, before the usual factor 2/3."""
    width_multiple: int = 256
    """SwiGLU widths are rounded up to a multiple of this."""
    seed: int = 0
    """Seed of the initial weights and of the initial states."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check(self)
        for name in ("hidden_size", "num_layers", "H_cycles", "L_cycles", "num_heads", "width_multiple"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.registers < 0 or self.expansion <= 0:
            raise ConfigError("registers must be at least 0 and expansion more than 0")
        if self.core == "attention" and self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.core == "attention" and self.positions == "rotary" and (self.hidden_size // self.num_heads) % 2:
            raise ConfigError("rotary positions need an even hidden_size / num_heads")
        if self.positions == "fixed" and self.hidden_size % 2:
            raise ConfigError("fixed positions need an even hidden_size")


class TRMState(NamedTuple):
    """The two states of TRM (z_H and z_L in the published code)."""

    y: Tensor  # [B, S, D]
    z: Tensor  # [B, S, D]


@final
class TRM(Reasoner[TRMConfig]):
    """The Tiny Recursive Model."""

    name: ClassVar[str] = "trm"
    Config: ClassVar[type[ReasonerConfig]] = TRMConfig

    def __init__(self, config: TRMConfig, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, size, rng = config, config.hidden_size, generator("cpu", config.seed)
        self.scale = math.sqrt(size)
        self.tokens = nn.Parameter(truncated_normal_(torch.empty(spec.vocab_size, size), size**-0.5, rng))
        length = c.registers + spec.length
        if c.registers:
            zeros = torch.zeros(spec.num_puzzle_ids, size)
            self.puzzles: nn.Embedding = nn.Embedding(spec.num_puzzle_ids, size, sparse=True, _weight=zeros)
        if c.positions == "learned":
            self.places = nn.Parameter(truncated_normal_(torch.empty(length, size), size**-0.5, rng))
        self.y_init = nn.Buffer(truncated_normal_(torch.empty(size), 1.0, rng))
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(size), 1.0, rng))
        self.f = Network(c, length, rng)
        self.head = Linear(size, spec.vocab_size, rng)
        self.halt = HaltingHead(size)

    def encode(self, batch: Batch) -> Tensor:
        """Embed the puzzles: x [B, S, D], scaled to unit variance."""
        x: Tensor = nn.functional.embedding(batch.inputs, self.tokens).to(self.dtype)
        if self.config.registers:
            identity = self.puzzles(batch.puzzle_ids).to(self.dtype).unsqueeze(1)
            empty = identity.new_zeros(x.shape[0], self.config.registers - 1, x.shape[2])
            x = torch.cat((identity, empty, x), dim=1)
        if self.config.positions == "learned":
            x = 0.5**0.5 * (x + self.places.to(self.dtype))
        elif self.config.positions == "fixed":
            # Sinusoids have mean square 1/2, embeddings 1/D: bring both to the same size before adding.
            places = (2 / x.shape[2]) ** 0.5 * sinusoids(x.shape[1], x.shape[2], x.device)
            x = 0.5**0.5 * (x + places.to(self.dtype))
        return self.scale * x

    def init_state(self, batch_size: int, length: int) -> TRMState:
        """The two fixed random vectors, at each position."""
        shape = (batch_size, self.config.registers + length, self.config.hidden_size)
        return TRMState(*(v.to(self.dtype).expand(shape) for v in (self.y_init, self.z_init)))

    def recursion(self, x: Tensor) -> Recursion:
        """z <- f(z + y + x), n times, then y <- f(y + z); all of it T times."""
        rotation = self.f.rotation(x)

        def think(state: TRMState) -> TRMState:
            return TRMState(state.y, self.f(state.z + (state.y + x), rotation))

        def answer(state: TRMState) -> TRMState:
            return TRMState(self.f(state.y + state.z, rotation), state.z)

        return Recursion((think,) * self.config.L_cycles + (answer,), self.config.H_cycles)

    def readout(self, state: TRMState) -> Prediction:
        """The answer from y at the puzzle's positions, the halting logit from y at the first position or its mean."""
        logits = self.head(state.y)[:, self.config.registers :]
        seen = state.y[:, 0] if self.config.halting_reads == "first" else state.y.mean(1)
        return Prediction(logits, *self.halt(seen).unbind(-1))

    def accepts(self, length: int) -> bool:
        """Any length with attention and rotary or fixed positions; else only the length it was built for."""
        bound = self.config.core == "mlp" or self.config.positions == "learned"
        return length == self.spec.length if bound else length >= 1

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]

    def puzzle_table(self) -> nn.Parameter | None:
        """The puzzle embeddings [puzzle ids, D]; None without registers."""
        return cast(nn.Parameter, self.puzzles.weight) if self.config.registers else None


@final
class Network(nn.Module):
    """f: the blocks that both updates share."""

    def __init__(self, config: TRMConfig, length: int, rng: torch.Generator) -> None:
        super().__init__()
        c = config
        self.config = config

        def swiglu(size: int) -> SwiGLU:
            return SwiGLU(size, swiglu_width(size, c.expansion, c.width_multiple), rng)

        def block() -> AttentionBlock | MixerBlock:
            if c.core == "mlp":
                return MixerBlock(swiglu(length), swiglu(c.hidden_size), NORM_EPS)
            return AttentionBlock(Attention(c.hidden_size, c.num_heads, rng), swiglu(c.hidden_size), NORM_EPS)

        self.blocks = nn.ModuleList(block() for _ in range(c.num_layers))

    def rotation(self, x: Tensor) -> Rotation | None:
        """The rotation of the positions of x [B, S, D], if the attention core uses one."""
        if self.config.core == "mlp" or self.config.positions != "rotary":
            return None
        return rotary(x.shape[1], self.config.hidden_size // self.config.num_heads, x.device)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        for block in self.blocks:
            x = block(x, rotation)
        return x
