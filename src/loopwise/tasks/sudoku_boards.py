"""Sudoku boards of any box shape: a solver, a generator of solution grids and of puzzles, all on many boards at once.

A board is an array of candidate masks: bit d - 1 of a cell says that digit d is still possible there. Many boards lie
side by side, `[cells, F]`, the boards along the last axis, so that one numpy call works on thousands of them. Logic is
naked singles (a cell with one candidate) and hidden singles (a digit with one cell in a row, column or box), repeated
until nothing changes; then one cell is split into a guess and its opposite, depth first over blocks of boards.

Outside the solver a grid is `[cells]` digits, row by row, 0 for a blank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loopwise.errors import ConfigError

__all__ = [
    "WIDTH",
    "Board",
    "Grids",
    "Masks",
    "dig",
    "is_solution",
    "propagate",
    "random_grids",
    "restore_clues",
    "solutions",
    "solve",
]

Grids: TypeAlias = npt.NDArray[np.uint8]
"""Digits [N, cells], 0 for a blank."""

Masks: TypeAlias = npt.NDArray[Any]
"""Candidate masks [cells, F] of the smallest unsigned type that holds them."""

Flags: TypeAlias = npt.NDArray[np.bool_]
Index: TypeAlias = npt.NDArray[np.intp]

WIDTH = 4096
"""Boards that are worked on at once: enough to hide the cost of a numpy call, few enough for the cache."""

NARROW = 64
"""Up to so many boards a numpy call costs the same, so a search may as well look at several of its branches."""


@dataclass(frozen=True)
class Board:
    """The geometry of a board: n rows and n columns, cut into boxes of `box_rows` x `box_columns`, n their product."""

    box_rows: int
    box_columns: int

    @classmethod
    def parse(cls, box: str) -> Board:
        """Read a box shape such as `2x3`. Raises ConfigError."""
        rows, _, columns = box.partition("x")
        if not (rows.isdecimal() and columns.isdecimal()):
            raise ConfigError(f"box {box!r} is not a shape: write rows x columns of a box, such as 2x3")
        board = cls(int(rows), int(columns))
        if not 4 <= board.side <= 25:
            raise ConfigError(f"box {box!r} makes a board of side {board.side}; the side must be 4 to 25")
        return board

    @property
    def side(self) -> int:
        """The number n of rows, of columns, of boxes and of digits."""
        return self.box_rows * self.box_columns

    @property
    def cells(self) -> int:
        """The number of cells, n * n."""
        return self.side * self.side

    @property
    def square(self) -> bool:
        """Whether a box is square, so that a transposed board is a board again."""
        return self.box_rows == self.box_columns

    @property
    def symbols(self) -> str:
        """How digits are written, in order: 1 to 9, then A to P."""
        return "123456789ABCDEFGHIJKLMNOP"[: self.side]

    @cached_property
    def unit_of(self) -> Index:
        """The units of every cell, [3, cells]: its row, its column (from n on), its box (from 2n on)."""
        row, column = np.divmod(np.arange(self.cells), self.side)
        box = row // self.box_rows * self.box_rows + column // self.box_columns
        return np.stack([row, self.side + column, 2 * self.side + box])

    @cached_property
    def units(self) -> Index:
        """The cells of every unit, [3n, n]: rows, columns, boxes."""
        return np.argsort(self.unit_of, axis=1, kind="stable").reshape(3 * self.side, self.side)

    @cached_property
    def bits(self) -> Masks:
        """The mask of every digit, [n + 1]; of a blank, all candidates."""
        kind = np.uint8 if self.side <= 8 else np.uint16 if self.side <= 16 else np.uint32
        masks = [2**self.side - 1] + [1 << d for d in range(self.side)]
        return np.array(masks, dtype=kind)


def is_solution(board: Board, grids: npt.NDArray[Any]) -> Flags:
    """Whether every row, column and box of the grids [..., cells] has every digit once: [...]."""
    in_range = np.asarray(((grids >= 1) & (grids <= board.side)).all(axis=-1))
    masks = board.bits[np.where(in_range[..., None], grids, 1)]
    seen = np.bitwise_or.reduce(masks[..., board.units], axis=-1)
    return np.asarray(in_range & np.asarray(seen == board.bits[0]).all(axis=-1))


def _occurrences(board: Board, masks: Masks) -> tuple[Masks, Masks]:
    """The digits that occur in a unit at least once, and at least twice: two arrays [3n, F]."""
    once = masks[board.units[:, 0]]
    twice = np.zeros_like(once)
    for cells in board.units[:, 1:].T:
        here = masks[cells]
        twice |= once & here
        once |= here
    return once, twice


def _of_cell(board: Board, of_unit: Masks) -> Masks:
    """What the row, the column or the box of a cell has: [cells, F] from [3n, F]."""
    row, column, box = board.unit_of
    found: Masks = of_unit[row]
    found |= of_unit[column]
    found |= of_unit[box]
    return found


def _narrow(board: Board, masks: Masks) -> tuple[Masks, Flags]:
    """One pass of naked and hidden singles: new masks [cells, F], and which boards [F] are not contradicted."""
    # Masks are chosen by products with flags: np.where made this twice as slow and more.
    singles = masks * ((masks & (masks - 1)) == 0)
    once, twice = _occurrences(board, singles)
    alive = ~(twice != 0).any(axis=0)
    masks = (masks & ~_of_cell(board, once)) | singles
    once, twice = _occurrences(board, masks)
    alive &= (once == board.bits[0]).all(axis=0)
    hidden = _of_cell(board, once & ~twice)
    hidden &= masks
    masks = hidden | (masks * (hidden == 0))
    alive &= (masks != 0).all(axis=0)
    # The only cell left for two digits; the mask keeps both, so it has to be told here.
    alive &= ((hidden & (hidden - 1)) == 0).all(axis=0)
    return masks, alive


def propagate(board: Board, masks: Masks, owner: Index) -> tuple[Masks, Index]:
    """Repeat the singles until nothing changes, on boards [cells, F] with a number [F] each to know them by.

    Contradicted boards are dropped, the others come back reordered.
    """
    finished: list[tuple[Masks, Index]] = [(masks[:, :0], owner[:0])]
    while owner.size:
        after, alive = _narrow(board, masks)
        changed = (after != masks).any(axis=0)
        for_good = np.flatnonzero(alive & ~changed)
        if for_good.size:
            finished.append((after.take(for_good, axis=1), owner[for_good]))
        going_on = np.flatnonzero(alive & changed)
        masks, owner = after.take(going_on, axis=1), owner[going_on]
    return np.concatenate([m for m, _ in finished], axis=1), np.concatenate([o for _, o in finished])


@cache
def _popcounts() -> npt.NDArray[np.uint8]:
    """The number of bits of every 16-bit number; numpy has its own only since 2.0."""
    numbers = np.arange(1 << 16)
    counts: npt.NDArray[np.uint8] = np.sum([(numbers >> bit) & 1 for bit in range(16)], axis=0).astype(np.uint8)
    return counts


def _count_candidates(masks: Masks) -> npt.NDArray[np.uint8]:
    wide = masks.dtype.itemsize > 2
    counts: npt.NDArray[np.uint8] = _popcounts()[masks & 0xFFFF if wide else masks]
    return counts + _popcounts()[masks >> 16] if wide else counts


def _branch(masks: Masks, rng: np.random.Generator | None) -> tuple[Masks, Masks]:
    """Split the cell with the fewest candidates: boards [cells, F] with a guess made, boards with it excluded."""
    counts = _count_candidates(masks).astype(np.uint16)
    counts[counts == 1] = 255
    columns = np.arange(masks.shape[1])
    if rng is not None:  # the high byte counts, the low byte breaks ties
        counts = ((counts << 8) + rng.integers(0, 256, size=counts.shape, dtype=np.uint16)).astype(np.uint16)
    cell = counts.argmin(axis=0)
    candidates = masks[cell, columns]
    left = candidates.copy()
    if rng is not None:
        skip = (rng.random(columns.size) * _count_candidates(candidates)).astype(np.intp)
        for k in range(int(skip.max(initial=0))):
            left = np.where(k < skip, left & (left - 1), left)
    guess = left & (~left + 1)  # the lowest bit
    guessed, excluded = masks.copy(), masks.copy()
    guessed[cell, columns] = guess
    excluded[cell, columns] = candidates & ~guess
    return guessed, excluded


Stack: TypeAlias = list[tuple[Masks, Index]]


def _pop(stack: Stack, width: int) -> tuple[Masks, Index]:
    """Take up to `width` boards from the end of the stack."""
    taken: Stack = []
    room = width
    while stack and room:
        masks, owner = stack.pop()
        if owner.size > room:
            stack.append((masks[:, :-room], owner[:-room]))
            masks, owner = masks[:, -room:], owner[-room:]
        taken.append((masks, owner))
        room -= owner.size
    if len(taken) == 1:
        return taken[0]
    return np.concatenate([m for m, _ in taken], axis=1), np.concatenate([o for _, o in taken])


def solutions(
    board: Board, masks: Masks, limit: int, rng: np.random.Generator | None = None, rounds: int | None = None
) -> Iterator[tuple[Index, Grids]]:
    """Find the solutions of boards [cells, P]: in parts, which board each is of [K], and the grids [K, cells].

    A board that has `limit` solutions is searched no further; a few more may have come by then.
    """
    counts = np.zeros(masks.shape[1], dtype=np.intp)
    stack: Stack = [(masks, np.arange(masks.shape[1]))]
    while stack and (rounds is None or rounds > 0):
        rounds = None if rounds is None else rounds - 1
        missing = int(np.maximum(limit - counts, 0).sum())
        masks, owner = _pop(stack, min(WIDTH, max(NARROW, missing)))
        wanted = np.flatnonzero(counts[owner] < limit)
        if wanted.size < owner.size:
            masks, owner = masks[:, wanted], owner[wanted]
        masks, owner = propagate(board, masks, owner)
        solved = ((masks & (masks - 1)) == 0).all(axis=0)
        if solved.any():
            np.add.at(counts, owner[solved], 1)
            digits = _count_candidates(masks[:, solved] - 1) + 1  # a mask 1 << d - 1 has d - 1 ones below its bit
            yield owner[solved], digits.T
            masks, owner = masks[:, ~solved], owner[~solved]
        if owner.size:
            guessed, excluded = _branch(masks, rng)
            stack += [(excluded, owner), (guessed, owner)]


def solve(
    board: Board, masks: Masks, limit: int = 2, rng: np.random.Generator | None = None, rounds: int | None = None
) -> tuple[Index, Grids]:
    """Count the solutions of boards [cells, P] up to `limit`, and return the last found of each.

    With `rng` the search guesses at random. After `rounds` steps of the search, where given, it stops and what it has
    found so far counts.

    Returns:
        counts [P], 0 to `limit`, and grids [P, cells], all 0 where none was found.

    """
    counts = np.zeros(masks.shape[1], dtype=np.intp)
    grids = np.zeros((masks.shape[1], board.cells), dtype=np.uint8)
    for owner, found in solutions(board, masks, limit, rng, rounds):
        np.add.at(counts, owner, 1)
        grids[owner] = found
    return np.minimum(counts, limit), grids


def random_grids(board: Board, count: int, rng: np.random.Generator) -> Grids:
    """Draw `count` solution grids [count, cells] by random guessing; every grid can occur, not all equally often."""
    found: list[Grids] = []
    missing = count
    while missing:
        block = min(missing, WIDTH)
        masks = np.full((board.cells, block), board.bits[0])
        masks[: board.side] = board.bits[1 + rng.random((block, board.side)).argsort(axis=1)].T
        # A search that made a bad guess early on would take for ever on a large board: it is given up and redrawn.
        counts, grids = solve(board, masks, limit=1, rng=rng, rounds=4 * board.cells)
        found.append(grids[counts > 0])
        missing -= int((counts > 0).sum())
    return np.concatenate(found) if found else np.zeros((0, board.cells), dtype=np.uint8)


def dig(board: Board, solutions: Grids, order: npt.NDArray[Any]) -> Grids:
    """Remove clues from solution grids [P, cells] while the solution stays the only one: puzzles [P, cells].

    `order` [P, cells] says when a clue is tried, the lowest first: random numbers, for puzzles of any kind.

    Up to side 9 the puzzles are minimal: no further clue can go. On a larger board a proof of uniqueness can take
    for ever, so a clue goes only if singles alone refute every other digit in its cell: one solution, but not minimal.
    """
    count = len(solutions)
    puzzles = solutions.copy()
    rows = np.arange(count)
    for cell in order.argsort(axis=1).T:
        digit = solutions[rows, cell]
        masks = board.bits[puzzles].T
        masks[cell, rows] = board.bits[0] & ~board.bits[digit]  # another solution would have another digit here
        if board.side <= 9:
            another = solve(board, masks, limit=1)[0] > 0
        else:
            another = np.zeros(count, dtype=np.bool_)
            another[propagate(board, masks, rows)[1]] = True
        gone = np.flatnonzero(~another)
        puzzles[gone, cell[gone]] = 0
    return puzzles


def restore_clues(puzzles: Grids, solutions: Grids, most: int, rng: np.random.Generator) -> Grids:
    """Put 0 to `most` clues, as many as chance has it, back into puzzles [P, cells]: [P, cells]."""
    keys = np.where(puzzles == 0, rng.random(puzzles.shape), 2.0)
    rank = keys.argsort(axis=1).argsort(axis=1)
    number = rng.integers(0, most + 1, size=(len(puzzles), 1))
    return np.where(rank < number, solutions, puzzles)
