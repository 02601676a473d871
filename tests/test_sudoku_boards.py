"""The solver, the generator and the symmetries of Sudoku, against brute force."""

import numpy as np
import pytest

from loopwise.errors import ConfigError
from loopwise.tasks.sudoku_boards import Board, dig, is_solution, random_grids, restore_clues, solve
from loopwise.tasks.sudoku_symmetry import draw_symmetry, equivalent, grid_hashes, mix64, same, signature, transformed

BOXES = ["2x2", "1x4", "2x3", "3x2", "3x3"]


def generated(box, count, seed=0):
    board, rng = Board.parse(box), np.random.default_rng(seed)
    solutions = random_grids(board, count, rng)
    return board, dig(board, solutions, rng.random(solutions.shape)), solutions


def brute_force(board, digits, limit=2):
    """Count solutions with nothing but the rules: fill the blank with the fewest choices, step back when stuck."""
    n, r, c = board.side, board.box_rows, board.box_columns
    grid = [list(map(int, digits[row * n : row * n + n])) for row in range(n)]

    def choices(i, j):
        box = {grid[a][b] for a in range(i // r * r, i // r * r + r) for b in range(j // c * c, j // c * c + c)}
        return set(range(1, n + 1)) - set(grid[i]) - {grid[a][j] for a in range(n)} - box

    def count(found):
        blanks = [(len(choices(i, j)), i, j) for i in range(n) for j in range(n) if not grid[i][j]]
        if not blanks:
            return found + 1
        _, i, j = min(blanks)
        for digit in choices(i, j):
            grid[i][j] = digit
            found = count(found)
            grid[i][j] = 0
            if found >= limit:
                break
        return found

    return count(0)


@pytest.mark.parametrize("box", ["2x3", "3x2", "3x3", "1x5"])
def test_units_are_rows_columns_and_boxes(box):
    """Units hold every cell three times, and two cells share a box exactly when rows // r and columns // c agree."""
    board = Board.parse(box)
    n = board.side
    np.testing.assert_array_equal(np.bincount(board.units.ravel()), np.full(n * n, 3))
    for unit in board.units[2 * n :]:
        assert len({(cell // n // board.box_rows, cell % n // board.box_columns) for cell in unit}) == 1
    np.testing.assert_array_equal(board.units[:n].ravel(), np.arange(n * n))
    np.testing.assert_array_equal(board.units[n : 2 * n].T.ravel(), np.arange(n * n))


@pytest.mark.parametrize("box", ["", "3", "3x", "x3", "1x3", "0x5", "6x6", "a x b", "-2x2", "3x3x3"])
def test_senseless_box_is_refused(box):
    """A box that is no shape, or makes a board of a side below 4 or above 25, is a ConfigError of one line."""
    with pytest.raises(ConfigError, match=r"^[^\n]*$"):
        Board.parse(box)


@pytest.mark.parametrize("box", [*BOXES, "3x4"])
def test_random_grids_are_solutions(box):
    """Random grids obey the rules and are not all alike."""
    board = Board.parse(box)
    grids = random_grids(board, 50, np.random.default_rng(1))
    assert grids.shape == (50, board.cells)
    assert is_solution(board, grids).all()
    assert len(np.unique(grids, axis=0)) > 30


def test_every_4x4_grid_can_be_drawn():
    """All 288 grids of the 4x4 board occur."""
    grids = random_grids(Board(2, 2), 8000, np.random.default_rng(0))
    assert len(np.unique(grids, axis=0)) == 288


@pytest.mark.parametrize(("box", "count"), [("2x2", 60), ("1x4", 40), ("2x3", 40), ("3x2", 20), ("3x3", 6)])
def test_generated_puzzles_are_unique_and_minimal(box, count):
    """A brute-force search finds one solution of every puzzle, and more once any clue is taken away."""
    board, puzzles, solutions = generated(box, count)
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert brute_force(board, puzzle) == 1
        np.testing.assert_array_equal(puzzle[puzzle > 0], solution[puzzle > 0])
    masks = []
    for puzzle in puzzles:
        for cell in np.flatnonzero(puzzle):
            fewer = puzzle.copy()
            fewer[cell] = 0
            masks.append(board.bits[fewer])
            if board.side < 9:
                assert brute_force(board, fewer) == 2
    counts, _ = solve(board, np.stack(masks, axis=1))
    np.testing.assert_array_equal(counts, 2)


@pytest.mark.parametrize("box", ["3x4", "4x4"])
def test_large_boards_have_one_solution(box):
    """Puzzles above side 9, which are not minimal, still have one solution, and more blanks than clues."""
    board, puzzles, solutions = generated(box, 4)
    counts, found = solve(board, board.bits[puzzles].T)
    np.testing.assert_array_equal(counts, 1)
    np.testing.assert_array_equal(found, solutions)
    assert (puzzles == 0).mean() > 0.5


@pytest.mark.parametrize(("box", "blank"), [("2x2", 0.7), ("2x3", 0.6), ("1x5", 0.8)])
def test_solver_counts_as_brute_force_does(box, blank):
    """On puzzles with none, one or many solutions the solver counts what brute force counts, up to the limit."""
    board, rng = Board.parse(box), np.random.default_rng(3)
    puzzles = random_grids(board, 60, rng)
    puzzles[rng.random(puzzles.shape) < blank] = 0
    spoilt = rng.integers(0, board.cells, 30)  # half get a random digit somewhere: often no solution is left
    puzzles[np.arange(30), spoilt] = rng.integers(1, board.side + 1, 30)
    for limit in (1, 2, 5):
        counts, found = solve(board, board.bits[puzzles].T, limit=limit)
        np.testing.assert_array_equal(counts, [brute_force_of_givens(board, p, limit) for p in puzzles])
        np.testing.assert_array_equal(is_solution(board, found), counts > 0)
        fits = ((puzzles == 0) | (puzzles == found)).all(axis=1)
        assert fits[counts > 0].all()
    assert len(set(counts)) > 3


def brute_force_of_givens(board, puzzle, limit):
    for unit in board.units:
        givens = puzzle[unit][puzzle[unit] > 0]
        if len(set(givens.tolist())) < len(givens):
            return 0
    return brute_force(board, puzzle, limit)


def test_solver_counts_all_4x4_grids():
    """The empty 4x4 board has 288 solutions, and the empty 4x4 Latin square 576."""
    for box, known in (("2x2", 288), ("1x4", 576)):
        board = Board.parse(box)
        counts, _ = solve(board, np.full((16, 1), board.bits[0]), limit=1000)
        assert counts.tolist() == [known]


def test_restore_clues_adds_up_to_most():
    """Restored clues are those of the solution, 0 to `most` of them, and none that was there is lost."""
    board, puzzles, solutions = generated("2x2", 200)
    more = restore_clues(puzzles, solutions, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(np.unique((more > 0).sum(axis=1) - (puzzles > 0).sum(axis=1)), [0, 1, 2, 3])
    np.testing.assert_array_equal(more[puzzles > 0], puzzles[puzzles > 0])
    np.testing.assert_array_equal(more[more > 0], solutions[more > 0])
    assert (solve(board, board.bits[more].T)[0] == 1).all()


@pytest.mark.parametrize("box", [*BOXES, "3x4"])
def test_signature_is_invariant(box):
    """200 random symmetries leave the signature as it is, keep solutions solutions, and change the puzzle itself."""
    board, puzzles, solutions = generated(box, 2)
    rng, known = np.random.default_rng(5), signature(board, puzzles, solutions)
    symmetries = [draw_symmetry(board, rng) for _ in range(200)]
    turned = np.concatenate([transformed(puzzles, s) for s in symmetries])
    solved = np.concatenate([transformed(solutions, s) for s in symmetries])
    assert is_solution(board, solved).all()
    np.testing.assert_array_equal(signature(board, turned, solved), np.tile(known, 200))
    assert len(np.unique(turned, axis=0)) > 50


@pytest.mark.parametrize("box", BOXES)
def test_equivalence_is_decided(box):
    """The check says yes to a puzzle and its image under a symmetry, and no once a clue is given away."""
    board, puzzles, solutions = generated(box, 30)
    rng = np.random.default_rng(6)
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        symmetry = draw_symmetry(board, rng)
        image = transformed(puzzle, symmetry), transformed(solution, symmetry)
        assert equivalent(board, (puzzle, solution), image)
        more = puzzle.copy()
        cell = rng.choice(np.flatnonzero(puzzle == 0))
        more[cell] = solution[cell]
        assert not equivalent(board, (more, solution), image)


def test_the_36_minimal_4x4_puzzles():
    """Signature and equivalence agree that minimal 4x4 puzzles come in 36 kinds: 13, 22 and 1 of 4, 5 and 6 clues."""
    board, puzzles, solutions = generated("2x2", 8000)
    _, first = np.unique(signature(board, puzzles, solutions), return_index=True)
    kinds = [(puzzles[i], solutions[i]) for i in first]
    np.testing.assert_array_equal(np.bincount([int((p > 0).sum()) for p, _ in kinds]), [0, 0, 0, 0, 13, 22, 1])
    for i, one in enumerate(kinds):
        assert not any(equivalent(board, one, other) for other in kinds[:i])


def test_equal_signatures_mean_equivalent_puzzles():
    """Among 600 small puzzles, with many alike, those of equal signature are equivalent."""
    board, puzzles, solutions = generated("2x2", 600)
    puzzles = restore_clues(puzzles, solutions, 4, np.random.default_rng(0))
    known, checked = {}, 0
    for mark, *one in zip(signature(board, puzzles, solutions).tolist(), puzzles, solutions, strict=True):
        if mark in known:
            assert equivalent(board, known[mark], tuple(one))
            checked += 1
        known[mark] = tuple(one)
    assert checked > 50


def test_same_finds_what_is_there_in_disguise():
    """Each of 40 puzzles, disguised and shuffled among others, is found with its number, and nothing else is."""
    board, puzzles, solutions = generated("3x3", 60)
    rng = np.random.default_rng(7)
    order = rng.permutation(40)
    images = [
        (transformed(grids, s) for grids in (puzzles[i], solutions[i]))
        for i in order
        for s in [draw_symmetry(board, rng)]
    ]
    hidden = tuple(np.stack(column) for column in zip(*images, strict=True))
    found = same(board, (puzzles[:20], solutions[:20]), hidden)
    assert found == [(i, j) for j, i in enumerate(order) if i < 20]
    assert same(board, (puzzles[40:], solutions[40:]), hidden) == []
    assert same(board, (puzzles[:0], solutions[:0]), hidden) == []


def test_transposition_counts_only_for_square_boxes():
    """A transposed 9x9 puzzle is the same puzzle; a transposed 4x4 Latin square, whose boxes are rows, is another."""
    board, puzzles, solutions = generated("3x3", 2)
    turn = np.arange(81).reshape(9, 9).T.ravel()
    np.testing.assert_array_equal(
        signature(board, puzzles[:, turn], solutions[:, turn]), signature(board, puzzles, solutions)
    )
    assert equivalent(board, (puzzles[0], solutions[0]), (puzzles[0][turn], solutions[0][turn]))
    board = Board(1, 4)
    solution = np.array([1, 2, 3, 4, 2, 1, 4, 3, 3, 4, 1, 2, 4, 3, 2, 1], dtype=np.uint8)
    puzzle = np.where(np.arange(16) < 3, solution, 0).astype(np.uint8)
    turn = np.arange(16).reshape(4, 4).T.ravel()
    assert not equivalent(board, (puzzle, solution), (puzzle[turn], solution[turn]))


def test_symmetries_are_drawn_evenly():
    """Each of the 128 ways to move the cells of a 4x4 board is drawn about as often as the others."""
    rng, board = np.random.default_rng(0), Board(2, 2)
    drawn = np.array([draw_symmetry(board, rng).cells for _ in range(12_800)])
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 128
    assert 50 < counts.min() <= counts.max() < 160  # 100 expected, standard deviation 10


def test_hashes_are_constants():
    """Hashes are the same in every process: known values (the first is splitmix64's published output for seed 0)."""
    assert mix64([0]).tolist() == [0xE220A8397B1DCDAF]
    board, _, solutions = generated("2x2", 500)
    assert len(np.unique(grid_hashes(solutions))) == len(np.unique(solutions, axis=0))
    grid = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1], dtype=np.uint8)
    assert int(grid_hashes(grid)) == GRID_HASH
    assert signature(board, np.where(grid > 2, grid, 0)[None], grid[None]).tolist() == [SIGNATURE]


GRID_HASH = 10895674841951669296
SIGNATURE = 12109423501084586536
