"""The values that travel between the parts. Importing this module does not import torch.

Shape letters, used in every signature:

    B  slots (rows of a batch)           L  positions of a puzzle
    N  puzzles of a data set             S  positions with the registers in front, S = R + L
    D  hidden size                       V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IGNORE_LABEL",
    "SPLITS",
    "Batch",
    "Examples",
    "Json",
    "Prediction",
    "Split",
    "TaskSpec",
    "Tokens",
]

IGNORE_LABEL = -100
"""The label of a position that is not asked for: no loss, no share in accuracy."""

Json: TypeAlias = Any
"""A value that the json module reads and writes."""

Tokens: TypeAlias = npt.NDArray[np.int32]
"""Token ids, int32."""

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Examples(NamedTuple):
    """A data set, or a part of it, as arrays."""

    inputs: Tokens  # [N, L]
    labels: Tokens  # [N, L], IGNORE_LABEL where nothing is asked
    puzzle_ids: Tokens  # [N], 0 where a task has no puzzle identity

    def rows(self, index: Any) -> Examples:
        """The same columns, only the rows that `index` (anything numpy takes) selects."""
        return Examples(self.inputs[index], self.labels[index], self.puzzle_ids[index])


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a reasoner must know of a task to be built for it."""

    vocab_size: int
    """Number of tokens. Token 0 is padding."""
    shape: tuple[int, ...]
    """(L,) for a sequence, (rows, columns) for a grid whose positions are numbered row by row."""
    symbols: Sequence[str]
    """How each token is written, V of them; the first, padding, is the empty string."""
    any_length: bool = False
    """Whether puzzles of another length than `length` make sense (a sequence) or not (a board)."""
    interchangeable: Sequence[int] = ()
    """Tokens that can change names with one another without changing the puzzle, such as the digits of Sudoku."""
    givens: Sequence[int] = ()
    """Tokens that, where they stand in a puzzle, stand in its answer too, such as the digits of Sudoku."""
    groups: Sequence[Sequence[int]] = ()
    """Positions that stand under one rule, such as the rows, columns and boxes of Sudoku; a task may leave them out."""
    hints: Sequence[str] = ()
    """How each hint is called that a position of a puzzle can have beside its label, to learn from (`Task.hints`)."""
    num_puzzle_ids: int = 1
    """Rows of the puzzle-embedding table. Id 0 is the blank identity."""

    @property
    def length(self) -> int:
        """L, the number of positions."""
        return int(np.prod(self.shape))

    @property
    def guessable(self) -> list[int]:
        """The tokens that a search can write into a puzzle: those that can be clues, and of which none is special."""
        return sorted(set(self.interchangeable) & set(self.givens))


class Batch(NamedTuple):
    """The puzzles that sit in the slots."""

    inputs: Tensor  # [B, L] int64
    labels: Tensor  # [B, L] int64, IGNORE_LABEL where nothing is asked or known
    puzzle_ids: Tensor  # [B] int64

    @classmethod
    def unlabelled(cls, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Batch:
        """Puzzles [B, L] whose answers nobody knows; with identity 0, the blank one, unless others are given."""
        blank = inputs.new_zeros(inputs.shape[0])
        return cls(inputs, inputs.new_full(inputs.shape, IGNORE_LABEL), blank if puzzle_ids is None else puzzle_ids)


class Prediction(NamedTuple):
    """What a reasoner says after one supervision step."""

    logits: Tensor  # [B, L, V]
    halt_logits: Tensor  # [B] float32; sigmoid is the probability that the answer is right
    continue_logits: Tensor  # [B] float32; the value of going on, which Q-learning halting trains and TRM does not
    own_loss: Tensor  # [B] float32; what the reasoner adds to the loss of the answer, nothing in most families
    hint_logits: Tensor  # [B, L, H]; of the H hints that the task gives, while the network learns, else H = 0
