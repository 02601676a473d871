"""The tasks on rows of numbers, sorting and rolling sum, and the text helpers that all tasks share."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from loopwise.errors import ConfigError, PuzzleError
from loopwise.tasks.rolling_sum import RollingSum, RollingSumConfig
from loopwise.tasks.sequences import hash_rows
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.tasks.text import items_of, join_items, paint, shown
from loopwise.types import IGNORE_LABEL

SORTING = Sorting(SortingConfig(n=8, train=300, validation=40, test=60))
ROLLING = RollingSum(RollingSumConfig(length=8, modulus=12, train=300, validation=40, test=60))


def tokens(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32) + 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_sorting_labels(split):
    """The label of a sorting puzzle is Python's own sorted() of it."""
    examples = SORTING.examples(split)
    assert [sorted(row) for row in examples.inputs.tolist()] == examples.labels.tolist()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rolling_sum_labels(split):
    """Position i of a rolling sum is the sum of the first i numbers modulo m, added up one by one."""
    examples = ROLLING.examples(split)
    for inputs, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        total = 0
        for x, y in zip(inputs, labels, strict=True):
            total = (total + x - 1) % 12
            assert y == total + 1


def test_sorting_verify():
    """Only the sorted permutation of the puzzle verifies: not an unsorted one, not other numbers, not padding."""
    puzzle = tokens(3, 1, 2, 1)
    answers = [row for row in product(range(4), repeat=4) if SORTING.verify(puzzle, tokens(*row))]
    assert answers == [(1, 1, 2, 3)]
    assert not SORTING.verify(puzzle, tokens(1, 1, 2))
    assert not SORTING.verify(puzzle, tokens(1, 1, 2, 3, -1))
    assert SORTING.verify(np.append(puzzle, 0), tokens(1, 1, 2, 3, -1))


def test_rolling_sum_verify():
    """Only the rolling sum itself verifies."""
    task = RollingSum(RollingSumConfig(length=3, modulus=3))
    assert [row for row in product(range(3), repeat=3) if task.verify(tokens(2, 2, 1), tokens(*row))] == [(2, 1, 2)]


@pytest.mark.parametrize("task", [SORTING, ROLLING])
def test_split_belongs_to_the_puzzle(task):
    """No test puzzle, of any seed or number, is a disguise of a training puzzle of any other seed or number."""
    config = task.config
    train = task.examples("train").inputs
    for other in (replace(config, seed=1), replace(config, test=500, validation=500), replace(config, train=10)):
        for split in ("validation", "test"):
            held_out = type(task)(other).examples(split).inputs
            assert not set(orbits_by_hand(task, train)) & set(orbits_by_hand(task, held_out))


def orbits_by_hand(task, inputs):
    if task is SORTING:
        return [tuple(sorted(row)) for row in inputs.tolist()]
    return [min(tuple((x - 1) * u % 12 for x in row) for u in (1, 5, 7, 11)) for row in inputs.tolist()]


@pytest.mark.parametrize("task", [SORTING, ROLLING])
def test_larger_split_begins_with_the_smaller(task):
    """Asking for more puzzles keeps those that were there, and leaves the other splits alone."""
    larger = type(task)(replace(task.config, train=500))
    np.testing.assert_array_equal(larger.examples("train").inputs[:300], task.examples("train").inputs)
    np.testing.assert_array_equal(larger.examples("test").inputs, task.examples("test").inputs)


@pytest.mark.parametrize("task", [SORTING, ROLLING])
def test_no_two_alike_within_a_split(task):
    """All puzzles of a split differ by more than a symmetry."""
    orbits = orbits_by_hand(task, task.examples("train").inputs)
    assert len(set(orbits)) == len(orbits) == 300


def test_longer_at_evaluation():
    """Evaluating at another length keeps the vocabulary and changes the length alone."""
    longer = Sorting(replace(SORTING.config, n=24))
    assert longer.spec.symbols == SORTING.spec.symbols
    assert longer.examples("test").inputs.shape == (60, 24)


def test_too_few_puzzles():
    """Options that leave too few different puzzles say how many there are and what to change."""
    with pytest.raises(ConfigError, match=r"only \d+ different puzzles .* --task\.train: lower it, or raise --task\.n"):
        Sorting(SortingConfig(n=3, values=3)).examples("train")
    with pytest.raises(ConfigError, match=r"--task\.test: lower it, or raise --task\.length or --task\.modulus"):
        RollingSum(RollingSumConfig(length=2, modulus=2)).examples("test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sorting(SortingConfig(n=0)), "--task.n is 0; it must be 1 or more"),
        (lambda: Sorting(SortingConfig(values=1)), "--task.values is 1; it must be 2 or more"),
        (lambda: Sorting(SortingConfig(test=0)), "--task.test is 0; it must be 1 or more"),
        (lambda: Sorting(SortingConfig(seed=-1)), "--task.seed is -1; it must be 0 or more"),
        (lambda: RollingSum(RollingSumConfig(modulus=101)), "--task.modulus is 101; it must be at most 100"),
    ],
)
def test_senseless_options(make, message):
    """Options out of range are refused when the task is made."""
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("modulus", [2, 3, 10, 12])
def test_rolling_sum_units(modulus):
    """Every unit of Z_m is drawn, and each turns the rolling sums of a puzzle into those of the multiplied one."""
    task = RollingSum(RollingSumConfig(length=4, modulus=modulus))
    inputs = tokens(1, 0, modulus - 1, 1)
    labels = task.solution(inputs)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        new_inputs, new_labels, inverse = task.augment(inputs, labels, rng)
        np.testing.assert_array_equal(task.solution(new_inputs), new_labels)
        np.testing.assert_array_equal(inverse(new_labels), labels)
        seen.add(int(new_inputs[0]) - 1)
    assert seen == {unit for unit in range(1, modulus) if np.gcd(unit, modulus) == 1}


@pytest.mark.parametrize("modulus", [2, 3, 4, 6, 10])
def test_a_task_says_whether_its_puzzles_have_other_views(modulus):
    """A task is symmetric where some drawn symmetry shows a row in another way: modulo 2 none does."""
    task = RollingSum(RollingSumConfig(modulus=modulus))
    row = (np.arange(12) % modulus + 1).astype(np.int32)
    rng = np.random.default_rng(0)
    assert task.symmetric == any(not np.array_equal(task.augment(row, row, rng)[0], row) for _ in range(50))
    assert Sorting(SortingConfig()).symmetric


@pytest.mark.parametrize("value", ["3 1 2", "3,1,2", " 3, 1,\t2 ", "3;1;2", "[3, 1, 2]", [3, 1, 2], ["3", "1", "2"]])
def test_ways_to_write_numbers(value):
    """Numbers may be separated by spaces, commas or semicolons, be JSON, or be a list of numbers or of strings."""
    np.testing.assert_array_equal(SORTING.parse(value), tokens(3, 1, 2))


@pytest.mark.parametrize(
    ("like", "written"),
    [
        ("3 1 2", "1 2 3"),
        ("3,1,2", "1,2,3"),
        ("3, 1, 2", "1, 2, 3"),
        ("[3,1,2]", "[1, 2, 3]"),
        ("7", "1 2 3"),
        ([3, 1, 2], [1, 2, 3]),
        (["3", "1", "2"], ["1", "2", "3"]),
    ],
)
def test_answer_in_the_form_of_the_puzzle(like, written):
    """An answer is written with the separator, or in the kind of list, that the puzzle had."""
    assert SORTING.format(tokens(1, 2, 3), like) == written


def test_padding_in_an_answer():
    """Padding that an unfinished answer holds is written as a question mark or null, and drawn as a dot."""
    assert SORTING.format(tokens(1, -1, 3), "3 1 2") == "1 ? 3"
    assert SORTING.format(tokens(1, -1, 3), [3, 1, 2]) == [1, None, 3]
    assert SORTING.render(tokens(1, -1, 3)) == "1 · 3"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1 x 2", "'x' at position 2 is no number of this task; the numbers 0 to 9 are known"),
        ("1 10", "'10' at position 2"),
        ([1, True], "True at position 2"),
        ([1, 2.0], "2.0 at position 2"),
        ([1, -1], "-1 at position 2"),
        ("", "the puzzle is empty; write numbers such as"),
        ([], "the puzzle is empty"),
        (7, "7 is no row of numbers"),
        ("[1, 2", "starts like JSON but is none"),
    ],
)
def test_unreadable_numbers(value, message):
    """What cannot be read is named with its position, and what could be is said."""
    with pytest.raises(PuzzleError, match=message):
        SORTING.parse(value)


def test_render_numbers():
    """A drawing aligns its columns; changed is green, wrong is red, both is bold red."""
    task = Sorting(SortingConfig(n=4, values=12))
    puzzle, previous = tokens(11, 3, 1, 2), tokens(1, 1, 3, 11)
    assert task.render(puzzle) == "11  3  1  2"
    assert task.render(tokens(1, 2, 3, 11), puzzle, previous) == " 1 [green] 2[/]  3 11"
    assert task.render(tokens(1, 3, 3, 11), puzzle) == " 1 [red] 3[/]  3 11"
    assert task.render(tokens(1, 3, 3, 11), puzzle, previous) == " 1 [bold red] 3[/]  3 11"


def test_hash_rows():
    """Rows that differ by a permutation, a digit or a length have different hashes, evenly spread over ten buckets."""
    rows = np.array(list(product(range(10), repeat=4)))
    keys = hash_rows(rows)
    assert len(set(keys.tolist())) == len(rows)
    counts = np.bincount((keys % np.uint64(10)).astype(int), minlength=10)
    assert abs(counts - 1000).max() < 150  # five standard deviations of a fair choice
    assert hash_rows(np.zeros((1, 3), int)) != hash_rows(np.zeros((1, 4), int))


STYLES = st.sampled_from(["", "red", "bold green"])
MARKUP = st.text(alphabet="[]/\\:ab#@= \n", max_size=8) | st.sampled_from([":smile:", "[red]", "[/]", "\\[b]", "\\"])


@settings(deadline=None, database=None)
@given(pieces=st.lists(st.tuples(MARKUP, STYLES), max_size=6))
def test_paint_shows_what_is_there(pieces):
    """Painted text reads as the very same text, whatever tags, emoji codes and backslashes it seems to hold."""
    text = Text.from_markup(paint(pieces))
    assert text.plain == "".join(piece for piece, _ in pieces)
    offset = 0
    for piece, style in pieces:
        covered = {str(span.style) for span in text.spans if span.start <= offset < span.end}
        assert not piece or covered - {"none"} == ({style} if style else set())
        offset += len(piece)


def test_paint_disarms_control_characters():
    """Characters that would steer a terminal are replaced."""
    assert Text.from_markup(paint([("a\x1b[31mb\r\x07", "")])).plain == "a\ufffd[31mb\ufffd\ufffd"


@settings(deadline=None, database=None)
@given(
    items=st.lists(st.text(min_size=1, max_size=4) | st.integers(), min_size=1, max_size=5),
    like=st.sampled_from(["1 2", "1,2", "1; 2", "[1]", ""]),
)
def test_items_round_trip(items, like):
    """Items written in any style are read back, apart from numbers that a text cannot tell from strings."""
    read = items_of(join_items(items, like))
    assert list(map(str, read)) == list(map(str, items))


def test_shown_is_short():
    """A value in a message takes one line of at most 40 characters."""
    for value in ("x" * 100, {"a": ["b\nc"] * 30}, 10**5000, None):
        assert len(shown(value)) <= 40
        assert "\n" not in shown(value)


@pytest.mark.parametrize("task", [Sorting(SortingConfig(train=20)), RollingSum(RollingSumConfig(train=20))])
def test_shorten(task):
    """A shortened puzzle is the first numbers of the long one with padding behind; its labels solve it, the padding is
    not asked for, every length from one number to all occurs, and the arguments stay as they were."""
    data, rng, seen = task.examples("train"), np.random.default_rng(0), set()
    for row in range(20):
        inputs, labels = data.inputs[row], data.labels[row]
        before = inputs.copy(), labels.copy()
        for _ in range(200):
            short, answer = task.shorten(inputs, labels, rng)
            count = int((short > 0).sum())
            seen.add(count)
            assert np.array_equal(short, np.where(np.arange(len(inputs)) < count, inputs, 0))
            assert np.array_equal(answer[:count], task.solution(short[:count]))
            assert (answer[count:] == IGNORE_LABEL).all()
        assert np.array_equal(inputs, before[0])
        assert np.array_equal(labels, before[1])
    assert seen == set(range(1, len(data.inputs[0]) + 1))
