"""What the symbol-equivariant families share: a vector for each symbol at each position, by weights that all share.

Where a task says that symbols are interchangeable (the digits of Sudoku), nothing in the network can tell one from
another: if they change names in the puzzle, they change names in the answer, whatever the weights. Each such symbol is
a *field* over the positions. A task without interchangeable symbols gets a field for each token, told apart by a
learned vector. Sources: SE-RRM (arXiv 2603.02193) for fields and for the roles that a symbol plays at a position;
recurrent relational networks (arXiv 1711.08028) for telling the network which positions stand under one rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.nn.layers import Attention, HaltingHead, Linear, SwiGLU, rms_norm, swiglu_width, truncated_normal_
from loopwise.nn.positions import Rotation, rotary
from loopwise.reasoners.base import Reasoner, ReasonerConfig
from loopwise.reasoners.network import NORM_EPS
from loopwise.types import Prediction, TaskSpec

__all__ = ["IMPOSSIBLE", "SymbolConfig", "SymbolNetwork", "SymbolReasoner"]

IMPOSSIBLE = -1e4
"""The logit of a token that is no answer; finite, so that it can be stored and exported in any number format."""
MOST_WEIGHT = 10.0
"""The largest logarithm of a weight: what is larger would overflow in narrow number formats."""

MINE, OTHER = 0, 1
"""The roles of a symbol where a field's token stands: it is that token, or it is not. All else has further roles."""


@dataclass(frozen=True, kw_only=True)
class SymbolConfig(ReasonerConfig):
    """Options of a network over the fields of symbols."""

    hidden_size: int = 64
    """D, the size of the vector of a symbol at a position."""
    num_layers: int = 2
    """Blocks of the network."""
    core: Literal["groups", "attention", "mlp"] = "groups"
    """How the positions of a field exchange information: within the groups that the task names (all positions are one
    group where it names none), by attention with rotary positions, or by a SwiGLU over positions (bound to one length).
    """
    num_heads: int = 4
    """Attention heads."""
    expansion: float = 3.0
    """Width of the SwiGLUs, in units of what they work on, before the usual factor 2/3."""
    width_multiple: int = 16
    """SwiGLU widths are rounded up to a multiple of this."""
    seed: int = 0
    """Seed of the initial weights and of the initial states."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check(self)
        self.at_least_one("hidden_size", "num_layers", "num_heads", "width_multiple")
        if self.expansion <= 0:
            raise ConfigError(f"expansion must be more than 0, not {self.expansion}")
        if self.core == "attention" and self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not an even multiple of num_heads {self.num_heads}, "
                "which rotary positions need"
            )


class _Groups(nn.Module):
    """Each group sees a weighted mean of its positions, and each position the mean of what its groups make of it."""

    def __init__(self, config: SymbolConfig, spec: TaskSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.update = _swiglu(config.hidden_size, config, rng)
        members = torch.zeros(len(spec.groups), spec.length)
        for group, places in zip(members, spec.groups, strict=True):
            group[list(places)] = 1.0
        # A position that stands in no group gets no message.
        self.gather = nn.Buffer(members / members.sum(1, keepdim=True).clamp(min=1), persistent=False)
        self.spread = nn.Buffer((members / members.sum(0).clamp(min=1)).T.contiguous(), persistent=False)

    def forward(self, value: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, L, K, D], weights as many -> [B, L, K, D]."""
        if not len(self.gather):
            mean: Tensor = self.update(rms_norm(_mean(value, weight, 1), NORM_EPS))
            return mean.expand_as(value)
        batch, length, fields, size = value.shape
        both = torch.cat((value * weight, weight), dim=3).view(batch, length, -1)
        total, share = torch.matmul(self.gather.to(value.dtype), both).view(batch, -1, fields, 2 * size).chunk(2, dim=3)
        made = self.update(rms_norm(total / share, NORM_EPS))
        return torch.matmul(self.spread.to(value.dtype), made.flatten(2)).view(value.shape)


class _Attention(nn.Module):
    """Attention of every position to every position of the same field."""

    def __init__(self, config: SymbolConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(config.hidden_size, config.num_heads, rng)

    def forward(self, value: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, L, K, D] -> [B, L, K, D]; attention finds its weights itself."""
        fields = value.transpose(1, 2)
        mixed: Tensor = self.attention(fields.flatten(0, 1), rotation)
        return mixed.view(fields.shape).transpose(1, 2)


class _Mixing(nn.Module):
    """A SwiGLU over the positions of each channel of each field."""

    def __init__(self, config: SymbolConfig, spec: TaskSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.positions = _swiglu(spec.length, config, rng)

    def forward(self, value: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, L, K, D] -> [B, L, K, D]; the SwiGLU's weights are those of the positions."""
        return self.positions.across(value.flatten(2)).view(value.shape)


class _Block(nn.Module):
    """x <- norm(x + positions(v) + symbols(v)); x <- norm(x + SwiGLU(x)), with v a linear map of x.

    Means over positions and over symbols are weighted, by exp(a linear map of x), channel by channel: a single symbol
    that matters can so be heard among many.
    """

    def __init__(self, config: SymbolConfig, spec: TaskSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.value = Linear(config.hidden_size, 2 * config.hidden_size, rng)
        if config.core == "groups":
            self.positions: nn.Module = _Groups(config, spec, rng)
        elif config.core == "attention":
            self.positions = _Attention(config, rng)
        else:
            self.positions = _Mixing(config, spec, rng)
        self.symbols = _swiglu(config.hidden_size, config, rng)
        self.mlp = _swiglu(config.hidden_size, config, rng)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, L, K, D] -> [B, L, K, D]."""
        value, weight = self.value(x).chunk(2, dim=3)
        weight = weight.clamp(max=MOST_WEIGHT).exp()
        common = self.symbols(rms_norm(_mean(value, weight, 2), NORM_EPS))
        x = rms_norm(x + self.positions(value, weight, rotation) + common, NORM_EPS)
        return rms_norm(x + self.mlp(x), NORM_EPS)


@final
class SymbolNetwork(nn.Module):
    """`num_layers` blocks, [B, L, K, D] -> [B, L, K, D], the same for each of the K fields."""

    def __init__(self, config: SymbolConfig, spec: TaskSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(_Block(config, spec, rng) for _ in range(config.num_layers))

    def rotation(self, x: Tensor) -> Rotation | None:
        """The rotation of the positions of x [B, L, K, D], if the attention core uses one."""
        if self.config.core != "attention":
            return None
        return rotary(x.shape[1], self.config.hidden_size // self.config.num_heads, x.device)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, L, K, D] -> [B, L, K, D]."""
        for block in self.blocks:
            x = block(x, rotation)
        return x


C = TypeVar("C", bound=SymbolConfig)


class SymbolReasoner(Reasoner[C]):
    """A reasoner whose vectors stand at each symbol of each position: how it embeds puzzles, and how it is read."""

    def __init__(self, config: C, spec: TaskSpec, dtype: torch.dtype, rng: torch.Generator) -> None:
        super().__init__(config, spec, dtype)
        size = config.hidden_size
        fields = tuple(spec.interchangeable) or tuple(range(spec.vocab_size))
        self.fields = nn.Buffer(torch.tensor(fields), persistent=False)
        # A token that is none of the fields (a blank) gives all of them a role of its own.
        roles = torch.full((spec.vocab_size, len(fields)), OTHER)
        for token in range(spec.vocab_size):
            if token not in fields:
                roles[token] = int(roles.max()) + 1
        roles[list(fields), list(range(len(fields)))] = MINE
        self.roles_of = nn.Buffer(roles, persistent=False)
        count = int(roles.max()) + 1
        self.scale = math.sqrt(size)
        self.roles = nn.Parameter(truncated_normal_(torch.empty(count, size), size**-0.5, rng))
        if not spec.interchangeable:
            self.names = nn.Parameter(truncated_normal_(torch.empty(len(fields), size), size**-0.5, rng))
        self.f = SymbolNetwork(config, spec, rng)
        self.head = Linear(size, 1, rng)
        self.halt = HaltingHead(size)

    def embed(self, inputs: Tensor) -> Tensor:
        """The roles of all symbols in puzzles [B, L]: x [B, L, K, D], scaled to unit variance."""
        x = F.embedding(self.roles_of[inputs], self.roles).to(self.dtype)
        if not self.spec.interchangeable:
            x = 0.5**0.5 * (x + self.names.to(self.dtype))
        return self.scale * x

    @final
    def logits(self, scores: Tensor) -> Tensor:
        """Scores of the symbols [B, L, K] as logits of tokens [B, L, V]; what is no field is impossible."""
        if not self.spec.interchangeable:
            return scores
        everywhere = scores.new_full((*scores.shape[:2], self.spec.vocab_size), IMPOSSIBLE)
        return everywhere.index_copy(2, self.fields, scores)

    @final
    def prediction(self, vectors: Tensor, scores: Tensor) -> Prediction:
        """The answer from scores of the symbols [B, L, K], the halting logits from the mean of all [B, L, K, D]."""
        halt, go_on = self.halt.by_sums(vectors.mean((1, 2))).unbind(-1)
        logits = self.logits(scores)
        return Prediction(logits, halt, go_on, torch.zeros_like(halt), logits[..., :0])

    @final
    def accepts(self, length: int) -> bool:
        """Any length with attention, or where the task names no groups; else only the length it was built for."""
        any_length = self.config.core == "attention" or (self.config.core == "groups" and not self.spec.groups)
        return length >= 1 if any_length else length == self.spec.length

    def networks(self) -> list[nn.Module]:
        """The one network f."""
        return [self.f]

    @final
    def start(self, vector: Tensor, batch_size: int, length: int) -> Tensor:
        """A state [B, L, K, D] that holds the same vector [D] at each symbol of each position of puzzles [B, L]."""
        return vector.to(self.dtype).expand(batch_size, length, len(self.fields), self.config.hidden_size)


def _swiglu(size: int, config: SymbolConfig, rng: torch.Generator) -> SwiGLU:
    return SwiGLU(size, swiglu_width(size, config.expansion, config.width_multiple), rng)


def _mean(value: Tensor, weight: Tensor, dim: int) -> Tensor:
    """The weighted mean over one axis, which stays with size 1."""
    return (value * weight).sum(dim, keepdim=True) / weight.sum(dim, keepdim=True)
