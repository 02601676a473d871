"""What the families share that are told which symbols are still possible at each position."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.symbols import SymbolConfig, SymbolReasoner
from loopwise.types import Batch, TaskSpec

__all__ = ["CandidateReasoner"]

C = TypeVar("C", bound=SymbolConfig)


class CandidateReasoner(SymbolReasoner[C]):
    """A reasoner over symbols each of which is marked as gone, as open, or as alone at its position."""

    def __init__(self, config: C, spec: TaskSpec, dtype: torch.dtype, rng: torch.Generator) -> None:
        super().__init__(config, spec, dtype, rng)
        size = config.hidden_size
        self.marks = nn.Parameter(truncated_normal_(torch.empty(3, size), size**-0.5, rng))  # gone, open, alone
        self.z_init = nn.Buffer(truncated_normal_(torch.empty(size), 1.0, rng))
        # The symbol of each token [V, K], and those of the tokens that stand in the answer where the puzzle has them.
        symbol_of = torch.arange(spec.vocab_size).unsqueeze(1) == self.fields
        self.symbol_of = nn.Buffer(symbol_of, persistent=False)
        is_given = torch.tensor([token in spec.givens for token in range(spec.vocab_size)])
        self.given = nn.Buffer(symbol_of & is_given.unsqueeze(1), persistent=False)

    def encode(self, batch: Batch) -> Tensor:
        """The roles of all symbols and what the puzzles themselves leave possible: x [B, L, K, D]."""
        return self.look(batch.inputs, self.told(batch.inputs))

    def told(self, inputs: Tensor) -> Tensor:
        """What the puzzles [B, L] themselves leave possible: [B, L, K] bool."""
        given: Tensor = self.given[inputs]
        return given | ~given.any(2, keepdim=True)

    def look(self, inputs: Tensor, possible: Tensor) -> Tensor:
        """The roles of all symbols in puzzles [B, L] and which of them are possible [B, L, K]: x [B, L, K, D]."""
        alone = possible & (possible.sum(2, keepdim=True) == 1)
        marks = F.embedding(possible.long() + alone.long(), self.marks).to(self.dtype)
        x: Tensor = 0.5**0.5 * (self.embed(inputs) + self.scale * marks)
        return x
