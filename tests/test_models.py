"""The models that come with the package."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import loopwise
from loopwise.data import cache
from loopwise.models import shipped

EXPECTED = {"maze-hard-unhinted": 0.45} | dict.fromkeys(
    ("sudoku-extreme", "sudoku-extreme-1k", "sudoku-extreme-lattice", "sudoku-extreme-lattice-1k"), 1.0
)
"""The share of right answers that a shipped model reaches at the least, where it is not nine of ten."""


def some_puzzles(solver):
    """Test puzzles of the model's task, few where it thinks long about each."""
    task = solver.task
    if task.name == "maze":  # a thousand large mazes would take long to generate
        task = type(task)(dataclasses.replace(task.config, train=1, validation=1, test=20))
    return cache.examples(task, "test").rows(slice(10 if solver.reasoner.search else 100))


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_solves_puzzles_by_its_name(name):
    """A model that comes with loopwise loads by its name, and solves as many test puzzles of its task as it should."""
    solver = loopwise.load(name, slots=16)
    data = some_puzzles(solver)
    solutions = solver.solve([np.array(row) for row in data.inputs])
    right = [np.array_equal(s.tokens, labels) for s, labels in zip(solutions, data.labels, strict=True)]
    assert np.mean(right) >= EXPECTED.get(name, 0.9)
    assert {solution.verified for solution in solutions} <= {True, False}


def test_a_hard_puzzle_is_solved_by_name():
    """The shipped search solves a puzzle that singles and one level of trial and error do not (Inkala, 2006), and says
    so because the rules do.
    """
    puzzle = "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3.."
    solver = loopwise.load("sudoku-extreme", slots=16)
    (solution,) = solver.solve([puzzle])
    assert solution.verified
    assert solver.task.verify(solver.read(puzzle), solution.tokens)


def test_models_come_with_the_package():
    """There is at least one shipped model, each with a card and small enough to travel."""
    assert shipped()
    for folder in shipped().values():
        assert (folder / "README.md").exists()
        assert (folder / "model.safetensors").stat().st_size < 8_000_000
