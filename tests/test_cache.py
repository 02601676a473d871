"""The cache of examples: what it keeps, and when it must not."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loopwise import tasks
from loopwise.data import cache
from loopwise.errors import DataError
from loopwise.tasks.maze import Maze, MazeConfig
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.tasks.table import Table, TableConfig


def forbid(monkeypatch, cls):
    def examples(*args):
        raise AssertionError("made again")

    monkeypatch.setattr(cls, "examples", examples)


def test_what_was_made_once_is_kept(monkeypatch):
    """The second time the examples come from the disk, the same ones; another option makes others."""
    made = cache.examples(Sorting(SortingConfig(n=5, test=30)), "test")
    forbid(monkeypatch, Sorting)
    for kept, column in zip(cache.examples(Sorting(SortingConfig(n=5, test=30)), "test"), made, strict=True):
        np.testing.assert_array_equal(kept, column)
    with pytest.raises(AssertionError, match="made again"):
        cache.examples(Sorting(SortingConfig(n=5, test=31)), "test")


@pytest.mark.parametrize(
    ("task", "plain", "other"),
    [
        (Maze, MazeConfig(size=6, test=10), {"hints": 4}),
        (Sudoku, SudokuConfig(box="2x2", train=10, validation=2, test=10), {"reveal": 3}),
    ],
)
def test_options_of_teaching_leave_the_examples_as_they_are(task, plain, other, monkeypatch):
    """What training shows or tells of an example is no reason to make the examples again; they would be the same."""
    taught = task(replace(plain, **other))
    assert taught.config.teaching == tuple(other)
    made, again = cache.examples(task(plain), "test"), taught.examples("test")
    forbid(monkeypatch, task)
    for kept, column, fresh in zip(cache.examples(taught, "test"), made, again, strict=True):
        np.testing.assert_array_equal(kept, column)
        np.testing.assert_array_equal(fresh, column)


def test_data_of_the_package_that_has_changed_is_read_again(tmp_path, monkeypatch):
    """What was made of a file that travels with the tasks is made again when another release has another file."""
    package = tmp_path / "tasks"
    shutil.copytree(Path(tasks.__file__).parent, package)
    monkeypatch.setattr(tasks, "__file__", str(package / "__init__.py"))
    cache._source.cache_clear()
    task = Sudoku(SudokuConfig(box="2x2", train=10, validation=2, test=10))
    cache.examples(task, "test")
    with monkeypatch.context() as patch:
        forbid(patch, Sudoku)
        cache.examples(task, "test")
        next((package / "assets").glob("*.csv")).write_text("question,answer\n", encoding="utf-8")
        cache._source.cache_clear()
        with pytest.raises(AssertionError, match="made again"):
            cache.examples(task, "test")
    cache._source.cache_clear()


def test_a_file_that_has_changed_is_read_again(tmp_path, monkeypatch):
    """Rows of a file are kept until it holds others, however alike, even if it kept its place, size and time; written
    again as it was, it is the same file. When it is gone, the task says so.
    """
    file = tmp_path / "rows.jsonl"

    def write(last, time=10**18):
        rows = [{"input": f"{number:05b}", "output": f"{number:05b}"[::-1] + last} for number in range(32)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.utime(file, ns=(time, time))

    config = TableConfig(file=str(file))
    write("0")
    first = cache.examples(Table(config), "train")
    write("1")
    second = cache.examples(Table(config), "train")
    assert (first.labels != second.labels).any()
    write("1", 10**18 + 10**9)
    with monkeypatch.context() as patch:
        forbid(patch, Table)
        np.testing.assert_array_equal(cache.examples(Table(config), "train").labels, second.labels)
    file.unlink()
    with pytest.raises(DataError, match="no such file"):
        cache.examples(Table(config), "train")
