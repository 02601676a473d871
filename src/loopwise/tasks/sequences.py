"""What tasks on rows of numbers share: reading, writing, drawing, and splits that no symmetry can mix.

A puzzle is a row of numbers 0 to `values - 1`, its answer another row of the same length that `solve` computes.
Number k is token k + 1, token 0 is padding.

Splits are drawn at random, endlessly if need be. To which split a puzzle may belong is a property of the puzzle
itself: the hash of its orbit (the puzzle and all its disguises under `augment`) picks one of ten buckets, one is for
testing, one for validation, eight are for training. So a test set is disjoint from every training set, also from
one with another size or seed: `--task.test 5000` at evaluation cannot ask for what was trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from loopwise.config import check
from loopwise.errors import ConfigError, PuzzleError
from loopwise.tasks.base import Task, TaskConfig
from loopwise.tasks.text import HOLE, items_of, join_items, paint, shown
from loopwise.types import IGNORE_LABEL, SPLITS, Examples, Json, Split, TaskSpec, Tokens

__all__ = ["Keys", "NumberTask", "NumberTaskConfig", "Numbers", "draw_distinct", "hash_rows"]

Numbers: TypeAlias = npt.NDArray[np.int64]
"""The numbers themselves, not tokens."""

Keys: TypeAlias = npt.NDArray[np.uint64]
"""Hashes, one a puzzle."""

CHUNK = 16_384  # rows a round; a constant, so that a larger set begins with the smaller one
BUCKETS = 10
TEST_BUCKET, VALIDATION_BUCKET, *TRAIN_BUCKETS = range(BUCKETS)


@dataclass(frozen=True, kw_only=True)
class NumberTaskConfig(TaskConfig):
    """The options that tasks on rows of numbers share."""

    train: int = 50_000
    """Training puzzles, no two alike under the task's symmetry."""
    validation: int = 500
    """Validation puzzles."""
    test: int = 1000
    """Test puzzles."""
    seed: int = 0
    """Which puzzles are drawn. No seed brings a test puzzle into training."""


C = TypeVar("C", bound=NumberTaskConfig)


class NumberTask(Task[C]):
    """A task from a row of numbers to a row of the same length, of any length.

    A subclass says what the answer is (`solve`), which puzzles count as the same (`orbits`), and how to draw a
    disguise (`augment`). `length_option` and `values_option` are the names of its options, for messages.
    """

    length_option: ClassVar[str]
    values_option: ClassVar[str]

    def __init__(self, config: C) -> None:
        super().__init__(config)
        check(config)
        self.length: int = getattr(config, self.length_option)
        self.values: int = getattr(config, self.values_option)
        lowest = {self.length_option: 1, self.values_option: 2, "train": 1, "validation": 1, "test": 1, "seed": 0}
        for option, least in lowest.items():
            if getattr(config, option) < least:
                raise ConfigError(f"--task.{option} is {getattr(config, option)}; it must be {least} or more")

    @staticmethod
    @abstractmethod
    def solve(numbers: Numbers, values: int) -> Numbers:
        """The answers [..., n] to rows of numbers [..., n] below `values`."""

    @abstractmethod
    def orbits(self, numbers: Numbers) -> Keys:
        """A hash [N] of each row [N, n] that all its disguises share."""

    @property
    def spec(self) -> TaskSpec:
        """Padding and the numbers; puzzles of another length make sense."""
        symbols = ("", *map(str, range(self.values)))
        return TaskSpec(vocab_size=len(symbols), shape=(self.length,), symbols=symbols, any_length=True)

    def examples(self, split: Split) -> Examples:
        """Distinct puzzles of the split: inputs, labels [N, n]."""
        rng = np.random.default_rng([self.config.seed, SPLITS.index(split), self.length, self.values])
        count: int = getattr(self.config, split)

        def draw(rows: int) -> Numbers:
            return rng.integers(0, self.values, size=(rows, self.length))

        numbers = draw_distinct(draw, self.orbits, count, split)
        if len(numbers) < count:
            raise ConfigError(
                f"only {len(numbers)} different puzzles were found for the {count} of --task.{split}: lower it, or "
                f"raise --task.{self.length_option} or --task.{self.values_option}"
            )
        labels = self.solve(numbers, self.values)
        return Examples((numbers + 1).astype(np.int32), (labels + 1).astype(np.int32), np.zeros(count, np.int32))

    def first(self, count: int, inputs: Tokens) -> tuple[Tokens, Tokens]:
        """The puzzle [L] of the first `count` numbers of a puzzle [L], padded behind, and its labels [L]."""
        kept = np.where(np.arange(len(inputs)) < count, inputs, 0).astype(np.int32)
        return kept, np.where(kept > 0, self.solution(kept), IGNORE_LABEL).astype(np.int32)

    def solution(self, inputs: Tokens) -> Tokens:
        """The only right answer [L] to a puzzle [L], whose padding, if any, stays padding."""
        answer = np.zeros_like(inputs)
        given = inputs > 0
        answer[given] = self.solve(inputs[given].astype(np.int64) - 1, self.values) + 1
        return answer

    def verify(self, inputs: Tokens, answer: Tokens) -> bool:
        """Whether the answer [L] is the one that the rule gives."""
        return bool(np.array_equal(self.solution(inputs), answer))

    def violations(self, inputs: Tokens, answer: Tokens) -> list[int]:
        """Positions where the answer [L] is not the one that the rule gives."""
        return [int(position) for position in np.flatnonzero(self.solution(inputs) != answer)]

    def parse(self, value: Json) -> Tokens:
        """Read `3 1 2`, `3,1,2`, `[3, 1, 2]` or a list, of any length, into tokens [n]."""
        example = "write numbers such as 1 0 1 or [1, 0, 1]"
        if isinstance(value, str):
            value = items_of(value)
        if not isinstance(value, list):
            raise PuzzleError(f"{shown(value)} is no row of numbers; {example}")
        if not value:
            raise PuzzleError(f"the puzzle is empty; {example}")
        tokens = []
        for position, item in enumerate(value, start=1):
            token = self._token(item)
            if token is None:
                known = f"the numbers 0 to {self.values - 1} are known"
                raise PuzzleError(f"{shown(item)} at position {position} is no number of this task; {known}")
            tokens.append(token)
        return np.array(tokens, np.int32)

    def _token(self, item: Json) -> int | None:
        if isinstance(item, str):
            item = int(item) if item.isascii() and item.isdigit() and len(item) <= len(str(self.values)) else None
        if not isinstance(item, int) or isinstance(item, bool):
            return None
        return item + 1 if 0 <= item < self.values else None

    def format(self, answer: Tokens, like: Json) -> Json:
        """Write an answer [n] as a text or as a list, of numbers or of strings; padding in it is `?` or null."""
        numbers = [int(token) - 1 if token > 0 else None for token in answer]
        if isinstance(like, str):
            return join_items(numbers, like)
        if isinstance(like, list) and like and all(isinstance(item, str) for item in like):
            return [None if number is None else str(number) for number in numbers]
        return numbers

    def render(self, answer: Tokens, puzzle: Tokens | None = None, previous: Tokens | None = None) -> str:
        """One line of aligned numbers [n]: green where changed since `previous`, red where wrong for `puzzle`."""
        width = len(str(self.values - 1))
        changed = np.zeros(len(answer), bool) if previous is None else answer != previous
        wrong = np.zeros(len(answer), bool) if puzzle is None else answer != self.solution(puzzle)
        styles = {(True, False): "green", (False, True): "red", (True, True): "bold red"}
        pieces: list[tuple[str, str]] = []
        for token, *marks in zip(answer, changed, wrong, strict=True):
            text = str(token - 1) if token > 0 else HOLE
            pieces += [(" ", ""), (text.rjust(width), styles.get((bool(marks[0]), bool(marks[1])), ""))]
        return paint(pieces[1:])


def hash_rows(rows: npt.NDArray[Any]) -> Keys:
    """Hash each row [N, n] of whole numbers to 64 bits (the finalizer of splitmix64, folded along the row)."""
    keys = np.full(len(rows), rows.shape[1], np.uint64)
    for column in rows.T.astype(np.uint64):
        keys = (keys ^ column) + np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return keys


def draw_distinct(
    draw: Callable[[int], Numbers], orbits: Callable[[Numbers], Keys], count: int, split: Split
) -> Numbers:
    """Draw rows until `count` of different orbits belong to the split; fewer [<= count, n] where no more are found."""
    kept: list[Numbers] = []
    seen = np.empty(0, np.uint64)
    for _ in range(20 + 40 * count // CHUNK):  # several times what a puzzle with room enough takes
        rows = draw(CHUNK)
        keys, first = np.unique(orbits(rows), return_index=True)
        fresh = _in_split(keys, split) & ~np.isin(keys, seen)
        if fresh.any():
            kept.append(rows[np.sort(first[fresh])])
            seen = np.concatenate([seen, keys[fresh]])
        if len(seen) >= count:
            break
    return np.concatenate(kept)[:count] if kept else draw(0)


def _in_split(keys: Keys, split: Split) -> npt.NDArray[np.bool_]:
    buckets = keys % np.uint64(BUCKETS)
    chosen = {"test": [TEST_BUCKET], "validation": [VALIDATION_BUCKET]}
    return np.isin(buckets, chosen.get(split, TRAIN_BUCKETS))
