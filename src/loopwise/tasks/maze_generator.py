"""Random mazes of the kind of Maze-Hard, at any size, by searches on many mazes at once.

A share of walls between 30 and 50 %, S and G anywhere, kept if the shortest path between them has enough moves. In a
30x30 maze one pair of open cells in 50,000 is 109 moves or more apart, so that drawing S and G first would take about a
second a maze. A search from a cell finds all that are far enough instead, and one of those is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loopwise.tasks.maze_paths import GOAL, OPEN, START, WALL

__all__ = ["MOST", "Mazes", "far_cells", "random_mazes"]

Mazes: TypeAlias = npt.NDArray[np.uint8]
"""Tokens [N, L]."""

Rows: TypeAlias = npt.NDArray[Any]
"""Sets of cells of F mazes, [n, F]: a number for each row of a maze, whose bit c is the cell in column c."""

Flags: TypeAlias = npt.NDArray[np.bool_]

MOST = 64
"""The largest size: a row has to fit into an integer of the machine."""

GRIDS, STARTS = 512, 8
"""Patterns of walls that are drawn at once, and cells of each from which a search starts."""

ENOUGH = 0.07
"""A pattern with so many pairs of S and G a cell, or the most of a draw, is kept; one with fewer in proportion.

So all pairs of all patterns come about equally often. Were every pattern kept that has a pair, paths that are just long
enough would come too often: 111.5 moves on average at 30x30, against 113.2 so and 114.1 in Maze-Hard.
"""


def random_mazes(size: int, least: int, walls_modulo_4: Sequence[int], rng: np.random.Generator) -> Mazes:
    """Draw mazes [N, L] whose shortest path has `least` moves or more; N is what chance has it, often 0.

    Only those come whose number of walls, modulo 4, is one of those given.
    """
    cells = size * size
    share = rng.uniform(0.3, 0.5, size=(GRIDS, 1))
    walls = rng.integers(256, size=(GRIDS, cells), dtype=np.uint8) < (256 * share).astype(np.uint8)
    walls = walls[np.isin(walls.sum(axis=1) % 4, walls_modulo_4)]
    count = len(walls)
    starts = rng.integers(cells, size=(STARTS, count))
    ground = np.tile(_to_rows(~walls, size), STARTS)
    start = np.zeros_like(ground)
    bits = ground.dtype.type(1) << np.arange(size, dtype=ground.dtype)
    start[starts.ravel() // size, np.arange(STARTS * count)] = bits[starts.ravel() % size]
    far = far_cells(ground, start & ground, least).reshape(size, STARTS, count)
    pairs = {number: _to_flags(far[:, :, number], size).nonzero() for number in np.flatnonzero(far.any(axis=(0, 1)))}
    enough = max([ENOUGH * cells, *(len(goals) for _, goals in pairs.values())])
    found = []
    for number, (search, goals) in pairs.items():
        if rng.random() * enough < len(goals):
            pair = rng.integers(len(goals))
            maze = np.where(walls[number], WALL, OPEN).astype(np.uint8)
            maze[starts[search[pair], number]], maze[goals[pair]] = START, GOAL
            found.append(maze)
    return np.array(found, dtype=np.uint8).reshape(-1, cells)


def far_cells(ground: Rows, start: Rows, least: int) -> Rows:
    """The cells [n, F] that are `least` moves or more, at least one, from the start in mazes with this open ground."""
    far = np.zeros_like(ground)
    here, ground, owner, moves = start, ground & ~start, np.arange(ground.shape[1]), 0
    while owner.size:
        around: Rows = (here << 1) | (here >> 1)
        around[1:] |= here[:-1]
        around[:-1] |= here[1:]
        here = around & ground
        ground ^= here
        moves += 1
        if moves >= least:
            far[:, owner] |= here
        if moves % 8 == 0:  # searches that have ended leave; doing it at every move would cost more than it saves
            going = np.flatnonzero(here.any(axis=0))
            here, ground, owner = here.take(going, axis=1), ground.take(going, axis=1), owner[going]
    return far


def _to_rows(flags: Flags, size: int) -> Rows:
    """Sets of cells [F, L] as [n, F]."""
    kind = np.dtype("<u4" if size <= 32 else "<u8")
    padded = np.zeros((len(flags), size, 8 * kind.itemsize), dtype=np.bool_)
    padded[:, :, :size] = flags.reshape(-1, size, size)
    return np.packbits(padded, axis=-1, bitorder="little").view(kind)[:, :, 0].T.copy()


def _to_flags(rows: Rows, size: int) -> Flags:
    """Sets of cells [n, F] as [F, L]."""
    raw = np.ascontiguousarray(rows.T)[:, :, None].view(np.uint8)
    flags = np.unpackbits(raw, axis=-1, count=size, bitorder="little")
    return flags.reshape(rows.shape[1], -1).astype(np.bool_)
