"""Mazes: mark the shortest path from S to G.

Tokens: 0 padding, 1 wall `#`, 2 open, 3 `S`, 4 `G`, 5 path `o`, as in the data of HRM and TRM; V = 6. Mazes come from
files such as Maze-Hard's, or are generated of the same kind at any size.

A 30x30 maze has millions of shortest paths, so there are two ways to count. The label is one of them: walked from S, it
goes down where it can, else left, else right, else up, as all labels of Maze-Hard do. `exact` accuracy asks for that
path, as published; `verified` asks for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from loopwise.config import check
from loopwise.errors import ConfigError, PuzzleError
from loopwise.tasks.base import Inverse, Task, TaskConfig
from loopwise.tasks.maze_data import SYMBOLS, TOKENS, MazeData
from loopwise.tasks.maze_generator import MOST
from loopwise.tasks.maze_paths import (
    GOAL,
    OPEN,
    PATH,
    START,
    WALL,
    first_moves,
    flaw,
    is_solution,
    on_shortest,
    solve,
    turns,
)
from loopwise.tasks.text import HOLE, NO_SYMBOL, paint, shown
from loopwise.types import IGNORE_LABEL, Examples, Json, Split, TaskSpec, Tokens

__all__ = ["Maze", "MazeConfig"]

BLANKS = " ."

HINTS = ("down", "left", "right", "up", "unreached")
"""The moves in the order of the rule, and where the wave has not come."""


@dataclass(frozen=True, kw_only=True)
class MazeConfig(TaskConfig):
    """Options of the maze task."""

    teaching: ClassVar[tuple[str, ...]] = ("hints",)

    size: int = 30
    """Rows, and columns, of a maze: 3 to 64."""
    min_moves: int | None = None
    """Fewest moves of a generated maze's shortest path. None: 109 at 30x30, as published; elsewhere about as rare."""
    train: int | None = None
    """Training mazes. None: 1,000 are generated, 10,000 up to 15x15; of a file, all that are left."""
    validation: int | None = None
    """Validation mazes. None: 200 are generated, 500 up to 15x15; a tenth of a training file, 500 at most."""
    test: int | None = None
    """Test mazes. None: 1,000 are generated; of a file, all."""
    train_file: str = ""
    """Mazes to train and validate on: .npz with inputs,labels or CSV (.gz too) with question,answer; else generated."""
    test_file: str = ""
    """Mazes to test on: .npz with inputs,labels or CSV (.gz too) with question,answer; else generated."""
    hints: int = 0
    """Cells that a wave from G comes further with each supervision step. Beside the path, training is then told the
    first move to G from all cells that the wave has reached, and of the others that it has not. A convolution cannot
    follow one that is faster than a cell an update.
    """
    seed: int = 0
    """Seed of the generator and of the choice of what is held out."""

    def __post_init__(self) -> None:
        check(self)
        if not 3 <= self.size <= MOST:
            raise ConfigError(f"maze: size is {self.size}, must be 3 to {MOST}")
        for option, least in (
            ("min_moves", 1),
            ("train", 1),
            ("validation", 0),
            ("test", 0),
            ("hints", 0),
            ("seed", 0),
        ):
            value = getattr(self, option)
            if value is not None and value < least:
                raise ConfigError(f"maze: {option} is {value}, must be at least {least}")

    @property
    def least(self) -> int:
        """`min_moves`, or its default for the size, by which long ways are about as rare at any size as 109 at 30x30.

        From 10x10 to 60x60 one pair of open cells in 10,000 to 50,000 is so far apart.
        """
        scale = self.size / 30
        return round(109 * min(scale, scale**1.2)) if self.min_moves is None else self.min_moves


class Maze(Task[MazeConfig]):
    """Mark the shortest path from S to G; where there are several, the label goes down, else left, right, up."""

    name: ClassVar[str] = "maze"
    Config: ClassVar[type[TaskConfig]] = MazeConfig

    def __init__(self, config: MazeConfig) -> None:
        super().__init__(config)
        counts: dict[Split, int | None] = {"train": config.train, "validation": config.validation, "test": config.test}
        self._data = MazeData(config.size, config.least, counts, config.train_file, config.test_file, config.seed)

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are given."""
        return tuple(file for file in (self.config.train_file, self.config.test_file) if file)

    @cached_property
    def spec(self) -> TaskSpec:
        """V = 6 tokens on n x n cells."""
        shape = self.config.size, self.config.size
        hints = HINTS if self.config.hints else ()
        return TaskSpec(vocab_size=len(SYMBOLS) + 1, shape=shape, symbols=("", *SYMBOLS), hints=hints)

    def examples(self, split: Split) -> Examples:
        """All mazes of a split; no two splits share one under rotation, reflection and exchange of S and G."""
        inputs = self._data.split(split).astype(np.int32)
        labels = np.array([solve(maze) for maze in inputs], dtype=np.int32).reshape(inputs.shape)
        return Examples(inputs, labels, np.zeros(len(inputs), dtype=np.int32))

    def summary(self) -> str:
        """What it is, and what the training file has in common with the test split."""
        return "\n".join([super().summary(), *self._data.remarks()])

    def augment(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, Inverse]:
        """Rotate or reflect the maze and solve it anew, for the rule of the label knows up from down.

        So `inverse`, which only turns back, takes the new label to a shortest path, but not always to that of `labels`.
        """
        cells = turns(self.config.size)[rng.integers(8)]
        new_inputs, new_labels = inputs[cells], labels[cells]
        asked = new_labels != IGNORE_LABEL
        if asked.any():
            new_labels = np.where(asked, solve(new_inputs), IGNORE_LABEL)

        def inverse(answer: Tokens) -> Tokens:
            original = np.empty_like(answer)
            original[cells] = answer
            return original

        return new_inputs, new_labels, inverse

    def hints(self, inputs: Tokens, steps: int) -> Tokens:
        """The first move from each cell on the path that the rule takes from there to G, if a wave has reached it."""
        moves = first_moves(inputs, self.config.hints * steps)
        return np.where(moves < 0, IGNORE_LABEL, moves).astype(np.int32)

    def known(self, inputs: Tokens, labels: Tokens, steps: int) -> Tokens:
        """With hints, the path as far as the wave has come back along it from S; the labels without."""
        if not self.config.hints:
            return labels
        return np.where(labels == IGNORE_LABEL, labels, solve(inputs, self.config.hints * steps)).astype(np.int32)

    def verify(self, inputs: Tokens, answer: Tokens) -> bool:
        """Whether `answer` [L] is the maze with exactly one shortest path marked, whichever."""
        return is_solution(inputs, answer)

    def violations(self, inputs: Tokens, answer: Tokens) -> list[int]:
        """Cells that the maze has otherwise, and marked ones through which no shortest path leads."""
        return [int(cell) for cell in np.flatnonzero(self._wrong(inputs, answer))]

    def parse(self, value: Json) -> Tokens:
        """Read a maze [L] from a string, a list of symbols or a list of rows, each of these a string or a list.

        A string has all symbols in a row or a line for each row. `#` is a wall, ` ` or `.` is open, `o` a marked path.
        """
        tokens = np.array([self._token(symbol, at) for at, symbol in enumerate(self._symbols(value))], dtype=np.int32)
        reason = flaw(tokens)
        if reason is not None:
            raise PuzzleError(f"the maze cannot be solved: {reason}")
        return tokens

    def format(self, answer: Tokens, like: Json) -> Json:
        """Write an answer [L] in the form of `like`, line breaks and the way to write open cells included."""
        self.parse(like)
        blank = BLANKS[0] if any(" " in row for row in like) else BLANKS[1]
        tokens = iter(answer.tolist())

        def symbol(old: str) -> str:
            token = next(tokens)
            if token == OPEN:
                return old if old in BLANKS else blank
            return SYMBOLS[token - 1] if token else NO_SYMBOL

        if isinstance(like, str):
            return "".join(old if old in "\r\n" else symbol(old) for old in like)
        return ["".join(map(symbol, row)) if isinstance(row, str) else [symbol(old) for old in row] for row in like]

    def render(self, answer: Tokens, puzzle: Tokens | None = None, previous: Tokens | None = None) -> str:
        """Draw a maze: walls dim, S and G bold, path cyan; on red what is wrong, on green what is new.

        Wrong is a cell that the puzzle has otherwise, and a marked one through which no shortest path leads.
        """
        wrong = changed = np.zeros(len(answer), dtype=np.bool_)
        if puzzle is not None:
            wrong = self._wrong(puzzle, answer)
        if previous is not None:
            changed = answer != previous
        styles = {WALL: "dim", START: "bold", GOAL: "bold", PATH: "cyan"}
        pieces: list[tuple[str, str]] = []
        for cell, token in enumerate(answer.tolist()):
            style = [styles.get(token, ""), "on red" if wrong[cell] else "on green" if changed[cell] else ""]
            if cell and cell % self.config.size == 0:
                pieces.append(("\n", ""))
            pieces.append((SYMBOLS[token - 1] if token else HOLE, " ".join(filter(None, style))))
        return paint(pieces)

    def _wrong(self, inputs: Tokens, answer: Tokens) -> npt.NDArray[np.bool_]:
        """Cells [L] that the maze has otherwise, and marked ones through which no shortest path leads."""
        return np.where(answer == PATH, ~on_shortest(inputs), answer != inputs)

    def _symbols(self, value: Json) -> Sequence[Any]:
        """The n * n symbols of a maze that somebody has written, whatever they are."""
        n = self.config.size
        if isinstance(value, str):
            value = value.replace("\r\n", "\n").strip("\n").split("\n")
            if len(value) == 1:
                value = value[0]
        if not isinstance(value, str | list | tuple):
            raise PuzzleError(f"{shown(value)} is no maze; write a string, or a list of {n} rows")
        if isinstance(value, str) or all(isinstance(symbol, str) and len(symbol) == 1 for symbol in value):
            if len(value) != n * n:
                raise PuzzleError(
                    f"the maze has {len(value)} cells; it must have {n} rows of {n}, in a file all in one line, or "
                    "`size` be another (`--task.size`)"
                )
            return value
        if len(value) != n:
            raise PuzzleError(f"the maze has {len(value)} rows; it must have {n}, or `size` be another")
        for at, row in enumerate(value, start=1):
            if not isinstance(row, str | list | tuple):
                raise PuzzleError(f"row {at} is {shown(row)}; write a string or a list of {n} symbols")
            if len(row) != n:
                raise PuzzleError(f"row {at} has {len(row)} cells, it must have {n}; write . for open cells at its end")
        return [symbol for row in value for symbol in row]

    def _token(self, symbol: Any, at: int) -> int:
        token = TOKENS.get(symbol) if isinstance(symbol, str) else None
        if token is None:
            row, column = at // self.config.size + 1, at % self.config.size + 1
            known = "write # for a wall, a space or . for an open cell, S and G"
            raise PuzzleError(f"unknown symbol {shown(symbol)} in row {row}, column {column}: {known}")
        return token
