"""The network that most families apply again and again: a stack of post-norm blocks.

A block lets positions exchange information, in one of three ways, and then works on each alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from loopwise.errors import ConfigError
from loopwise.nn.layers import (
    Attention,
    AttentionBlock,
    Convolution,
    ConvolutionBlock,
    MixerBlock,
    SwiGLU,
    swiglu_width,
)
from loopwise.nn.positions import Rotation, rotary
from loopwise.reasoners.embedded import EmbeddedConfig

__all__ = ["NORM_EPS", "Network", "NetworkConfig"]

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(EmbeddedConfig):
    """Options of reasoners whose updates apply a `Network`."""

    core: Literal["attention", "mlp", "convolution"] = "attention"
    """How positions exchange information: attention, a SwiGLU over positions (bound to one length), or a convolution,
    by which each sees its neighbours only (its weights serve grids of any size, and it needs registers to be 0).
    """
    num_heads: int = 8
    """Attention heads."""
    expansion: float = 4.0
    """Width of the SwiGLU, in units of what it works on, before the usual factor 2/3."""
    width_multiple: int = 256
    """SwiGLU widths are rounded up to a multiple of this."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("num_heads", "width_multiple")
        if self.expansion <= 0:
            raise ConfigError(f"expansion must be more than 0, not {self.expansion}")
        if self.core == "attention" and self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.core == "attention" and self.positions == "rotary" and (self.hidden_size // self.num_heads) % 2:
            raise ConfigError("rotary positions need an even hidden_size / num_heads")
        if self.core == "convolution" and self.registers:
            raise ConfigError(f"the convolution core has no place for {self.registers} registers; set registers to 0")

    @property
    def bound_to_length(self) -> bool:
        """Whether the weights serve puzzles of one length only."""
        return self.core != "attention" or self.positions == "learned"


@final
class Network(nn.Module):
    """`num_layers` blocks, [B, S, D] -> [B, S, D]."""

    def __init__(self, config: NetworkConfig, num_layers: int, shape: tuple[int, ...], rng: torch.Generator) -> None:
        super().__init__()
        c = config
        self.config = config

        def swiglu(size: int) -> SwiGLU:
            return SwiGLU(size, swiglu_width(size, c.expansion, c.width_multiple), rng)

        def block() -> AttentionBlock | ConvolutionBlock | MixerBlock:
            if c.core == "mlp":
                return MixerBlock(swiglu(math.prod(shape)), swiglu(c.hidden_size), NORM_EPS)
            if c.core == "convolution":
                return ConvolutionBlock(Convolution(c.hidden_size, shape, rng), swiglu(c.hidden_size), NORM_EPS)
            return AttentionBlock(Attention(c.hidden_size, c.num_heads, rng), swiglu(c.hidden_size), NORM_EPS)

        self.blocks = nn.ModuleList(block() for _ in range(num_layers))

    def rotation(self, x: Tensor) -> Rotation | None:
        """The rotation of the positions of x [B, S, D], if the attention core uses one."""
        if self.config.core != "attention" or self.config.positions != "rotary":
            return None
        return rotary(x.shape[1], self.config.hidden_size // self.config.num_heads, x.device)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        for block in self.blocks:
            x = block(x, rotation)
        return x
