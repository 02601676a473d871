"""The layers of HRM and TRM: linear maps without bias, RMS norm without scale, SwiGLU, attention, token mixing.

Weights are kept in float32 and cast to the number format of the activations at each call, so that the same module
serves float32 and bfloat16. Norms and rotations are computed in float32. Source: the TRM paper (arXiv 2510.04871,
section 4) and its published code, as facts: post-norm, truncated normal initialisation of standard deviation
1/sqrt(fan_in), SwiGLU width 2/3 of the expansion rounded up to a multiple of 256. Beside them stands a convolution, of
which the recurrent networks are made that go from small mazes to larger ones (arXiv 2106.04537, 2202.05826).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopwise.nn.positions import Rotation, rotate

__all__ = [
    "Attention",
    "AttentionBlock",
    "Convolution",
    "ConvolutionBlock",
    "GatedUnit",
    "HaltingHead",
    "Linear",
    "MixerBlock",
    "SwiGLU",
    "few_columns",
    "rms_norm",
    "swiglu_width",
    "truncated_normal_",
]

COLUMNS = 16
"""Of a product whose rows are rounded alike wherever they stand."""

# The deviation of a standard normal that is cut at +-2: dividing by it makes the realised deviation the wanted one.
_CUT_DEVIATION = 0.87962566103423978


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float, rng: torch.Generator | None = None) -> Tensor:
    """Fill with a normal of realised standard deviation `std`, cut at two deviations of the underlying normal."""
    sigma = std / _CUT_DEVIATION
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma, generator=rng)


def rms_norm(x: Tensor, eps: float, dim: int = -1) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over one axis, in float32, without a learned scale."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def swiglu_width(size: int, expansion: float, multiple: int) -> int:
    """Inner width of a SwiGLU: two thirds of the expansion, so that its three matrices cost what two would."""
    return math.ceil(round(expansion * size * 2 / 3) / multiple) * multiple


def few_columns(x: Tensor, weight: Tensor) -> Tensor:
    """W x, [..., in] -> [..., out], for few outputs: in a product of few columns the place of a row may decide its
    rounding, so this one has at least 16, the further ones of zeros.
    """
    count = len(weight)
    return F.linear(x, F.pad(weight.to(x.dtype), (0, 0, 0, max(COLUMNS - count, 0))))[..., :count]


class Linear(nn.Module):
    """y = W x, the weight cast to the format of x; initialised as a truncated normal, deviation 1/sqrt(fan_in)."""

    def __init__(self, in_features: int, out_features: int, rng: torch.Generator) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features)
        self.weight = nn.Parameter(truncated_normal_(weight, in_features**-0.5, rng))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight.to(x.dtype))

    def across(self, x: Tensor) -> Tensor:
        """The same over the middle axis: [B, in, D] -> [B, out, D]."""
        return torch.bmm(self.weight.to(x.dtype).expand(x.shape[0], -1, -1), x)


class HaltingHead(nn.Module):
    """Two values read from one position: of halting now, and of going on. Their weights start at zero, their biases at
    -5: "surely not yet", so that every puzzle gets all its steps until the head has learned something.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, size))
        self.bias = nn.Parameter(torch.full((2,), -5.0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, 2] float32: halt, continue."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).float()

    def by_sums(self, x: Tensor) -> Tensor:
        """The same as sums: in a product of few columns and few rows the place of a row may decide its rounding."""
        return ((x.unsqueeze(1) * self.weight.to(x.dtype)).sum(2) + self.bias.to(x.dtype)).float()


class GatedUnit(nn.Module):
    """A gated recurrent unit (arXiv 1406.1078, in the form of cuDNN, whose reset gate acts behind the product):

    r, u = sigmoid(W x + V h + b);  n = tanh(W_n x + b_n + r * (V_n h + c_n));  h <- (1 - u) n + u h
    """

    def __init__(self, size: int, rng: torch.Generator) -> None:
        super().__init__()
        self.told = Linear(size, 3 * size, rng)
        self.kept = Linear(size, 3 * size, rng)
        self.told_bias = nn.Parameter(torch.zeros(3 * size))
        self.kept_bias = nn.Parameter(torch.zeros(3 * size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x [B, D], h [B, D] -> the new h [B, D]."""
        told = (self.told(x) + self.told_bias.to(x.dtype)).chunk(3, dim=-1)
        kept = (self.kept(h) + self.kept_bias.to(h.dtype)).chunk(3, dim=-1)
        reset, update = torch.sigmoid(told[0] + kept[0]), torch.sigmoid(told[1] + kept[1])
        return torch.lerp(torch.tanh(told[2] + reset * kept[2]), h, update)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one fused projection, gate first."""

    def __init__(self, size: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.gate_up = Linear(size, 2 * width, rng)
        self.down = Linear(width, size, rng)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        hidden: Tensor = self.down(F.silu(gate) * up)
        return hidden

    def across(self, x: Tensor) -> Tensor:
        """The same over the middle axis, [B, size, D] -> [B, size, D], without turning x around."""
        gate, up = self.gate_up.across(x).chunk(2, dim=1)
        return self.down.across(F.silu(gate) * up)


class Attention(nn.Module):
    """Multi-head attention of every position to every position, optionally with rotary positions."""

    def __init__(self, hidden_size: int, num_heads: int, rng: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size, rng)
        self.out = Linear(hidden_size, hidden_size, rng)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        batch, length, size = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, S, D / heads]
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, size))
        return output


class AttentionBlock(nn.Module):
    """x <- norm(x + attention(x)); x <- norm(x + SwiGLU(x))."""

    def __init__(self, attention: Attention, mlp: SwiGLU, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attention = attention
        self.mlp = mlp

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x = rms_norm(x + self.attention(x, rotation), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class MixerBlock(nn.Module):
    """The block without attention: a SwiGLU over the S positions of each channel, then one over the channels.

    The norm of the first half is over the positions too (as published). The block is bound to one length.
    """

    def __init__(self, token_mlp: SwiGLU, mlp: SwiGLU, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.token_mlp = token_mlp
        self.mlp = mlp

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]. Positions are in the weights; `rotation` is None."""
        x = rms_norm(x + self.token_mlp.across(x), self.eps, dim=1)
        return rms_norm(x + self.mlp(x), self.eps)


class Convolution(nn.Module):
    """A linear map of each position and its neighbours: 3x3 cells of a grid, or 3 positions of a row.

    Beyond the edge there are zeros.
    """

    def __init__(self, size: int, shape: tuple[int, ...], rng: torch.Generator) -> None:
        super().__init__()
        self.grid = (1, *shape)[-2:]
        rows = 3 if self.grid[0] > 1 else 1
        weight = torch.empty(size, size, rows, 3)
        self.weight = nn.Parameter(truncated_normal_(weight, (3 * rows * size) ** -0.5, rng))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D], S the cells of the grid row by row."""
        grid = x.view(x.shape[0], *self.grid, x.shape[2]).permute(0, 3, 1, 2)
        weight = self.weight.to(x.dtype, memory_format=torch.channels_last)
        return F.conv2d(grid, weight, padding="same").permute(0, 2, 3, 1).reshape(x.shape)


class ConvolutionBlock(nn.Module):
    """x <- norm(x + convolution(x)); x <- norm(x + SwiGLU(x))."""

    def __init__(self, convolution: Convolution, mlp: SwiGLU, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.convolution = convolution
        self.mlp = mlp

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, S, D] -> [B, S, D]. Its neighbours tell a position where it stands; `rotation` is None."""
        x = rms_norm(x + self.convolution(x), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)
