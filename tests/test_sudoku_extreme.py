"""Extreme Sudoku puzzles: trial and error, minimality and neighbours, against slow and obvious references."""

import numpy as np
import pytest

from loopwise.errors import ConfigError, DataError
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.tasks.sudoku_boards import Board, dig, is_solution, random_grids, solve
from loopwise.tasks.sudoku_data import ASSETS, TRIDAGONS, read_csv
from loopwise.tasks.sudoku_extreme import extremes, is_minimal, neighbours, one_level
from loopwise.tasks.sudoku_symmetry import signature
from loopwise.types import SPLITS
from test_sudoku_boards import brute_force, brute_force_of_givens

BOARD = Board(3, 3)
GOLDEN_NUGGET = ".......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7....."
SINGLES_DO = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def digits(*puzzles):
    return np.array([[int(symbol.replace(".", "0")) for symbol in puzzle] for puzzle in puzzles], dtype=np.uint8)


def minimal_puzzles(count, seed=0):
    rng = np.random.default_rng(seed)
    grids = random_grids(BOARD, count, rng)
    return dig(BOARD, grids, rng.random(grids.shape))


@pytest.fixture(scope="module")
def shipped():
    """Training puzzles that one level of trial and error does not solve."""
    puzzles = (Sudoku(SudokuConfig(test=20)).examples("train").inputs - 1).astype(np.uint8)
    return puzzles[~one_level(BOARD, puzzles)]


@pytest.fixture(scope="module")
def tridagons():
    """The puzzles of a kind of their own that travel with the package."""
    return read_csv(BOARD, ASSETS / TRIDAGONS, TRIDAGONS)


UNITS = [set(unit) for unit in BOARD.units.tolist()]
PEERS = [set().union(*(unit for unit in UNITS if cell in unit)) - {cell} for cell in range(81)]


def singles(candidates):
    """Candidates [81 sets] after naked and hidden singles, one after the other; None if they contradict."""
    candidates = [set(digits) for digits in candidates]
    done = set()
    while True:
        if not all(candidates) or any(
            set().union(*(candidates[c] for c in unit)) != set(range(1, 10)) for unit in UNITS
        ):
            return None
        found = {cell: digits for cell, digits in enumerate(candidates) if len(digits) == 1}
        for unit in UNITS:
            for digit in range(1, 10):
                places = [cell for cell in unit if digit in candidates[cell]]
                if len(places) == 1:
                    found.setdefault(places[0], {digit})
        new = [cell for cell in found if cell not in done]
        if not new:
            return candidates
        cell = new[0]
        done.add(cell)
        candidates[cell] = set(found[cell])
        for peer in PEERS[cell]:
            candidates[peer] -= found[cell]


def trial_and_error(puzzle):
    """Whether one level of trial and error solves a puzzle: assume each candidate, strike out those that contradict."""
    candidates = singles([{int(digit)} if digit else set(range(1, 10)) for digit in puzzle])
    struck = True
    while struck and any(len(options) > 1 for options in candidates):
        struck = False
        for cell in range(81):
            for digit in sorted(candidates[cell]):
                if len(candidates[cell]) > 1:
                    assumed = [*candidates]
                    assumed[cell] = {digit}
                    if singles(assumed) is None:
                        candidates[cell] = candidates[cell] - {digit}
                        struck = True
        candidates = singles(candidates)
    return all(len(options) == 1 for options in candidates)


def test_trial_and_error(shipped):
    """One level of trial and error solves a puzzle exactly where the same thing done with sets, step by step, does."""
    puzzles = np.concatenate([shipped[:1], minimal_puzzles(2), digits(GOLDEN_NUGGET, SINGLES_DO)])
    expected = [trial_and_error(puzzle) for puzzle in puzzles]
    assert one_level(BOARD, puzzles).tolist() == expected
    assert expected[-2:] == [False, True]
    assert one_level(BOARD, puzzles[::-1]).tolist() == expected[::-1]


def test_what_is_shipped_is_hard():
    """70 % of the 1,000 puzzles inside need more than one level of trial and error, and no random minimal one does."""
    task = Sudoku(SudokuConfig(test=20, validation=0))
    shipped = (task.examples("train").inputs - 1).astype(np.uint8)
    assert (~one_level(BOARD, shipped)).mean() == pytest.approx(0.7, abs=0.01)
    assert one_level(BOARD, minimal_puzzles(40, seed=1)).all()


def test_minimal():
    """A puzzle is minimal if brute force finds a second solution without any of its clues; with one more it is not."""
    puzzles = minimal_puzzles(3)
    more = puzzles.copy()
    for puzzle, solution in zip(more, solve(BOARD, BOARD.bits[puzzles].T)[1], strict=True):
        cell = np.flatnonzero(puzzle == 0)[7]
        puzzle[cell] = solution[cell]
    assert is_minimal(BOARD, np.concatenate([puzzles, more])).tolist() == [True] * 3 + [False] * 3
    for puzzle, expected in ((puzzles[0], True), (more[0], False)):
        fewer = np.where(np.eye(81, dtype=bool), 0, puzzle)[puzzle > 0]
        assert all(brute_force(BOARD, p) == 2 for p in fewer) is expected


def test_neighbours_are_all_there_are():
    """Of a small puzzle without the clue that was drawn, every clue elsewhere that leaves one solution is found."""
    board, rng = Board(2, 3), np.random.default_rng(0)
    puzzle = dig(board, random_grids(board, 1, rng), rng.random((1, board.cells)))[0]
    seen = set()
    for _ in range(200):
        found, solved = neighbours(board, puzzle[None], rng)
        seen |= {p.tobytes() for p in found}
        assert is_solution(board, solved).all()
        assert (solved[found > 0] == found[found > 0]).all()
    expected = set()
    for clue in np.flatnonzero(puzzle):
        fewer = puzzle.copy()
        fewer[clue] = 0
        for cell in np.flatnonzero(puzzle == 0):
            for digit in range(1, 7):
                other = fewer.copy()
                other[cell] = digit
                if brute_force_of_givens(board, other, 2) == 1:
                    expected.add(other.tobytes())
    assert seen == expected
    assert len(expected) > 10


def test_extremes(shipped):
    """What is made beside hard puzzles has one solution, is minimal, and trial and error does not solve it."""
    seeds = shipped[:40]
    puzzles, solutions = extremes(BOARD, seeds, 40, np.random.default_rng(3))
    assert len(puzzles) > 10
    for puzzle in puzzles:
        clues = (puzzle > 0).sum()
        kept = ((seeds > 0) & (seeds == puzzle)).sum(axis=1)
        assert ((kept == clues - 1) & ((seeds > 0).sum(axis=1) == clues)).any()  # one clue was moved
    counts, found = solve(BOARD, BOARD.bits[puzzles].T)
    assert (counts == 1).all()
    np.testing.assert_array_equal(found, solutions)
    assert brute_force(BOARD, puzzles[0]) == 1
    assert is_minimal(BOARD, puzzles).all()
    assert not one_level(BOARD, puzzles).any()


def test_extreme_training_puzzles(shipped):
    """The option adds so many puzzles behind the others, the same for the same seed, none of a held-out family."""
    task, same, other = (Sudoku(SudokuConfig(test=20, extreme=30, seed=seed)) for seed in (0, 0, 1))
    found = {split: task.examples(split) for split in SPLITS}
    train, plain = found["train"], Sudoku(SudokuConfig(test=20)).examples("train")
    np.testing.assert_array_equal(train.inputs[:-30], plain.inputs)
    assert all(task.verify(*pair) for pair in zip(train.inputs, train.labels, strict=True))
    made = (train.inputs[-30:] - 1).astype(np.uint8)
    assert not one_level(BOARD, made).any()
    families = {split: family(examples.labels) for split, examples in found.items()}
    assert not families["train"] & (families["validation"] | families["test"])
    assert len({tuple(row) for row in train.inputs}) == 930
    np.testing.assert_array_equal(same.examples("train").inputs, train.inputs)
    assert (other.examples("train").inputs[-30:] != train.inputs[-30:]).any()


def test_tridagon_training_puzzles():
    """The option adds so many shipped puzzles behind the others, the same for the same seed."""
    task, same, other = (Sudoku(SudokuConfig(test=20, tridagon=30, seed=seed)) for seed in (0, 0, 1))
    found = {split: task.examples(split) for split in SPLITS}
    train, plain = found["train"], Sudoku(SudokuConfig(test=20)).examples("train")
    np.testing.assert_array_equal(train.inputs[:-30], plain.inputs)
    np.testing.assert_array_equal(
        found["validation"].inputs, Sudoku(SudokuConfig(test=20)).examples("validation").inputs
    )
    assert all(task.verify(*pair) for pair in zip(train.inputs, train.labels, strict=True))
    assert len({tuple(row) for row in train.inputs}) == 930
    np.testing.assert_array_equal(same.examples("train").inputs, train.inputs)
    assert (other.examples("train").inputs[-30:] != train.inputs[-30:]).any()


def test_no_tridagon_of_a_held_out_family(tmp_path, tridagons):
    """What has the solution of a test puzzle, up to symmetry, is not among the training puzzles."""
    mirrored = tridagons.solutions[:3, ::-1]
    rows = [f"{digits_of(solution[:40])}{'.' * 41},{digits_of(solution)}" for solution in mirrored]
    file = tmp_path / "test.csv"
    file.write_text("\n".join(["question,answer", *rows]) + "\n", encoding="utf-8")
    tested = family(mirrored + 1)
    left = sum(family(solution[None] + 1).isdisjoint(tested) for solution in tridagons.solutions)
    assert left <= len(tridagons.solutions) - 3
    task = Sudoku(SudokuConfig(test_file=str(file), tridagon=left))
    assert family(task.examples("train").labels[-left:]).isdisjoint(tested)
    with pytest.raises(DataError, match=f"{left} tridagons are left for training, {left + 1} are asked for"):
        Sudoku(SudokuConfig(test_file=str(file), tridagon=left + 1)).examples("train")


def test_the_shipped_tridagons(tridagons):
    """Each has one solution, is minimal and beyond trial and error; three digits have no clue, one and one."""
    puzzles, solutions = tridagons
    counts, found = solve(BOARD, BOARD.bits[puzzles].T)
    assert (counts == 1).all()
    np.testing.assert_array_equal(found, solutions)
    assert len(set(signature(BOARD, puzzles, solutions).tolist())) == len(puzzles) > 1500
    few = np.arange(0, len(puzzles), 20)
    assert is_minimal(BOARD, puzzles[few]).all()
    assert not one_level(BOARD, puzzles[few]).any()
    clues = np.sort([(puzzles == digit).sum(axis=1) for digit in range(1, 10)], axis=0)
    assert (clues[:3] == [[0], [1], [1]]).all()


def family(labels):
    grids = (labels - 1).astype(np.uint8)
    return set(signature(BOARD, grids, grids).tolist())


def test_the_neighbours_of_neighbours_come_next(tmp_path, shipped):
    """A file with two hard puzzles is enough for more than there are right beside them."""
    seeds = shipped[[3, 5]]
    rows = [f"{digits_of(p)},{digits_of(s)}" for p, s in zip(seeds, solve(BOARD, BOARD.bits[seeds].T)[1], strict=True)]
    file = tmp_path / "two.csv"
    file.write_text("\n".join(["question,answer", *rows]) + "\n", encoding="utf-8")
    task = Sudoku(SudokuConfig(test=5, validation=0, extreme=20, train_file=str(file)))
    made = (task.examples("train").inputs[2:] - 1).astype(np.uint8)
    assert len(made) == 20
    moved = [min((p > 0).sum() - ((seed > 0) & (p == seed)).sum() for seed in seeds) for p in made]
    assert moved[0] == 1
    assert max(moved) > 1


def digits_of(cells):
    return "".join(map(str, cells))


def test_without_hard_puzzles_there_is_nothing_to_begin_with(tmp_path):
    """A training file of easy puzzles is a DataError that says so; boards of another size are a ConfigError."""
    file = tmp_path / "easy.csv"
    solution = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    file.write_text(f"question,answer\n{SINGLES_DO},{solution}\n", encoding="utf-8")
    with pytest.raises(DataError, match="can all be solved by one level"):
        Sudoku(SudokuConfig(test=5, validation=0, extreme=5, train_file=str(file))).examples("train")
    for option in ("extreme", "tridagon"):
        for options in ({"box": "2x3", option: 1}, {option: -1}):
            with pytest.raises(ConfigError, match=option):
                SudokuConfig(**options)
