"""A reasoner and a task that do as they are told by the puzzle, to test the solver with."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from loopwise.checkpoint import Model
from loopwise.errors import PuzzleError
from loopwise.reasoners.base import Reasoner, ReasonerConfig, Recursion
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.tasks.base import Task, TaskConfig
from loopwise.types import Prediction, TaskSpec

VOCABULARY = 32
POISON = VOCABULARY - 1
"""At the second position: the network's numbers are no longer finite after the second step."""


class CountState(NamedTuple):
    count: torch.Tensor  # [B, 1]
    life: torch.Tensor  # [B, 1] int64
    other: torch.Tensor  # [B, L], always zero


class Counting(Reasoner[ReasonerConfig]):
    """Counts the steps in its state up to the first number of the puzzle, then it is sure and stands still.

    The answer is the count at every position, so the rules accept it (`Rows`) from then on.
    """

    name = "counting"
    Config = ReasonerConfig

    def __init__(self, spec):
        super().__init__(ReasonerConfig(), spec)
        self.unused = nn.Parameter(torch.zeros(1))
        self.sure = 5.0

    def encode(self, batch):
        second = batch.inputs[:, min(1, batch.inputs.shape[1] - 1)]
        return torch.stack([batch.inputs[:, 0], second], dim=1)

    def init_state(self, batch_size, length):
        zero = torch.zeros(1, 1)
        return CountState(
            zero.expand(batch_size, 1), zero.long().expand(batch_size, 1), zero.expand(batch_size, length)
        )

    def recursion(self, x):
        life, second = x.split(1, dim=1)

        def count(state):
            following = torch.minimum(state.count + 1, life)
            poisoned = (second == POISON) & (state.count >= 1)
            return CountState(torch.where(poisoned, torch.nan, following), life, state.other)

        return Recursion((count,), 1)

    def readout(self, state):
        count = state.count.nan_to_num().round().long().clamp(0, VOCABULARY - 1)
        logits = nn.functional.one_hot(count, VOCABULARY).float().expand(-1, state.other.shape[1], -1)
        logits = torch.where(state.count.isnan().unsqueeze(2), torch.nan, logits)
        halt = torch.where(state.count >= state.life, self.sure, -5.0)[:, 0]
        return Prediction(logits, halt, halt, torch.zeros_like(halt), logits[..., :0])

    def accepts(self, length):
        return length >= 1


@dataclass(frozen=True, kw_only=True)
class RowsConfig(TaskConfig):
    """No options."""


class Rows(Task[RowsConfig]):
    """Rows of tokens; right is the first number everywhere. Like any task outside loopwise it is foreign code."""

    name = "rows"
    Config = RowsConfig

    @property
    def spec(self):
        return TaskSpec(
            vocab_size=VOCABULARY, shape=(3,), symbols=("", *map(str, range(1, VOCABULARY))), any_length=True
        )

    def examples(self, split):
        raise NotImplementedError

    def verify(self, inputs, answer):
        return bool((answer == inputs[0]).all())

    def parse(self, value):
        if not isinstance(value, list) or not value or not all(0 < token < VOCABULARY for token in value):
            raise PuzzleError(f"{value!r} is no row")
        return np.array(value, np.int32)

    def format(self, answer, like):
        return answer.tolist()

    def render(self, answer, puzzle=None, previous=None):
        return str(answer)


class TrustedRows(Rows):
    """The same, as if it came with loopwise."""

    @property
    def foreign_rules(self):
        return False


def counting_model(task=None, max_steps=8):
    """A model that counts."""
    task = task or TrustedRows(RowsConfig())
    halting = Correctness(HaltingConfig(max_steps=max_steps))
    return Model(task=task, reasoner=Counting(task.spec).eval(), gradient=LastCycle(), halting=halting)


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now
