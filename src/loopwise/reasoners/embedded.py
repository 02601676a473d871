"""What most reasoners share at their ends: an embedding of the puzzle in front, two heads behind.

A family derives from `EmbeddedReasoner` and says what lies between: the initial states and networks (`build`), the
schedule of updates (`recursion`), and which state is the answer (`answer`). In front of the L positions of the puzzle
stand R registers: the first carries the learned embedding of the puzzle's identity, the others start empty and are free
memory that lives through the recursion (a memory tape).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, cast, final

import torch
from torch import Tensor, nn

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.nn.layers import HaltingHead, Linear, truncated_normal_
from loopwise.nn.positions import sinusoids
from loopwise.reasoners.base import Reasoner, ReasonerConfig, State
from loopwise.runtime import generator
from loopwise.types import Batch, Prediction, TaskSpec

__all__ = ["EmbeddedConfig", "EmbeddedReasoner"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig(ReasonerConfig):
    """Options of the embedding and of the heads."""

    hidden_size: int = 512
    """D, the size of the vector at each position."""
    positions: Literal["rotary", "learned", "fixed", "none"] = "rotary"
    """How attention tells positions apart; the other cores need none of it (their weights do)."""
    registers: int = 16
    """R, extra positions in front of the puzzle; 0 leaves out the puzzle embedding too."""
    halting_reads: Literal["first", "mean"] = "first"
    """What the halting head sees: the first position (published), or the mean of all (learned faster if small)."""
    seed: int = 0
    """Seed of the initial weights and of the initial states."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check(self)
        self.at_least_one("hidden_size")
        if self.registers < 0:
            raise ConfigError(f"registers must be at least 0, not {self.registers}")
        if self.positions == "fixed" and self.hidden_size % 2:
            raise ConfigError("fixed positions need an even hidden_size")

    @property
    def bound_to_length(self) -> bool:
        """Whether the weights serve puzzles of one length only."""
        return self.positions == "learned"


C = TypeVar("C", bound=EmbeddedConfig)


class EmbeddedReasoner(Reasoner[C]):
    """A reasoner that embeds tokens and reads its answer from a state of vectors at positions."""

    hint_weights: ClassVar[str] = "hints.weight"

    def __init__(self, config: C, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        size, rng = config.hidden_size, generator("cpu", config.seed)
        self.scale = math.sqrt(size)
        self.tokens = nn.Parameter(truncated_normal_(torch.empty(spec.vocab_size, size), size**-0.5, rng))
        length = config.registers + spec.length
        if config.registers:
            zeros = torch.zeros(spec.num_puzzle_ids, size)
            self.puzzles: nn.Embedding = nn.Embedding(spec.num_puzzle_ids, size, sparse=True, _weight=zeros)
        if config.positions == "learned":
            self.places = nn.Parameter(truncated_normal_(torch.empty(length, size), size**-0.5, rng))
        # With registers in front the positions are a row, whatever shape the puzzle has.
        self.build((length,) if config.registers else spec.shape, rng)
        self.head = Linear(size, spec.vocab_size, rng)
        self.halt = HaltingHead(size)
        if spec.hints:
            self.hints = Linear(size, len(spec.hints), rng)

    @abstractmethod
    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """Make the initial states and the networks, for S positions: (S,), or the (rows, columns) of a grid."""

    @abstractmethod
    def answer(self, state: State) -> Tensor:
        """The vectors [B, S, D] from which the answer is read."""

    @final
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

    @final
    def readout(self, state: State) -> Prediction:
        """The answer from the puzzle's positions, the halting logits from the first position or the mean of all."""
        vectors = self.answer(state)
        logits = self.head(vectors)[:, self.config.registers :]
        seen = vectors[:, 0] if self.config.halting_reads == "first" else vectors.mean(1)
        halt, go_on = self.halt(seen).unbind(-1)
        told = self.hints(vectors)[:, self.config.registers :] if self.spec.hints and self.training else logits[..., :0]
        return Prediction(logits, halt, go_on, torch.zeros_like(halt), told)

    @final
    def accepts(self, length: int) -> bool:
        """Any length with attention and rotary or fixed positions; else only the length it was built for."""
        return length == self.spec.length if self.config.bound_to_length else length >= 1

    @final
    def puzzle_table(self) -> nn.Parameter | None:
        """The puzzle embeddings [puzzle ids, D]; None without registers."""
        return cast(nn.Parameter, self.puzzles.weight) if self.config.registers else None

    @final
    def start(self, vector: Tensor, batch_size: int, length: int) -> Tensor:
        """A state [B, S, D] that holds the same vector [D] at each position of puzzles [B, L]."""
        shape = (batch_size, self.config.registers + length, self.config.hidden_size)
        return vector.to(self.dtype).expand(shape)
