"""What every task must do, run on every class that discovery finds. A new task needs no line here.

A task whose puzzles come from the user cannot make any by itself: `FILES` writes some for it.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.text import Text

from loopwise.errors import PuzzleError
from loopwise.registry import discover
from loopwise.tasks.base import Task
from loopwise.types import IGNORE_LABEL, SPLITS, Examples, Tokens

TASKS = discover("loopwise.tasks", Task)
SIZES = {"train": 40, "validation": 6, "test": 8}
FEW = 8  # rows that a test looks at


def write_rows(path: Path, rows: list[tuple[Any, Any]]) -> str:
    path.write_text("".join(json.dumps({"input": i, "output": o}) + "\n" for i, o in rows), encoding="utf-8")
    return str(path)


def text_file(folder: Path) -> str:
    """Texts of different lengths, whose answers markup could read as tags and emoji codes, and repeats."""
    words = [f"[b]:x:{number:b}"[: 4 + number % 10] for number in range(64)]
    return write_rows(folder / "text.jsonl", [(word[::-1], word) for word in words])


def list_file(folder: Path) -> str:
    """Lists whose answers have another length."""
    lists = [[1 + number % 5, 10 * (number // 5), -3][: 2 + number % 2] for number in range(60)]
    return write_rows(
        folder / "list.jsonl", [(items, items[:1] * (number % 4 + 1)) for number, items in enumerate(lists)]
    )


def grid_file(folder: Path) -> str:
    """Grids of different sizes."""
    grids = [[[r * c + number for c in range(1 + number % 3)] for r in range(1 + number % 4)] for number in range(50)]
    return write_rows(folder / "grid.jsonl", [(grid, grid[::-1]) for grid in grids])


FILES = {"table": [text_file, list_file, grid_file]}
CASES = [
    pytest.param((name, file), id=name if file is None else f"{name}-{file.__name__}")
    for name in TASKS
    for file in FILES.get(name, [None])
]


class Case(typing.NamedTuple):
    """A task with its examples, made once for all tests."""

    task: Task[Any]
    examples: dict[str, Examples]
    folder: Path  # with the file that was written for it, if any

    def pairs(self) -> list[tuple[Tokens, Tokens]]:
        """A few puzzles and right answers [L]; what is not asked for is copied from the puzzle."""
        few = [part.rows(slice(FEW)) for part in self.examples.values()]
        return [
            (inputs, np.where(labels == IGNORE_LABEL, inputs, labels))
            for part in few
            for inputs, labels in zip(part.inputs, part.labels, strict=True)
        ]


def build(name: str, file: Any, folder: Path) -> Task[Any]:
    """The task with its default options, only smaller."""
    Config = TASKS[name].Config
    hints = typing.get_type_hints(Config)
    sizes = {key: size for key, size in SIZES.items() if int in (hints.get(key), *typing.get_args(hints.get(key)))}
    config = dataclasses.replace(Config(), **sizes)
    if file is not None:
        config = dataclasses.replace(config, file=file(folder))
    return TASKS[name](config)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, file = request.param
    folder = tmp_path_factory.mktemp("puzzles")
    task = build(name, file, folder)
    return Case(task, {split: task.examples(split) for split in SPLITS}, folder)


@pytest.fixture
def without_files(case: Case) -> Iterator[None]:
    """The puzzles' file is gone, as on another machine."""
    away = case.folder.rename(case.folder.with_name(f"{case.folder.name}-away"))
    yield
    away.rename(case.folder)


def spellings(tokens: Tokens, task: Task[Any]) -> dict[str, list[Any]]:
    """Ways in which a person might write a puzzle; those that the task reads as these tokens, by their form."""
    spec = task.spec
    grid = tokens.reshape(spec.shape if len(spec.shape) == 2 else (1, -1))
    filled = grid > 0
    cropped = grid[: filled.any(axis=1).nonzero()[0][-1] + 1, : filled.any(axis=0).nonzero()[0][-1] + 1]
    rows = [[spec.symbols[token] for token in row] for row in cropped]
    cells = [symbol for row in rows for symbol in row]
    numbers = [[int(symbol) if symbol.lstrip("-").isdigit() else None for symbol in row] for row in rows]
    candidates: dict[str, list[Any]] = {
        "string": [
            "".join(cells),
            " ".join(cells),
            ",".join(cells),
            "\n".join(map(" ".join, rows)),
            json.dumps(numbers),
        ],
        "list": [cells, [n for row in numbers for n in row], [spec.symbols[token] or None for token in tokens]],
        "grid": [rows, numbers] if len(spec.shape) == 2 else [],
    }
    return {form: [v for v in values if reads_as(task, v, tokens)] for form, values in candidates.items()}


def reads_as(task: Task[Any], value: Any, tokens: Tokens) -> bool:
    try:
        return bool(np.array_equal(task.parse(value), tokens))
    except PuzzleError:
        return False


def form_of(value: Any) -> str:
    if isinstance(value, str):
        return "string"
    return "grid" if isinstance(value[0], list) else "list"


def assert_tokens(tokens: Any, task: Task[Any], shape: tuple[int, ...], ignore: bool = False) -> None:
    assert tokens.dtype == np.int32
    assert tokens.shape == shape
    known = (tokens >= 0) & (tokens < task.spec.vocab_size)
    assert (known | (tokens == IGNORE_LABEL)).all() if ignore else known.all()


def drawn(task: Task[Any], *args: Any) -> str:
    """What a drawing shows, without its colours."""
    return Text.from_markup(task.render(*args)).plain


@pytest.mark.parametrize("name", TASKS)
def test_config(name):
    """Every option has a default, and the options are frozen and keyword-only."""
    Config = TASKS[name].Config
    assert Config() == Config()
    assert Config.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(Config))


def test_spec(case):
    """The specification agrees with itself: V different symbols, padding first and empty, L from the shape."""
    spec = case.task.spec
    assert len(spec.symbols) == len(set(spec.symbols)) == spec.vocab_size
    assert [symbol for symbol in spec.symbols if not symbol] == [spec.symbols[0]] == [""]
    assert len(spec.shape) in (1, 2)
    assert spec.length == np.prod(spec.shape) > 0


def test_examples(case):
    """Every split has examples of the shape, type and range that the specification says, each with something asked."""
    spec = case.task.spec
    for examples in case.examples.values():
        count = len(examples.inputs)
        assert count > 0
        assert_tokens(examples.inputs, case.task, (count, spec.length))
        assert_tokens(examples.labels, case.task, (count, spec.length), ignore=True)
        assert (examples.labels != IGNORE_LABEL).any(axis=1).all()
        assert examples.puzzle_ids.dtype == np.int32
        assert examples.puzzle_ids.shape == (count,)
        assert ((examples.puzzle_ids >= 0) & (examples.puzzle_ids < spec.num_puzzle_ids)).all()


def test_examples_repeat(case):
    """Examples are the same at every call, and from another instance with the same options."""
    for task in (case.task, type(case.task)(case.task.config)):
        for split, expected in case.examples.items():
            for again, column in zip(task.examples(split), expected, strict=True):
                np.testing.assert_array_equal(again, column)


def test_splits_disjoint(case):
    """No puzzle is in two splits, and no disguise of a training puzzle is a validation or a test puzzle."""
    puzzles = {split: [row.tobytes() for row in examples.inputs] for split, examples in case.examples.items()}
    assert all(len(set(rows)) == len(rows) for rows in puzzles.values())
    train, validation, test = (set(puzzles[split]) for split in ("train", "validation", "test"))
    assert not validation & test
    rng = np.random.default_rng(0)
    examples = case.examples["train"]
    for inputs, labels in zip(examples.inputs, examples.labels, strict=True):
        train |= {case.task.augment(inputs, labels, rng)[0].tobytes() for _ in range(20)}
    assert not train & (validation | test)


def test_verify(case):
    """Right answers are right by the rules, or the rules cannot tell; an answer of padding is never right."""
    for inputs, answer in case.pairs():
        assert case.task.verify(inputs, answer) in (True, None)
        assert case.task.verify(inputs, np.zeros_like(answer)) in (False, None)


def test_augment(case):
    """A disguised puzzle has a right answer, the inverse makes it one of the puzzle's, the arguments stay as they were.

    It makes it the very answer, except where the rules accept another one.
    """
    for number, (inputs, answer) in enumerate(case.pairs()):
        before = inputs.copy(), answer.copy()
        new_inputs, new_answer, inverse = case.task.augment(inputs, answer, np.random.default_rng(number))
        assert_tokens(new_inputs, case.task, inputs.shape)
        assert_tokens(new_answer, case.task, answer.shape)
        assert case.task.verify(new_inputs, new_answer) in (True, None)
        copy = new_answer.copy()
        back = inverse(new_answer)
        assert np.array_equal(back, answer) or case.task.verify(inputs, back) is True
        np.testing.assert_array_equal(new_answer, copy)
        np.testing.assert_array_equal((inputs, answer), before)
        again, _, _ = case.task.augment(inputs, answer, np.random.default_rng(number))
        np.testing.assert_array_equal(again, new_inputs)


def test_augment_keeps_unasked(case):
    """What is not asked for stays so under a symmetry; what is asked for is, and comes back, as if all of it were."""
    rng = np.random.default_rng(0)
    for number, (inputs, answer) in enumerate(case.pairs()):
        labels = np.where(rng.random(answer.shape) < 0.5, answer, IGNORE_LABEL).astype(np.int32)
        _, new_labels, inverse = case.task.augment(inputs, labels, np.random.default_rng(number))
        _, new_answer, _ = case.task.augment(inputs, answer, np.random.default_rng(number))
        assert_tokens(new_labels, case.task, labels.shape, ignore=True)
        assert (new_labels == IGNORE_LABEL).sum() == (labels == IGNORE_LABEL).sum()
        # An inverse takes answers, which have no IGNORE_LABEL: another token stands there.
        back = inverse(np.where(new_labels == IGNORE_LABEL, 1, new_labels).astype(np.int32))
        asked = labels != IGNORE_LABEL
        np.testing.assert_array_equal(back[asked], inverse(new_answer)[asked])


def test_parse_format(case):
    """A puzzle can be given as a string and as a list, a board also as a grid; an answer comes in the same form."""
    for inputs, answer in case.pairs():
        read = spellings(inputs, case.task)
        assert all(read[form] for form in ("string", "list", "grid")[: 1 + len(case.task.spec.shape)])
        for form, values in read.items():
            for like in values:
                assert_tokens(case.task.parse(like), case.task, inputs.shape)
                for tokens in (inputs, answer):
                    written = case.task.format(tokens, like)
                    assert form_of(written) == form
                    assert json.loads(json.dumps(written)) == written
                    np.testing.assert_array_equal(case.task.parse(written), tokens)


def test_any_length(case):
    """A task of any length reads a puzzle twice as long; any other reads puzzles of its own length only."""
    for inputs, _ in case.pairs()[:FEW]:
        like = spellings(inputs, case.task)["list"][0]
        if case.task.spec.any_length:
            np.testing.assert_array_equal(case.task.parse(like + like), np.tile(inputs, 2))
        else:
            with pytest.raises(PuzzleError):
                case.task.parse(like * (case.task.spec.length + 1))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
NEAR = st.lists(st.integers(-1, 17) | st.sampled_from(["", "1", ".", "a", "[", None, True, 1.0]), max_size=20)
TYPED = st.text(alphabet="0123456789.,; []{}abc\n\"'-²\u2028\ud800", max_size=90)


def assert_read_or_refused(task: Task[Any], value: Any) -> None:
    try:
        tokens = task.parse(value)
    except PuzzleError as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return
    assert tokens.ndim == 1
    assert_tokens(tokens, task, tokens.shape if task.spec.any_length else (task.spec.length,))
    np.testing.assert_array_equal(task.parse(task.format(tokens, value)), tokens)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES | NEAR | st.lists(NEAR, max_size=6) | TYPED)
def test_parse_garbage(case, value):
    """Whatever is given, the task reads a puzzle or raises PuzzleError with one line; a puzzle read can be written."""
    assert_read_or_refused(case.task, value)


def test_parse_monsters(case):
    """Numbers of 5000 digits and lists 100,000 deep are refused like any other garbage."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ([10**5000], [[10**5000]], "9" * 5000, "9 " * 5000, f"[{'9' * 5000}]", "[" * 100_000, deep, [deep]):
        assert_read_or_refused(case.task, value)


def test_render(case):
    """A drawing is valid markup that shows every symbol of an answer, whatever the colours tell beside."""
    pairs = case.pairs()
    for (inputs, answer), (other, _) in pairwise(pairs):
        plain = drawn(case.task, answer)
        symbols = Counter("".join(case.task.spec.symbols[token] for token in answer))
        assert symbols <= Counter(plain)
        for args in ((answer, inputs), (answer, None, other), (answer, inputs, other)):
            assert drawn(case.task, *args) == plain
        assert drawn(case.task, inputs).strip()


def test_unfinished_answers(case):
    """Whatever tokens a network proposes, they can be checked, written and drawn."""
    rng = np.random.default_rng(0)
    for inputs, _ in case.pairs():
        answer = rng.integers(0, case.task.spec.vocab_size, size=inputs.shape, dtype=np.int32)
        assert case.task.verify(inputs, answer) in (True, False, None)
        assert drawn(case.task, answer, inputs, inputs)
        for form, values in spellings(inputs, case.task).items():
            for like in values:
                written = case.task.format(answer, like)
                assert form_of(written) == form
                json.dumps(written)


@pytest.mark.usefixtures("without_files")
def test_metadata(case):
    """Config and metadata, written as JSON and read again, do to read, check and draw puzzles where no file is."""
    metadata = json.loads(json.dumps(case.task.metadata()))
    restored = type(case.task).restore(case.task.config, metadata)
    assert restored.spec == case.task.spec
    assert restored.metadata() == metadata
    for inputs, answer in case.pairs():
        for values in spellings(inputs, case.task).values():
            for like in values:
                np.testing.assert_array_equal(restored.parse(like), inputs)
                assert restored.format(answer, like) == case.task.format(answer, like)
        assert restored.verify(inputs, answer) == case.task.verify(inputs, answer)
        assert restored.render(answer, inputs) == case.task.render(answer, inputs)


def test_what_breaks_a_rule_is_pointed_at(case: Case) -> None:
    """A right answer has no violations; of a wrong one, they are positions of the puzzle, and rules that can tell which
    reject it.
    """
    task = case.task
    rng = np.random.default_rng(0)
    for inputs, answer in case.pairs():
        assert task.violations(inputs, answer) == []
        wrong = rng.integers(0, task.spec.vocab_size, len(answer), dtype=np.int32)
        found = task.violations(inputs, wrong)
        assert found == sorted(set(found))
        assert all(type(position) is int and 0 <= position < len(inputs) for position in found)
        assert not (found and task.verify(inputs, wrong))
