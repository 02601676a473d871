"""An endless stream of augmented training examples that can be continued exactly where it was left.

Each epoch is a random order of all examples, fixed by (seed, epoch); rank r of w takes every w-th of it. Augmentation
draws from a generator of the rank's own, whose state is part of the position.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loopwise.errors import DataError
from loopwise.tasks.base import Task
from loopwise.types import Examples, Json

__all__ = ["Stream"]


class Stream:
    """Takes examples one after the other, shuffled and augmented."""

    def __init__(
        self,
        task: Task[Any],
        data: Examples,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        augment: bool = True,
        shorten: bool = True,
    ) -> None:
        if len(data.inputs) < world:
            raise DataError(f"{len(data.inputs)} training examples are too few for {world} processes; add data")
        self.task = task
        self.data = data
        self.seed = seed
        self.rank = rank
        self.world = world
        self.augment = augment
        self.shorten = shorten
        self.epoch = 0
        self.position = 0
        self.rng = np.random.Generator(np.random.PCG64([seed, rank, 1]))
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        rng = np.random.Generator(np.random.PCG64([self.seed, self.epoch, 2]))
        return rng.permutation(len(self.data.inputs))[self.rank :: self.world]

    def take(self, count: int) -> Examples:
        """The next `count` examples."""
        index = np.empty(count, dtype=np.int64)
        for i in range(count):
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            index[i] = self._order[self.position]
            self.position += 1
        rows = self.data.rows(index)
        inputs, labels = np.array(rows.inputs), np.array(rows.labels)
        for i in range(count):
            if self.augment:
                inputs[i], labels[i], _ = self.task.augment(inputs[i], labels[i], self.rng)
            if self.shorten:
                inputs[i], labels[i] = self.task.shorten(inputs[i], labels[i], self.rng)
        return Examples(inputs, labels, np.asarray(rows.puzzle_ids))

    def state_dict(self) -> dict[str, Json]:
        """The position, as JSON."""
        return {"epoch": self.epoch, "position": self.position, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Json]) -> None:
        """Continue from a position that `state_dict` gave."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.rng.bit_generator.state = state["rng"]
        self._order = self._shuffled()
