"""The symmetries of Sudoku: draw one, tell by a number whether two puzzles may be the same, and prove it.

The group: permute the digits; the bands (rows of boxes) and the rows in each; the stacks (columns of boxes) and the
columns in each; transpose, where boxes are square. For 9x9 it has 9! * 2 * 6**8, about 1.2e12, elements.

`signature` is colour refinement: a cell's colour is made anew from its own, and from the colours of its row, column,
box, band, stack and digit, each of which is a sum over its cells, so that nothing depends on an order. Equal puzzles up
to symmetry have equal signatures; that different ones differ holds on all puzzles that were tried, not always.
`equivalent` decides it: it searches for the symmetry itself, led by the same colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loopwise.tasks.sudoku_boards import Board, Grids, Index

__all__ = ["Symmetry", "draw_symmetry", "equivalent", "grid_hashes", "mix64", "same", "signature", "transformed"]

Hashes: TypeAlias = npt.NDArray[np.uint64]

ROUNDS = 5
BLOCK = 2048


def mix64(x: npt.NDArray[Any] | Sequence[int]) -> Hashes:
    """Scatter integers over 64 bits: the finaliser of splitmix64 (Steele, Lea and Flood 2014). Keeps the shape."""
    # Arithmetic modulo 2**64 is what is wanted: silent for arrays, but numpy warns of it for scalars.
    z = np.array(x, dtype=np.uint64, ndmin=1) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z.reshape(np.shape(x))


@cache
def _weights(cells: int) -> Hashes:
    return mix64(np.arange(cells)) | np.uint64(1)


def grid_hashes(grids: npt.NDArray[Any]) -> Hashes:
    """A 64-bit number [...] for grids of digits [..., cells]; the same in every process and on every machine."""
    return np.asarray(grids.astype(np.uint64) @ _weights(grids.shape[-1]))


class Symmetry(NamedTuple):
    """Cell i of the new grid is cell `cells[i]` of the old one; digit d becomes `digits[d - 1]`."""

    cells: Index  # [cells]
    digits: Index  # [n], 1 to n


def _order(groups: int, size: int, uniform: npt.NDArray[np.float64]) -> Index:
    """An order of groups * size lines, groups whole, from as many random numbers and `groups` more."""
    within = uniform[groups:].reshape(groups, size).argsort(axis=1)
    return (within + np.arange(0, groups * size, size)[:, None])[uniform[:groups].argsort()].ravel()


def draw_symmetry(board: Board, rng: np.random.Generator) -> Symmetry:
    """Draw one of all the symmetries of a board, each equally likely."""
    n, bands, stacks = board.side, board.box_columns, board.box_rows
    # Augmentation calls this for every example: all random numbers in one call, a few small sorts.
    uniform = rng.random(3 * n + bands + stacks + 1)
    end = n + bands + n
    rows = _order(bands, board.box_rows, uniform[n:end])
    columns = _order(stacks, board.box_columns, uniform[end:-1])
    turn = board.square and uniform[-1] < 0.5
    cells = n * rows[:, None] + columns
    if turn:
        cells = cells.T
    return Symmetry(cells.ravel(), uniform[:n].argsort() + 1)


def transformed(grids: npt.NDArray[Any], symmetry: Symmetry) -> npt.NDArray[Any]:
    """Apply a symmetry to grids of digits [..., cells]."""
    digits = np.concatenate([[0], symmetry.digits]).astype(grids.dtype)
    return np.asarray(digits[grids[..., symmetry.cells]])


def _cycle_colours(solutions: Grids, box_rows: int) -> Hashes:
    """A first colour for every cell [N, n, n] from the solution: how its row permutes into the others of its band.

    Without it all cells of a full grid would look alike. Taking two rows as a permutation of the columns (go to where
    the digit below stands in this row), the lengths of the cycles survive every symmetry.
    """
    count, n, _ = solutions.shape
    place = solutions.argsort(axis=2)  # [N, row, digit - 1] -> column
    colours = np.zeros(solutions.shape, dtype=np.uint64)
    row = np.arange(n)
    for step in range(1, box_rows):
        other = row // box_rows * box_rows + (row + step) % box_rows
        onward = np.take_along_axis(place, solutions[:, other].astype(np.intp) - 1, axis=2)
        here, length = onward, np.zeros((count, n, n), dtype=np.int64)
        for k in range(1, n + 1):
            length[(here == row) & (length == 0)] = k
            here = np.take_along_axis(onward, here, axis=2)
        colours += mix64(length)
    return colours


def _lines(board: Board, cell: Hashes, salt: int) -> Hashes:
    """The colours of rows, each with that of its band mixed in: [N, n, 1] from [N, n, n]."""
    rows = mix64(cell.sum(axis=2) + np.uint64(salt))
    bands = mix64(rows.reshape(len(rows), -1, board.box_rows).sum(axis=2))
    return mix64(rows * np.uint64(3) + np.repeat(bands, board.box_rows, axis=1))[:, :, None]


def _colours(board: Board, puzzles: Grids, solutions: Grids) -> Hashes:
    """Colours of the cells [N, n, n] after refinement, from digits [N, cells] each."""
    count, n, r, c = len(puzzles), board.side, board.box_rows, board.box_columns
    turned = Board(c, r)
    salt = 1 if board.square else 2  # columns are told from rows unless transposition makes them the same
    grid = solutions.reshape(count, n, n)
    cell = _cycle_colours(grid, r) + np.uint64(salt) * _cycle_colours(grid.swapaxes(1, 2), c).swapaxes(1, 2)
    cell = mix64(cell + (puzzles != 0).reshape(count, n, n).astype(np.uint64))
    by_digit = solutions.argsort(axis=1, kind="stable")  # [N, cells]: the n cells of digit 1, then of digit 2, ...
    digit_of = solutions.astype(np.intp) - 1
    for _ in range(ROUNDS):
        rows = _lines(board, cell, 1)
        columns = _lines(turned, cell.swapaxes(1, 2), salt).swapaxes(1, 2)
        boxes = mix64(cell.reshape(count, c, r, r, c).sum(axis=(2, 4)) + np.uint64(5))
        digits = mix64(np.take_along_axis(cell.reshape(count, -1), by_digit, axis=1).reshape(count, n, n).sum(axis=2))
        around = rows + columns
        around += np.repeat(np.repeat(boxes, r, axis=1), c, axis=2)
        around += np.take_along_axis(digits, digit_of, axis=1).reshape(count, n, n) * np.uint64(7)
        cell = mix64(cell * np.uint64(9) + around)
    return cell


def signature(board: Board, puzzles: Grids, solutions: Grids) -> Hashes:
    """A 64-bit number [N] of puzzles and their solutions [N, cells] that no symmetry changes.

    Of the solutions alone (`signature(board, solutions, solutions)`) it tells families: puzzles cut from one grid. Some
    families have the same number, for full grids are very regular: the 49 kinds of 6x6 grids have 39.
    """
    parts = [
        mix64(_colours(board, puzzles[at : at + BLOCK], solutions[at : at + BLOCK]).sum(axis=(1, 2)))
        for at in range(0, len(puzzles), BLOCK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _arrangements(old: Sequence[bytes], new: Sequence[bytes], size: int) -> Iterator[list[int]]:
    """Orders of the old lines that look like the new ones and keep groups of `size` lines together."""

    def extend(order: list[int]) -> Iterator[list[int]]:
        at = len(order)
        if at == len(new):
            yield order
            return
        first = order[at - at % size] if at % size else None
        for line, look in enumerate(old):
            if look != new[at] or line in order:
                continue
            if first is None:  # a new group: one that is not yet taken
                fits = all(line // size != taken // size for taken in order)
            else:
                fits = line // size == first // size
            if fits:
                yield from extend([*order, line])

    return extend([])


def _looks(lines: Hashes, ordered: bool) -> list[bytes]:
    """How each line [n, n] looks, in the order of its cells or whatever the order."""
    return [(line if ordered else np.sort(line)).tobytes() for line in lines]


def _same_up_to_digits(a: Grids, b: Grids) -> bool:
    pairs = np.unique(a.astype(np.int64).ravel() * 32 + b.ravel())
    return len(pairs) == len(np.unique(a))


def equivalent(board: Board, first: tuple[Grids, Grids], second: tuple[Grids, Grids]) -> bool:
    """Whether a symmetry takes one (puzzle, solution), [cells] each, to the other. Exact; milliseconds."""
    n = board.side
    puzzles, solutions = np.stack([first[0], second[0]]), np.stack([first[1], second[1]])
    colour_a, colour_b = _colours(board, puzzles, solutions)
    grid_a, grid_b = solutions.reshape(2, n, n)
    for turn in (False, True) if board.square else (False,):
        colour, grid = (colour_a.T, grid_a.T) if turn else (colour_a, grid_a)
        for rows in _arrangements(_looks(colour, False), _looks(colour_b, False), board.box_rows):
            # The colour tells a given from a blank, so columns of equal looks have their givens in the same places.
            for columns in _arrangements(_looks(colour[rows].T, True), _looks(colour_b.T, True), board.box_columns):
                if _same_up_to_digits(grid[rows][:, columns], grid_b):
                    return True
    return False


def same(board: Board, first: tuple[Grids, Grids], second: tuple[Grids, Grids]) -> list[tuple[int, int]]:
    """All pairs (i, j) such that a symmetry takes puzzle i of the first to puzzle j of the second, by number.

    Each side is (puzzles, solutions), [N, cells] each. Exact: the signature proposes, `equivalent` decides.
    """
    rows: dict[int, list[int]] = {}
    for i, mark in enumerate(signature(board, *first).tolist()):
        rows.setdefault(mark, []).append(i)
    return [
        (i, j)
        for j, mark in enumerate(signature(board, *second).tolist())
        for i in rows.get(mark, ())
        if equivalent(board, (first[0][i], first[1][i]), (second[0][j], second[1][j]))
    ]
