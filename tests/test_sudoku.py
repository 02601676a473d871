"""The sudoku task: reading, checking and drawing puzzles, the splits, the augmentation."""

import gzip
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from loopwise.errors import ConfigError, DataError, PuzzleError
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.tasks.sudoku_boards import solve
from loopwise.tasks.sudoku_symmetry import equivalent, signature
from loopwise.types import IGNORE_LABEL, SPLITS, Examples

SMALL = {
    "2x2": {"train": 600, "validation": 100, "test": 200},
    "1x4": {"train": 100, "validation": 40, "test": 60},
    "2x3": {"train": 400, "validation": 100, "test": 150},
    "3x2": {"train": 60, "validation": 20, "test": 30},
    "3x3": {"test": 40},
}
PUZZLE = ".3.4|4...|..1.|.2.."  # 4x4


@pytest.fixture(scope="module")
def tasks():
    return {box: Sudoku(SudokuConfig(box=box, **sizes)) for box, sizes in SMALL.items()}


@pytest.fixture(scope="module")
def data(tasks):
    return {box: {split: task.examples(split) for split in SPLITS} for box, task in tasks.items()}


def digits(examples):
    return (examples.inputs - 1).astype(np.uint8), (examples.labels - 1).astype(np.uint8)


@pytest.mark.parametrize("box", SMALL)
def test_examples_are_puzzles_with_one_solution(tasks, data, box):
    """Every label solves its puzzle, no other grid does, and sizes are those asked for."""
    task = tasks[box]
    for split in SPLITS:
        examples = data[box][split]
        assert len(examples.inputs) == SMALL[box].get(split, {"train": 900, "validation": 100}.get(split))
        assert all(array.dtype == np.int32 for array in examples)
        assert all(task.verify(*pair) for pair in zip(examples.inputs, examples.labels, strict=True))
        counts, _ = solve(task.board, task.board.bits[digits(examples)[0]].T)
        np.testing.assert_array_equal(counts, 1)


@pytest.mark.parametrize("box", SMALL)
def test_splits_share_nothing(tasks, data, box):
    """No puzzle of a split is one of another under symmetry, and no solution grid occurs in two splits."""
    board = tasks[box].board
    marks = [set(signature(board, *digits(data[box][split])).tolist()) for split in SPLITS]
    grids = [{grid.tobytes() for grid in data[box][split].labels} for split in SPLITS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not marks[i] & marks[j]
        assert not grids[i] & grids[j]


def test_families_stay_together(tasks, data):
    """No 9x9 validation puzzle has, up to symmetry, the solution grid of a training puzzle."""
    board = tasks["3x3"].board
    train, validation = (digits(data["3x3"][split])[1] for split in ("train", "validation"))
    assert not set(signature(board, train, train).tolist()) & set(signature(board, validation, validation).tolist())


def test_default_sizes_of_4x4():
    """A 4x4 board yields 1,000 test, 500 validation and over 1,500 training puzzles, all different."""
    task = Sudoku(SudokuConfig(box="2x2"))
    found = [task.examples(split) for split in SPLITS]
    assert [len(examples.inputs) for examples in found[1:]] == [500, 1000]
    assert 1500 < len(found[0].inputs) <= 2000
    marks = np.concatenate([signature(task.board, *digits(examples)) for examples in found])
    assert len(np.unique(marks)) == len(marks)


@pytest.mark.parametrize("box", SMALL)
def test_augment_is_an_equivalent_puzzle_and_invertible(tasks, data, box):
    """Over 200 draws: labels solve the new puzzle, it is equivalent, the inverse is exact, arguments stay."""
    task, examples = tasks[box], data[box]["train"]
    rng = np.random.default_rng(0)
    for k in range(200):
        inputs, labels = examples.inputs[k % 50], examples.labels[k % 50]
        before = inputs.copy(), labels.copy()
        new_inputs, new_labels, inverse = task.augment(inputs, labels, rng)
        assert new_inputs.dtype == new_labels.dtype == np.int32
        assert task.verify(new_inputs, new_labels)
        np.testing.assert_array_equal(inverse(new_labels), labels)
        np.testing.assert_array_equal(inverse(new_inputs), inputs)
        np.testing.assert_array_equal((inputs, labels), before)
        if k < 10:
            as_digits = [(grid - 1).astype(np.uint8) for grid in (inputs, labels, new_inputs, new_labels)]
            assert equivalent(task.board, tuple(as_digits[:2]), tuple(as_digits[2:]))


def test_augment_keeps_ignored_labels(tasks, data):
    """Positions that are not asked for stay so, moved with their cells; a wrong answer comes back just as wrong."""
    task, examples = tasks["3x3"], data["3x3"]["train"]
    inputs, labels = examples.inputs[0], examples.labels[0].copy()
    labels[inputs > 1] = IGNORE_LABEL
    new_inputs, new_labels, inverse = task.augment(inputs, labels, np.random.default_rng(0))
    np.testing.assert_array_equal(new_labels == IGNORE_LABEL, new_inputs > 1)
    answer = np.where(new_inputs > 1, new_inputs, new_labels)
    np.testing.assert_array_equal(inverse(answer), examples.labels[0])
    answer[7] = 0 if answer[7] else 3
    assert (inverse(answer) != examples.labels[0]).sum() == 1


def test_augment_never_yields_a_held_out_grid(tasks, data):
    """On 4x4, where chance alone would do it for a third of the draws, 5,000 draws yield no held-out grid."""
    task, examples = tasks["2x2"], data["2x2"]["train"]
    held_out = {g.tobytes() for split in ("validation", "test") for g in data["2x2"][split].labels}
    rng, as_before = np.random.default_rng(0), 0
    for k in range(5000):
        labels = examples.labels[k % len(examples.labels)]
        new_labels = task.augment(examples.inputs[k % len(examples.labels)], labels, rng)[1]
        assert new_labels.tobytes() not in held_out
        as_before += new_labels is labels
    assert 0.2 < as_before / 5000 < 0.5


def test_augment_without_a_solution_makes_no_splits():
    """A puzzle whose solution is unknown is augmented without data: here its file does not exist."""
    task = Sudoku(SudokuConfig(test_file="nowhere.csv", train_file="nowhere.csv"))
    inputs = np.ones(81, dtype=np.int32)
    inputs[3] = 5
    new_inputs, _, inverse = task.augment(inputs, np.full(81, IGNORE_LABEL, dtype=np.int32), np.random.default_rng(0))
    np.testing.assert_array_equal(inverse(new_inputs), inputs)


def test_training_may_reveal_digits_of_the_answer():
    """With `reveal` a training puzzle shows 0 to as many digits of its answer beside its clues, each number as often,
    at any blank; never more than there are blanks. Without it, and in its labels, nothing changes.
    """
    inputs, labels = np.array([2, *[1] * 15], np.int32), np.arange(16, dtype=np.int32) % 4 + 2
    task, rng = Sudoku(SudokuConfig(box="2x2", reveal=3)), np.random.default_rng(0)
    numbers, places = np.zeros(4), np.zeros(16)
    for _ in range(2000):
        easier, same = task.shorten(inputs, labels, rng)
        shown = np.flatnonzero(easier != inputs)
        assert (easier[shown] == labels[shown]).all()
        assert same.tolist() == labels.tolist()
        numbers[len(shown)] += 1
        places[shown] += 1
    assert inputs.tolist() == [2, *[1] * 15]
    assert np.abs(numbers / 2000 - 1 / 4).max() < 0.04
    assert np.abs(places[1:] / places.sum() - 1 / 15).max() < 0.02
    few = np.where(np.arange(16) < 15, labels, 1)
    counts = [(task.shorten(few, labels, rng)[0] != few).sum() for _ in range(50)]
    assert set(counts) == {0, 1}
    assert Sudoku(SudokuConfig(box="2x2")).shorten(inputs, labels, rng)[0] is inputs


@pytest.mark.parametrize("box", ["2x2", "2x3", "3x3"])
def test_verify_accepts_only_the_answer(tasks, data, box):
    """The answer is right; with any one cell changed to anything else it is wrong; so is the puzzle itself."""
    task, examples = tasks[box], data[box]["test"]
    for inputs, labels in zip(examples.inputs[:3], examples.labels[:3], strict=True):
        assert task.verify(inputs, labels) is True
        assert task.verify(inputs, inputs) is False
        assert task.verify(inputs, labels[:-1]) is False
        for cell in range(task.spec.length):
            for token in range(task.spec.vocab_size):
                changed = labels.copy()
                changed[cell] = token
                assert task.verify(inputs, changed) is bool(token == labels[cell])


def test_verify_asks_for_the_givens(tasks, data):
    """A solved board that contradicts one given is no answer."""
    task, examples = tasks["2x3"], data["2x3"]["test"]
    assert not task.verify(examples.inputs[0], examples.labels[1])
    assert task.verify(np.ones(36, dtype=np.int32), examples.labels[1])


@pytest.mark.parametrize("box", ["2x2", "2x3", "3x3", "3x4", "5x5"])
def test_parse_and_format_round_trip(box):
    """A puzzle written as a string, a list or a grid reads back as the same tokens."""
    task = Sudoku(SudokuConfig(box=box))
    n = task.board.side
    rng = np.random.default_rng(0)
    tokens = np.ones(n * n, dtype=np.int32)
    tokens[rng.permutation(n)] = rng.permutation(n) + 2  # every digit once: no contradiction
    forms = ["." * n * n, [0] * n * n, [[0] * n for _ in range(n)], "\n".join(["_" * n] * n)]
    for blank in forms:
        written = task.format(tokens, blank)
        assert type(written) is type(blank)
        np.testing.assert_array_equal(task.parse(written), tokens)
        assert task.format(tokens, written) == written


def test_format_keeps_the_form():
    """Separators and each way to write a blank stay; solved cells are filled in."""
    task = Sudoku(SudokuConfig(box="2x2"))
    solution = task.parse("1234341221434321")
    assert task.format(solution, "1. | 3.\n.. | ..\n---+---\n.. | ..\n43 | 21") == (
        "12 | 34\n34 | 12\n---+---\n21 | 43\n43 | 21"
    )
    assert task.format(solution, [[1, None, 0, 4]] + [[0] * 4] * 3)[0] == [1, 2, 3, 4]
    for form in ("1_*0............", [1, None, 0, 4] + [0] * 12, [[1, None, 0, 4], *[[0] * 4] * 3]):
        assert task.format(task.parse(form), form) == form
    assert task.format(np.ones(16, dtype=np.int32), "1234341221434321") == "." * 16


def test_parse_reads_all_spellings():
    """Blanks, separators, None, tuples and lower-case letters are understood."""
    task = Sudoku(SudokuConfig(box="2x2"))
    same = [PUZZLE, "03_4 4*.. \n+--+ 001. .2..", [0, 3, None, 4, 4] + [0] * 5 + [1, 0, 0, 2, 0, 0]]
    same += [[[0, 3, 0, 4], (4, 0, None, 0), [0, 0, 1, 0], [0, 2, 0, 0]]]
    for form in same:
        np.testing.assert_array_equal(task.parse(form), task.parse(PUZZLE))
    large = Sudoku(SudokuConfig(box="4x4"))
    text = "aBcDeFg" + "." * 249
    assert large.parse(text)[:7].tolist() == [11, 12, 13, 14, 15, 16, 17]
    assert large.format(large.parse(text), text).startswith("ABCDEFG.")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("123", "the puzzle has 3 cells, a 4x4 sudoku has 16"),
        ("." * 17, "the puzzle has 17 cells, a 4x4 sudoku has 16"),
        ([0] * 15, "the puzzle has 15 cells"),
        ([], "the puzzle has 0 cells"),
        ("", "the puzzle has 0 cells"),
        ([[0] * 4] * 3, "the grid has 3 rows, it must have 4"),
        ([[0] * 4, [0] * 3, [0] * 4, [0] * 4], "row 2 of the grid has 3 cells, it must have 4"),
        ("..x." + "." * 12, "unknown symbol 'x' at position 3: write 1 to 4"),
        ("5" + "." * 15, "unknown symbol '5' at position 1"),
        ("٣" + "." * 15, "unknown symbol '٣'"),
        ([0, 5] + [0] * 14, "cell 2 is 5: write a number from 1 to 4"),
        ([True] + [0] * 15, "cell 1 is True"),
        ([1.0] + [0] * 15, "cell 1 is 1.0"),
        (["a\nb"] + [0] * 15, "cell 1 is 'a"),
        ([[0] * 4, 0, [0] * 4, [0] * 4], "cell 1 is"),
        (7, "not a value of type int"),
        ({"a": 1}, "not a value of type dict"),
        (None, "not a value of type NoneType"),
        ("3..3" + "." * 12, r"row 1 has the digit 3 twice \(columns 1 and 4\); remove one"),
        ("1..." + "...." * 2 + "1...", r"column 1 has the digit 1 twice \(rows 1 and 4\)"),
        ("1..." + ".1.." + "." * 8, r"box 1 has the digit 1 twice \(rows 1 and 2, columns 1 and 2\)"),
    ],
)
def test_unreadable_puzzles_are_refused_in_one_line(value, message):
    """Wrong lengths, unknown symbols and contradictory givens are PuzzleErrors that say where, in one line."""
    with pytest.raises(PuzzleError, match=message) as caught:
        Sudoku(SudokuConfig(box="2x2")).parse(value)
    assert "\n" not in str(caught.value)


def test_render_draws_boxes_and_tells_cells_apart():
    """Givens are bold, cells that break a rule red, cells that are new green; without a puzzle nothing is marked."""
    task = Sudoku(SudokuConfig(box="2x2"))
    puzzle, plain = task.parse(PUZZLE), "· 3 │ · 4\n4 · │ · ·\n────┼────\n· · │ 1 ·\n· 2 │ · ·"
    assert task.render(puzzle) == plain
    answer = puzzle.copy()
    answer[[0, 15]] = 2, 3  # digit 1 in row 1; digit 2 in row 4, twice
    answer[15] = 3
    first, *_, last = task.render(answer, puzzle, puzzle).split("\n")
    assert first == "[green]1[/green] [bold]3[/bold] │ · [bold]4[/bold]"
    assert last == "· [bold red]2[/bold red] │ · [red]2[/red]"
    answer[1] = 1 + 2
    assert "[bold red]2[/bold red]" in task.render(answer, puzzle).split("\n")[0]
    assert task.render(answer).count("[") == 0


@pytest.mark.parametrize("box", ["2x3", "3x4", "1x5"])
def test_render_is_rectangular(box):
    """Every line of a drawn board is as wide as the others, and there is a line for each row."""
    task = Sudoku(SudokuConfig(box=box))
    lines = task.render(np.ones(task.spec.length, dtype=np.int32)).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert sum("·" in line for line in lines) == task.board.side


def test_spec_is_that_of_the_papers():
    """V = 11 and L = 81 on the usual board, token 1 the blank and d + 1 the digit d."""
    spec = Sudoku(SudokuConfig()).spec
    assert (spec.vocab_size, spec.shape, spec.length) == (11, (9, 9), 81)
    assert list(spec.symbols) == ["", ".", *"123456789"]


def write_csv(path, rows, header="source,question,answer,rating"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def rows_of(examples, task):
    return [
        f"x,{task.format(i, '.' * i.size)},{task.format(s, '.' * s.size)},0"
        for i, s in zip(examples.inputs, examples.labels, strict=True)
    ]


def test_what_files_have_in_common_is_told(tasks, data, tmp_path):
    """Of a training file it is said how many puzzles repeat others, and which the test file has in disguise."""
    task, (train, test) = tasks["3x3"], (data["3x3"][split] for split in ("train", "test"))
    rng = np.random.default_rng(0)

    def disguised(rows):
        pairs = [task.augment(*pair, rng)[:2] for pair in zip(rows.inputs, rows.labels, strict=True)]
        return rows_of(Examples(*map(np.array, zip(*pairs, strict=True)), rows.puzzle_ids), task)

    mine = train.rows(slice(20))
    rows = [*rows_of(mine, task), *disguised(mine.rows(slice(2))), *disguised(test.rows([7, 4]))]
    # The same grid with a clue more is another puzzle of the family.
    inputs, labels = test.inputs[9].copy(), test.labels[9]
    inputs[(inputs == 1).argmax()] = labels[(inputs == 1).argmax()]
    more = Examples(inputs[None], labels[None], test.puzzle_ids[:1])
    rows += [*rows_of(more, task), *disguised(more)]
    files = {
        "train_file": write_csv(tmp_path / "train.csv", rows),
        "test_file": write_csv(tmp_path / "test.csv", rows_of(test, task)),
    }
    assert Sudoku(SudokuConfig(**files)).summary().splitlines()[1:] == [
        f"{files['train_file']}: 26 puzzles, 3 of them repeats up to symmetry",
        "test puzzles in disguise, left out: 2 (number 24 is test puzzle 5, 23 is test puzzle 8)",
        "others with the solution of a test puzzle, left out: 1",
        "others with the solution of a test puzzle in disguise, kept: 1",
    ]
    counts = [len(Sudoku(SudokuConfig(validation=2, **files)).examples(split).inputs) for split in SPLITS]
    assert counts == [21, 2, len(test.inputs)]
    assert Sudoku(SudokuConfig()).summary().splitlines()[1:] == [
        "sudoku_train_1k.csv: 1,000 puzzles, 0 of them repeats up to symmetry"
    ]
    assert len(Sudoku(SudokuConfig(box="2x2")).summary().splitlines()) == 1


def test_files_of_the_user(tasks, data, tmp_path):
    """Files are read, plain and gzip; what the test file has, used or not, even in disguise, leaves the other."""
    task, old = tasks["2x3"], data["2x3"]
    train_file = write_csv(tmp_path / "train.csv", rows_of(old["train"], task))
    rng = np.random.default_rng(0)
    pairs = [task.augment(old["train"].inputs[k], old["train"].labels[k], rng)[:2] for k in range(30)]
    test = old["test"].rows(slice(0, 30))._replace(inputs=np.array([p[0] for p in pairs]))
    test = test._replace(labels=np.array([p[1] for p in pairs]))
    test_file = str(tmp_path / "test.csv.gz")
    with gzip.open(test_file, "wt", encoding="utf-8") as file:
        file.write("\n".join(["question,answer", *(row[2:-2] for row in rows_of(test, task))]))
    new = Sudoku(SudokuConfig(box="2x3", train_file=train_file, test_file=test_file))
    np.testing.assert_array_equal(new.examples("test").inputs, test.inputs)
    marks = {split: set(signature(task.board, *digits(new.examples(split))).tolist()) for split in SPLITS}
    assert len(marks["train"]) + len(marks["validation"]) == 400 - 30
    assert len(marks["validation"]) == 37
    assert not (marks["train"] | marks["validation"]) & marks["test"]
    fewer = Sudoku(SudokuConfig(box="2x3", train_file=train_file, test_file=test_file, train=20, test=10))
    assert [len(fewer.examples(split).inputs) for split in SPLITS] == [20, 37, 10]


SOLVED = "1234341221434321"


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], "question,answer", "has no puzzles"),
        ([f"{SOLVED},{SOLVED}"], "question,solution", "has no column 'answer'"),
        ([f"{SOLVED},{SOLVED}"], "", "has no column 'question'"),
        ([f"{SOLVED},{SOLVED}", f"123,{SOLVED}"], "question,answer", "line 3: the question has 3 symbols"),
        ([f"{SOLVED}"], "question,answer", "line 2: the answer has 0 symbols"),
        ([f"{SOLVED[:-1]}x,{SOLVED}"], "question,answer", "line 2: the question has an unknown symbol"),
        ([f"{SOLVED[:-1]}ü,{SOLVED}"], "question,answer", "line 2: the question has an unknown symbol"),
        ([f"{SOLVED},{SOLVED[:-1]}2"], "question,answer", "line 2: the answer is not a solved board"),
        ([f"{SOLVED},{SOLVED[:-1]}."], "question,answer", "line 2: the answer is not a solved board"),
        ([f"2{'.' * 15},{SOLVED}"], "question,answer", "line 2: the answer contradicts the question"),
    ],
)
@pytest.mark.parametrize("which", ["train_file", "test_file"])
def test_unusable_files_are_refused_in_one_line(tmp_path, rows, header, message, which):
    """A malformed or empty CSV is a DataError that names the file, the line and the reason, in one line."""
    path = write_csv(tmp_path / "some.csv", rows, header)
    task = Sudoku(SudokuConfig(**{"box": "2x2", which: path, "test": None if which == "test_file" else 5}))
    with pytest.raises(DataError, match=message) as caught:
        task.examples("train")
    assert "some.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_refused_in_one_line(tmp_path):
    """No file, a folder, a broken gzip and a binary file are DataErrors of one line."""
    (tmp_path / "broken.csv.gz").write_bytes(b"\x1f\x8b\x08\x00nonsense")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for name in ("absent.csv", ".", "broken.csv.gz", "binary.csv"):
        with pytest.raises(DataError, match=r"^[^\n]*$"):
            Sudoku(SudokuConfig(test_file=str(tmp_path / name))).examples("test")


def test_too_much_asked_for_is_refused():
    """More puzzles than there are is a DataError of one line that says how many there are."""
    for options, message in (
        ({"train": 5000, "test": 5}, "has 900 puzzles for train, 5000 are asked for; lower `train`"),
        ({"validation": 2000, "test": 5}, "1000 usable puzzles in .* lower `validation`"),
        ({"validation": 1000, "test": 5}, "no puzzle left for training"),
        ({"box": "2x2", "train": 50_000, "test": 5, "validation": 5}, "only [0-9]+ 4x4 puzzles that differ are left"),
    ):
        with pytest.raises(DataError, match=message):
            Sudoku(SudokuConfig(**options)).examples("train")


def test_senseless_options_are_refused():
    """Options that make no sense are refused when the configuration is made."""
    for options in ({"box": "3"}, {"train": 0}, {"validation": -1}, {"test": -1}, {"reveal": -1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            SudokuConfig(**options)


def test_same_seed_same_data():
    """The seed decides the data; the sizes of other splits do not change the test split."""
    sizes = {"box": "2x3", "train": 50, "validation": 20, "test": 30}
    first, again, other = (Sudoku(SudokuConfig(**sizes, seed=seed)) for seed in (0, 0, 1))
    for split in SPLITS:
        for a, b in zip(first.examples(split), again.examples(split), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (first.examples(split).inputs != other.examples(split).inputs).any()
    more = Sudoku(SudokuConfig(**{**sizes, "train": 90, "validation": 5}))
    np.testing.assert_array_equal(more.examples("test").inputs, first.examples("test").inputs)


DIGEST = """
import hashlib
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
digest = hashlib.sha256()
for options in ({"box": "2x3", "train": 40, "validation": 10, "test": 20}, {"test": 5, "train": 30}):
    for split in ("train", "validation", "test"):
        for array in Sudoku(SudokuConfig(**options)).examples(split):
            digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_data_is_the_same_in_every_process():
    """Two processes with different hash seeds make the same bytes."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == hashlib.sha256().digest_size * 2
