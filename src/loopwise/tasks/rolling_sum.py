"""Rolling sum: answer_i = (x_1 + ... + x_i) mod m.

Each position depends on all before it; a network of fixed depth must find a parallel scan or learn to iterate.
Multiplying puzzle and answer by a unit u of Z_m (a number coprime to m) gives another puzzle and its answer, since
u (x_1 + ... + x_i) = u x_1 + ... + u x_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

import numpy as np

from loopwise.errors import ConfigError
from loopwise.tasks.base import Inverse
from loopwise.tasks.sequences import Keys, Numbers, NumberTask, NumberTaskConfig, hash_rows
from loopwise.types import Tokens

__all__ = ["RollingSum", "RollingSumConfig"]

LARGEST_MODULUS = 100  # telling splits apart takes time in proportion to the number of units


@dataclass(frozen=True, kw_only=True)
class RollingSumConfig(NumberTaskConfig):
    """Options of the rolling sum."""

    length: int = 32
    """How many numbers. Evaluation may ask for more or fewer than training."""
    modulus: int = 2
    """m; the numbers are 0 to m - 1. With 2, the answers are the parities of all prefixes, the field's prefix sums."""


class RollingSum(NumberTask[RollingSumConfig]):
    """Sum up a row of numbers, position by position, modulo m."""

    name = "rolling-sum"
    Config = RollingSumConfig
    length_option = "length"
    values_option = "modulus"

    def __init__(self, config: RollingSumConfig) -> None:
        super().__init__(config)
        if config.modulus > LARGEST_MODULUS:
            raise ConfigError(f"--task.modulus is {config.modulus}; it must be at most {LARGEST_MODULUS}")
        self.units = tuple(u for u in range(1, config.modulus) if gcd(u, config.modulus) == 1)

    @property
    def symmetric(self) -> bool:
        """Modulo 2 there is no unit but 1."""
        return len(self.units) > 1

    @staticmethod
    def solve(numbers: Numbers, values: int) -> Numbers:
        """The sums [..., n] of all prefixes of the rows [..., n], modulo `values`."""
        return np.cumsum(numbers, axis=-1) % values

    def orbits(self, numbers: Numbers) -> Keys:
        """Rows [N, n] that are multiples of each other by a unit are the same puzzle: the least hash of all."""
        keys = hash_rows(numbers)
        for unit in self.units[1:]:
            keys = np.minimum(keys, hash_rows(numbers * unit % self.values))
        return keys

    def shorten(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Keep the first numbers, often only a few; every fourth row stays whole.

        A position can be learned only when those before it are right. In a short row the first positions are all that
        counts, so they are learned first and fast; with full rows only, nothing was learned in minutes (docs/log.md).
        """
        share = (1 - rng.random()) ** 2 if rng.random() < 0.75 else 1.0
        return self.first(ceil(len(inputs) * share), inputs)

    def augment(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, Inverse]:
        """Multiply puzzle and labels [n] by a unit; the way back multiplies by its inverse modulo m."""
        unit = int(rng.choice(self.units))
        inverse = pow(unit, -1, self.values)
        return self._times(inputs, unit), self._times(labels, unit), lambda answer: self._times(answer, inverse)

    def _times(self, tokens: Tokens, unit: int) -> Tokens:
        # Padding and labels that are not asked for are no numbers, so they stay.
        return np.where(tokens > 0, (tokens - 1) * unit % self.values + 1, tokens).astype(np.int32)
