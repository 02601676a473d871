"""Puzzles from the command line: one in the arguments, a line each in a file or on the standard input, or a sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np

from loopwise.data import cache
from loopwise.errors import ConfigError, DataError, PuzzleError
from loopwise.solving.solver import Solver
from loopwise.types import Json

__all__ = ["lines", "read_line", "sample", "symbols"]


def lines(puzzle: str | None, file: str) -> Iterator[str]:
    """The lines of the puzzle, of the file or of the standard input; empty ones are passed over."""
    if puzzle is not None and puzzle != "-":
        yield puzzle
        return
    try:
        with open(file, encoding="utf-8-sig") if file else sys.stdin as source:
            yield from (line.rstrip("\r\n") for line in source if line.strip())
    except FileNotFoundError:
        raise DataError(f"there is no file {file}; give a file of one puzzle a line") from None
    except (ValueError, IsADirectoryError) as error:
        raise DataError(f"{file or 'the standard input'} cannot be read as text ({error})") from None


def read_line(line: str) -> Json:
    """The puzzle of a line: the `input` of a JSON object (an error in its place if there is none), else the value."""
    value = _read_value(line)
    if isinstance(value, dict):
        return value.get("input", PuzzleError('the record has no "input"; write {"input": ...}'))
    return value


def _read_value(text: str) -> Json:
    """JSON where the text is a list, an object or a string in quotes, else the text itself."""
    if text.lstrip()[:1] in {"[", "{", '"'}:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def sample(solver: Solver, number: int) -> Json:
    """A puzzle of the test split, as tokens [L]."""
    data = cache.examples(solver.task, "test")
    if not 0 <= number < len(data.inputs):
        raise ConfigError(f"--sample {number} is not there: the test split has {len(data.inputs)} puzzles, from 0")
    return np.array(data.inputs[number])


def symbols(solver: Solver, answer: Json) -> Json:
    """The answer in the form of the puzzle; a sample came as tokens, and goes as a list of symbols."""
    if isinstance(answer, np.ndarray):
        return [solver.task.spec.symbols[token] for token in answer]
    return answer
