"""Puzzles from the command line: a text of the arguments or of a line, or a sample; and answers as they are written."""

from __future__ import annotations

import json

import numpy as np

from loopwise.data import cache
from loopwise.errors import ConfigError, PuzzleError
from loopwise.solving.solver import Solver
from loopwise.types import Json

__all__ = ["read_line", "sample", "symbols"]


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
