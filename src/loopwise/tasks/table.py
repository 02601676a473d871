"""Your own problem: a file of puzzles and their answers.

The file (JSON Lines, JSON, CSV or TSV, plain or gzipped) has a column of inputs and one of outputs:

    {"input": "3142", "output": "1234"}            a text, a symbol a character (or a word: `--task.tokens words`)
    {"input": [3, 1, 4], "output": [1, 3, 4]}      a list of symbols, numbers or strings
    {"input": [[1, 0], [0, 1]], "output": [[...    a grid

Vocabulary, padding and splits follow from the file. Inputs and outputs are padded to the largest value of the file, to
the right (and below, in a grid). *The padding of an answer is asked for*: its label is token 0, not "ignored", so a
model learns where an answer ends, and an answer with a symbol too many is wrong. `format` cuts the padding off. Where
answers are much shorter than the longest value, most labels are padding and token accuracy says little; `summary`
warns, exact accuracy stays honest.

Which split a row belongs to is decided by a hash of its input, not by its place in the file, unless a column `split`
says it. Repeated rows are removed before, so no puzzle of one split occurs in another.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from loopwise.errors import ConfigError, DataError
from loopwise.tasks.base import Task, TaskConfig
from loopwise.tasks.table_codec import FORMS, Codec
from loopwise.tasks.table_data import Dataset, SplitRule, build_codec, build_dataset, read_pairs
from loopwise.tasks.table_file import read_records
from loopwise.tasks.text import one_line, shown
from loopwise.types import Examples, Json, Split, TaskSpec, Tokens

__all__ = ["Table", "TableConfig"]

FEWEST_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class TableConfig(TaskConfig):
    """Options of a table."""

    file: str = ""
    """Path of the puzzles: .jsonl, .json, .csv or .tsv, also with .gz."""
    input: str = "input"
    """Name of the column with the puzzles."""
    output: str = "output"
    """Name of the column with the answers."""
    tokens: Literal["characters", "words"] = "characters"
    """What a symbol of a text is: a character, or a word between spaces."""
    validation: float = 0.05
    """Share of the rows for validation, at least one row; a column `split` in the file goes first."""
    test: float = 0.1
    """Share of the rows for the test, at least one row; a column `split` in the file goes first."""
    seed: int = 0
    """Which rows are drawn for validation and test."""
    allow_ambiguous: bool = False
    """Accept an input that occurs with different outputs; the first is kept. By default that is an error."""
    checker: str = ""
    """Your own rule, `module:function`: function(puzzle, answer) -> bool, both as in the file. Runs your code."""


class Table(Task[TableConfig]):
    """Puzzles and answers from a file."""

    name = "table"
    Config = TableConfig

    def __init__(self, config: TableConfig, codec: Codec | None = None) -> None:
        super().__init__(config)
        shares = (config.validation, config.test)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError("--task.validation and --task.test are shares: 0 or more each, 1 at most together")
        self._restored = codec

    @property
    def files(self) -> tuple[str, ...]:
        """The one that is given."""
        return (self.config.file,) if self.config.file else ()

    @property
    def foreign_rules(self) -> bool:
        """Whether there is a checker. It is imported here, where no time limit of its calls counts yet."""
        return bool(self.config.checker) and callable(self._checker)

    @property
    def spec(self) -> TaskSpec:
        """Vocabulary and shape, worked out from the file or restored from a checkpoint."""
        return self._codec.spec

    def examples(self, split: Split) -> Examples:
        """The rows of the split: inputs, labels [N, L]; padding is a label like any other."""
        data = self._data
        index = np.flatnonzero(data.splits == split)
        if not len(index):
            advice = "lower --task.validation and --task.test" if split == "train" else f"raise --task.{split}"
            raise DataError(f"{self.config.file} has no rows for the split {split}; {advice}")
        return Examples(data.inputs[index], data.labels[index], np.zeros(len(index), np.int32))

    def verify(self, inputs: Tokens, answer: Tokens) -> bool | None:
        """What the user's checker says of puzzle [L] and answer [L]; None without a checker, or if it returns None."""
        if not self.config.checker:
            return None
        cells = self._codec.cells(answer)
        if not cells[0] or any(cell is None for row in cells for cell in row):
            return False  # nothing, or padding between symbols: no value that the user's function knows
        puzzle = self._codec.native(self._codec.cells(inputs))
        checker = self._checker  # outside of the try: that it cannot be imported is another error
        try:
            verdict = checker(puzzle, self._codec.native(cells))
            return None if verdict is None else bool(verdict)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error, 120)}"
            raise DataError(f"the checker {self.config.checker} failed on {shown(puzzle)}: {reason}") from error

    def parse(self, value: Json) -> Tokens:
        """Read a puzzle [L] of the table's kind; a list or a text serves for every kind."""
        return self._codec.parse(value)

    def format(self, answer: Tokens, like: Json) -> Json:
        """Write an answer [L] in the form of `like`, without its padding."""
        return self._codec.format(answer, like)

    def render(self, answer: Tokens, puzzle: Tokens | None = None, previous: Tokens | None = None) -> str:
        """Draw an answer [L]: green where changed since `previous`, dim where the puzzle of that size says the same."""
        return self._codec.render(answer, puzzle, previous)

    def metadata(self) -> dict[str, Json]:
        """Kind, vocabulary and shape: enough to read, check and draw puzzles without the file."""
        return self._codec.metadata()

    @classmethod
    def restore(cls, config: TableConfig, metadata: dict[str, Json]) -> Table:
        """The table of a checkpoint; the file is read when `examples` are asked for, with the same tokens.

        Raises KeyError, TypeError or ValueError where the metadata is malformed.
        """
        return cls(config, Codec.restore(metadata))

    @classmethod
    def without_code(cls, config: TableConfig) -> TableConfig:
        """The config without the checker."""
        return replace(config, checker="")

    def summary(self) -> str:
        """What was found in the file and made of it, in several lines of plain text."""
        return self._data.summary()

    @property
    def _codec(self) -> Codec:
        return self._restored or self._data.codec

    @cached_property
    def _data(self) -> Dataset:
        config = self.config
        if not config.file:
            raise ConfigError(
                "the table needs a file: --task.file puzzles.jsonl, with lines "
                'such as {"input": "3142", "output": "1234"}'
            )
        records = read_records(config.file, (config.input, config.output))
        kind, pairs = read_pairs(records, config.input, config.output, config.tokens == "words")
        if self._restored and self._restored.kind != kind:
            raise DataError(f"{config.file} has {FORMS[kind]}, but the model knows {FORMS[self._restored.kind]}")
        rule = SplitRule(
            validation=config.validation,
            test=config.test,
            seed=config.seed,
            fewest=1 if self._restored else FEWEST_ROWS,  # a trained model may be tested on few
            allow_ambiguous=config.allow_ambiguous,
        )
        return build_dataset(config.file, pairs, self._restored or build_codec(kind, pairs), rule)

    @cached_property
    def _checker(self) -> Callable[[Json, Json], Any]:
        module_name, colon, function_name = self.config.checker.partition(":")
        if not (module_name and colon and function_name):
            raise ConfigError(f"--task.checker {self.config.checker!r} is not of the form module:function")
        folder = os.getcwd()  # the user's module lies where the command is typed, as with `python -m`
        sys.path.insert(0, folder)
        try:
            function: Callable[[Json, Json], Any] = getattr(importlib.import_module(module_name), function_name)
        except Exception as error:  # the module is foreign code: it may raise anything
            reason = f"{type(error).__name__}: {one_line(error, 120)}"
            raise ConfigError(f"cannot import the checker {self.config.checker!r}: {reason}") from error
        finally:
            sys.path.remove(folder)
        if not callable(function):
            raise ConfigError(f"the checker {self.config.checker!r} is not a function")
        with contextlib.suppress(ValueError):  # of some functions nobody knows what they take
            try:
                inspect.signature(function).bind("puzzle", "answer")
            except TypeError as error:
                raise ConfigError(
                    f"the checker {self.config.checker!r} must take a puzzle and an answer ({error})"
                ) from None
        return function
