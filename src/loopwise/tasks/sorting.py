"""Sorting: put n numbers in order, smallest first, repeats allowed.

A row of numbers and the same numbers in another order have the same answer, so training never runs out of
puzzles: `augment` shuffles the row. Splits are told apart by which numbers there are, not by their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loopwise.tasks.base import Inverse, identity
from loopwise.tasks.sequences import Keys, Numbers, NumberTask, NumberTaskConfig, hash_rows
from loopwise.types import Tokens

__all__ = ["Sorting", "SortingConfig"]


@dataclass(frozen=True, kw_only=True)
class SortingConfig(NumberTaskConfig):
    """Options of the sorting task."""

    n: int = 16
    """How many numbers. Evaluation may ask for more or fewer than training."""
    values: int = 10
    """The numbers are 0 to values - 1; with fewer values than numbers, some repeat."""


class Sorting(NumberTask[SortingConfig]):
    """Put numbers in order."""

    name = "sorting"
    Config = SortingConfig
    length_option = "n"
    values_option = "values"

    @staticmethod
    def solve(numbers: Numbers, values: int) -> Numbers:
        """The rows [..., n], each in ascending order."""
        return np.sort(numbers, axis=-1)

    def orbits(self, numbers: Numbers) -> Keys:
        """Rows [N, n] with the same numbers are the same puzzle."""
        return hash_rows(np.sort(numbers, axis=1))

    def augment(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, Inverse]:
        """Shuffle the numbers [n]; the answer is the same."""
        return rng.permutation(inputs), labels, identity

    def shorten(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Keep the first numbers, in every second row any count of them: the network shall not rely on one length."""
        return self.first(int(rng.integers(1, len(inputs) + 1)) if rng.random() < 0.5 else len(inputs), inputs)
