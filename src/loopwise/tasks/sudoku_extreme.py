"""Extreme Sudoku puzzles, made of known ones: move a clue, and keep what is as hard again.

The hard part of Sudoku-Extreme is T&E(2): one level of trial and error does not solve it. Trial and error assumes a
candidate and follows the singles; one that leads to a contradiction is struck out, and so on until none does. Random
minimal puzzles are hardly ever so, but beside one that is there are many: without one of its clues it has some hundred
solutions, and a clue in another place that only one of these has makes it a puzzle again.
"""

from __future__ import annotations

import numpy as np

from loopwise.tasks.sudoku_boards import WIDTH, Board, Flags, Grids, Index, Masks, propagate, solutions, solve

__all__ = ["extremes", "is_minimal", "neighbours", "one_level"]

MANY = 256
"""A puzzle with so many solutions once a clue is gone is passed over: the more there are, the fewer clues decide."""


def one_level(board: Board, puzzles: Grids) -> Flags:
    """Which puzzles [P] of [P, cells] one level of trial and error solves, with singles as its only logic: T&E(1)."""
    solved = np.zeros(len(puzzles), dtype=np.bool_)
    masks, owner = propagate(board, board.bits[puzzles].T, np.arange(len(puzzles)))
    while owner.size:
        done = ((masks & (masks - 1)) == 0).all(axis=0)
        solved[owner[done]] = True
        masks, owner = masks[:, ~done], owner[~done]
        wrong = _contradicted(board, masks)
        going_on = wrong.any(axis=0)
        masks, owner = propagate(board, (masks & ~wrong)[:, going_on], owner[going_on])
    return solved


def _contradicted(board: Board, masks: Masks) -> Masks:
    """The candidates [cells, F] that lead to a contradiction when they are assumed, in cells that have several."""
    wrong = np.zeros_like(masks)
    several = (masks & (masks - 1)) != 0
    for bit in board.bits[1:]:
        cells, columns = np.nonzero(several & ((masks & bit) != 0))
        for at in range(0, len(cells), WIDTH):
            cell, column = cells[at : at + WIDTH], columns[at : at + WIDTH]
            number = np.arange(len(cell))
            assumed = masks[:, column]
            assumed[cell, number] = bit
            dead = np.ones(len(cell), dtype=np.bool_)
            dead[propagate(board, assumed, number)[1]] = False
            wrong[cell[dead], column[dead]] |= bit
    return wrong


def is_minimal(board: Board, puzzles: Grids) -> Flags:
    """Which puzzles [P] of [P, cells], of one solution each, have another one without any of their clues."""
    owner, cell = np.nonzero(puzzles)
    masks = board.bits[puzzles[owner]].T
    # Another solution has another digit in the cell of the clue.
    masks[cell, np.arange(len(owner))] = board.bits[0] & ~board.bits[puzzles[owner, cell]]
    minimal = np.ones(len(puzzles), dtype=np.bool_)
    minimal[owner[solve(board, masks, limit=1)[0] == 0]] = False
    return minimal


def neighbours(board: Board, puzzles: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Take a clue from each puzzle [P, cells] and put one elsewhere so that there is one solution again, in all ways.

    Returns the new puzzles and their solutions, [N, cells] each; none for a puzzle that has MANY solutions without
    its clue.
    """
    fewer, rows = puzzles.copy(), np.arange(len(puzzles))
    taken = np.where(puzzles > 0, rng.random(puzzles.shape), 2.0).argmin(axis=1)
    fewer[rows, taken] = 0
    owner, grids = _all_solutions(board, fewer)
    place = board.side * np.arange(board.cells) + grids.astype(np.intp) - 1
    place += board.side * board.cells * owner[:, None]  # a number for each digit in each cell of each puzzle
    left = np.bincount(place.ravel(), minlength=board.side * fewer.size)  # how many solutions have it
    number, cell = np.nonzero((left[place] == 1) & (np.arange(board.cells) != taken[owner][:, None]))
    found = fewer[owner[number]]
    found[np.arange(len(number)), cell] = grids[number, cell]
    return found, grids[number]


def _all_solutions(board: Board, puzzles: Grids) -> tuple[Index, Grids]:
    """The solutions [K, cells] of the puzzles [P, cells] with fewer than MANY, after which puzzle each is of [K]."""
    parts = list(solutions(board, board.bits[puzzles].T, MANY))
    owner = np.concatenate([part[0] for part in parts])
    grids = np.concatenate([part[1] for part in parts])
    few = np.bincount(owner, minlength=len(puzzles))[owner] < MANY
    return owner[few], grids[few]


def extremes(board: Board, seeds: Grids, count: int, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Look beside `count` of the seeds [S, cells], drawn at random, for minimal puzzles that are not T&E(1).

    Returns them and their solutions, the only ones, [N, cells] each; N is about as large as `count`.
    """
    puzzles, solved = neighbours(board, seeds[rng.integers(len(seeds), size=count)], rng)
    hard = ~one_level(board, puzzles)
    puzzles, solved = puzzles[hard], solved[hard]
    minimal = is_minimal(board, puzzles)
    return puzzles[minimal], solved[minimal]
