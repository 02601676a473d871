"""The rules of mazes: shortest paths, the one of them that is the label, and the symmetries.

A maze is [L] tokens, row by row, of n x n cells. For a search it becomes one large integer, a bit a cell, each row with
a bit of wall behind it so that no step leads round the edge. One step of a search is then a handful of operations on
that number: 0.1 ms for a 30x30 maze with a path of 110 moves, where arrays would need ten times as long.
"""

from __future__ import annotations

from functools import cache
from math import isqrt
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "GOAL",
    "OPEN",
    "PATH",
    "START",
    "WALL",
    "canonical",
    "first_moves",
    "flaw",
    "is_solution",
    "on_shortest",
    "solve",
    "turns",
]

# The tokens, as in the data of HRM and TRM; 0 is padding, which no maze has.
WALL = 1
OPEN = 2
START = 3
GOAL = 4
PATH = 5

Cells: TypeAlias = npt.NDArray[Any]
"""Tokens [L] of any integer type."""

Flags: TypeAlias = npt.NDArray[np.bool_]


def _side(cells: npt.NDArray[Any]) -> int:
    return isqrt(len(cells))


def _to_bits(flags: Flags) -> int:
    """A set of cells [L] as a number."""
    n = _side(flags)
    padded = np.zeros((n, n + 1), dtype=np.bool_)
    padded[:, :n] = flags.reshape(n, n)
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def _to_flags(bits: int, n: int) -> Flags:
    """A set of cells of an n x n maze, given as a number, as [L]."""
    raw = np.frombuffer(bits.to_bytes((n * (n + 1) + 7) // 8, "little"), dtype=np.uint8)
    padded = np.unpackbits(raw, count=n * (n + 1), bitorder="little").reshape(n, n + 1)
    return padded[:, :n].ravel().astype(np.bool_)


def _layers(ground: int, source: int, target: int, n: int) -> list[int]:
    """The cells at 0, 1, 2, ... moves from the source, as far as the target; none if that is out of reach."""
    wide = n + 1
    ground &= ~source
    found, here = [source], source
    while not here & target:
        here = (here << 1 | here >> 1 | here << wide | here >> wide) & ground
        if not here:
            return []
        ground ^= here
        found.append(here)
    return found


def _search(maze: Cells, source: int, target: int) -> list[int]:
    return _layers(_to_bits(maze != WALL), _to_bits(maze == source), _to_bits(maze == target), _side(maze))


def solve(maze: Cells, moves: int | None = None) -> Cells:
    """The maze with the label's path marked; as it is where there is no way.

    Or as much of it as can be known after so many moves of a wave that starts from G and, where it meets S, goes back
    along the path.

    Of all shortest paths it is the one that, walked from S, goes down where it can, else left, else right, else up: the
    rule that all labels of the published Maze-Hard follow.
    """
    n = _side(maze)
    to_goal = _search(maze, GOAL, START)
    answer = maze.copy()
    here, trail = _to_bits(maze == START), 0
    path = to_goal[-2:0:-1]  # from the cells next to S to those next to G
    if moves is not None:
        path = path[: max(moves - len(to_goal) + 1, 0)]
    for nearer in path:
        steps = (here << n + 1, here >> 1, here << 1, here >> n + 1)
        here = next(step for step in steps if step & nearer)
        trail |= here
    answer[_to_flags(trail, n)] = PATH
    return answer


def first_moves(maze: Cells, most: int) -> Cells:
    """The first move of the label's path to G from each cell at most `most` moves away: 0 down, 1 left, 2 right, 3 up.

    4 where more moves are needed, or no way leads to G; -1 at walls and at G.
    """
    n = _side(maze)
    here = _to_bits(maze == GOAL)
    ground = _to_bits(maze != WALL) & ~here
    moves = [0, 0, 0, 0]
    for _ in range(most):
        if not here:
            break
        nearer, here = here, 0
        # Who goes down to a nearer cell stands above it, and so on, in the order of the rule.
        for move, beside in enumerate((nearer >> n + 1, nearer << 1, nearer >> 1, nearer << n + 1)):
            new = beside & ground
            moves[move] |= new
            here |= new
            ground ^= new
    found = np.full_like(maze, -1)
    for move, cells in enumerate((*moves, ground)):
        found[_to_flags(cells, n)] = move
    return found


def is_solution(maze: Cells, answer: Cells) -> bool:
    """Whether an answer is the maze with exactly one shortest path marked, whichever."""
    if answer.shape != maze.shape or not np.array_equal(_unmarked(answer), _unmarked(maze)):
        return False
    moves = len(_search(maze, START, GOAL)) - 1
    if moves < 0 or int((answer == PATH).sum()) != moves - 1:
        return False
    # As many cells as a shortest path has, and a way along them: they are one.
    return bool(_search(np.where(answer == OPEN, WALL, answer), START, GOAL))


def on_shortest(maze: Cells) -> Flags:
    """The cells [L] between S and G through which a shortest path leads."""
    from_start, to_goal = _search(maze, START, GOAL), _search(maze, GOAL, START)
    found = 0
    for there, back in zip(from_start[1:-1], to_goal[-2:0:-1], strict=True):
        found |= there & back
    return _to_flags(found, _side(maze))


def flaw(maze: Cells) -> str | None:
    """What is wrong with a maze, in a few words, or None."""
    for token, name in ((START, "S"), (GOAL, "G")):
        count = int((maze == token).sum())
        if count != 1:
            return f"it has {count or 'no'} {name} and must have one"
    return None if _search(maze, START, GOAL) else "no way leads from S to G"


def _unmarked(maze: Cells) -> Cells:
    return np.where(maze == PATH, OPEN, maze)


@cache
def turns(n: int) -> npt.NDArray[np.intp]:
    """The rotations and reflections of an n x n maze, [8, L]: cell i of the new maze is cell [k, i] of the old one."""
    cells = np.arange(n * n).reshape(n, n)
    turned = [np.rot90(side, k) for side in (cells, cells.T) for k in range(4)]
    return np.stack([cells.ravel() for cells in turned])


def canonical(maze: Cells) -> bytes:
    """A text that a maze shares with its rotations, its reflections, and these with S and G exchanged, and no other."""
    exchanged = np.array([0, WALL, OPEN, GOAL, START], dtype=np.uint8)
    images = maze.astype(np.uint8)[turns(_side(maze))]
    return min(bytes(image) for image in (*images, *exchanged[images]))
