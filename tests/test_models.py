"""The models that come with the package."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import loopwise
from loopwise.data import cache
from loopwise.evaluation import evaluate
from loopwise.models import shipped


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_solves_puzzles_by_its_name(name):
    """A model that comes with loopwise loads by its name, and solves at least nine of ten test puzzles of its task."""
    solver = loopwise.load(name)
    data = cache.examples(solver.task, "test").rows(slice(100))
    scores = evaluate(dataclasses.replace(solver.model), data)
    assert scores.exact[-1] >= 90
    solution = solver.solve([np.array(data.inputs[0])])[0]
    assert solution.verified is not None


def test_models_come_with_the_package():
    """There is at least one shipped model, each with a card and small enough to travel."""
    assert shipped()
    for folder in shipped().values():
        assert (folder / "README.md").exists()
        assert (folder / "model.safetensors").stat().st_size < 8_000_000
