"""Make the shipped tridagons: python scripts/tridagons.py PUZZLES.csv[.gz] TRAIN.csv.gz VALIDATION.csv.gz

PUZZLES, with columns question and answer, must have hard ones with a clue each of three digits that stand crosswise in
three of four boxes; of the hard ones that we have 1 in 120 is so. From such a puzzle the clue of one of the three is
taken, clues are put back until there is one solution again, and the spare ones taken out: one in 900 is still hard.
Beside each that is found there are more, as `--task.extreme` finds them: some 7 a second on one core. What comes from a
fifth of the beginnings goes to VALIDATION, unless TRAIN has its solution.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loopwise.tasks.sudoku_boards import Board, Flags, Grids, dig
from loopwise.tasks.sudoku_data import Puzzles, families, read_csv
from loopwise.tasks.sudoku_extreme import is_minimal, neighbours, one_level
from loopwise.tasks.sudoku_symmetry import signature

BOARD = Board.parse("3x3")
BLOCK = 100
PATIENCE = 500


def scarce_digits(puzzles: Grids) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The three digits [N, 3] with the fewest clues, and how many they have [N, 3], fewest first."""
    clues = np.stack([(puzzles == digit).sum(axis=1) for digit in range(1, 10)], axis=1)
    order = clues.argsort(axis=1, kind="stable")[:, :3]
    return order + 1, np.take_along_axis(clues, order, axis=1)


def crosswise(found: Puzzles) -> Flags:
    """Whether the scarce digits share no row and no column of a box, in three of four boxes that form a rectangle."""
    digits, _ = scarce_digits(found.puzzles)
    scarce = (found.solutions[:, :, None] == digits[:, None, :]).any(axis=2).reshape(-1, 3, 3, 3, 3)
    box = (scarce.sum(axis=2) == 1).all(axis=3) & (scarce.sum(axis=4) == 1).all(axis=2)  # [N, bands, stacks]
    rectangles = [np.delete(np.delete(box, i, 1), j, 2).sum(axis=(1, 2)) for i in range(3) for j in range(3)]
    return np.asarray(np.max(rectangles, axis=0) >= 3)


def tridagons(found: Puzzles) -> Flags:
    """Which are: 0, 1 and 1 clues of three digits that stand crosswise, minimal, and trial and error fails."""
    kept = np.zeros(len(found.puzzles), dtype=np.bool_)
    left = np.flatnonzero((scarce_digits(found.puzzles)[1] == [0, 1, 1]).all(axis=1))
    left = left[crosswise(found.rows(left))]
    left = left[~one_level(BOARD, found.puzzles[left])]
    kept[left[is_minimal(BOARD, found.puzzles[left])]] = True
    return kept


def without_a_digit(seeds: Puzzles, rng: np.random.Generator) -> Puzzles:
    """Give a scarce digit up: the clues of the seeds stay as far as they can, others come from the solutions."""
    digits, _ = scarce_digits(seeds.puzzles)
    lost = rng.permuted(digits, axis=1)[:, 0]
    # The earlier a cell is tried, the less likely is its clue to stay.
    order = rng.random(seeds.puzzles.shape)
    order[seeds.puzzles > 0] += 1
    order[(seeds.solutions[:, :, None] == digits[:, None, :]).any(axis=2) & (seeds.puzzles == 0)] -= 1
    order[seeds.solutions == lost[:, None]] -= 3
    return Puzzles(dig(BOARD, seeds.solutions, order), seeds.solutions)


def make(seeds: Puzzles, beginnings: int, count: int, rng: np.random.Generator) -> tuple[Puzzles, npt.NDArray[np.intp]]:
    """Find so many without a digit, then those beside them, up to `count`; also which seed each comes from [N].

    Families, puzzles with one solution up to symmetry, are looked beside alike often.
    """
    found = seeds.rows(np.arange(0))
    origin, marks, family = np.zeros(0, dtype=np.intp), *np.zeros((2, 0), dtype=np.uint64)
    idle = 0
    while len(origin) < count and idle < PATIENCE:
        if len(origin) < beginnings:
            fresh = without_a_digit(seeds, rng)
            kept = np.flatnonzero(tridagons(fresh))
            fresh, seed = fresh.rows(kept), kept
        else:
            share = alike_often(family)
            chosen = rng.choice(len(family), size=BLOCK, p=share / share.sum())
            near = found.puzzles[chosen]
            fresh = Puzzles(*neighbours(BOARD, near, rng))
            fresh = fresh.rows(tridagons(fresh))
            # It comes from the one that it has all clues but one of.
            seed = origin[chosen[((fresh.puzzles[:, None] == near) & (near > 0)).sum(axis=2).argmax(axis=1)]]
        mark, first = np.unique(signature(BOARD, *fresh), return_index=True)
        unseen = ~np.isin(mark, marks)
        fresh = fresh.rows(first[unseen])
        idle = 0 if unseen.any() else idle + 1
        found, origin = found.and_also(fresh), np.concatenate([origin, seed[first[unseen]]])
        marks, family = np.concatenate([marks, mark[unseen]]), np.concatenate([family, families(BOARD, fresh)])
        print(f"{len(marks)} of {count} found", end="\r", flush=True)
    return found, origin


def alike_often(kind: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Weights [N] by which every kind [N] has the same share."""
    _, number, sizes = np.unique(kind, return_inverse=True, return_counts=True)
    return np.asarray(1 / sizes[number])


def write(found: Puzzles, file: Path) -> None:
    """Write a CSV, the same bytes for the same puzzles."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("question", "answer"))
    for puzzle, solution in zip(*found, strict=True):
        table.writerow(("".join(map(str, puzzle)).replace("0", "."), "".join(map(str, solution))))
    file.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"{file.name}: {len(found.puzzles)} tridagons in {len(np.unique(families(BOARD, found)))} families")


def main() -> None:
    """Read the arguments, make the puzzles, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzles", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--beginnings", type=int, default=15)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    known = read_csv(BOARD, options.puzzles, options.puzzles.name)
    known = known.rows((scarce_digits(known.puzzles)[1] == 1).all(axis=1))
    known = known.rows(crosswise(known))
    print(f"{options.puzzles.name}: {len(known.puzzles)} puzzles to begin with")
    if not len(known.puzzles):
        sys.exit("nothing is written: without one of them there is nothing to begin with; give a longer list")
    found, origin = make(known, options.beginnings, options.count, rng)
    origins = rng.permutation(np.unique(origin))
    held_out = np.isin(origin, origins[: len(origins) // 5])
    if not held_out.any():
        sys.exit(f"nothing is written: {len(origins)} beginnings led on, of which a fifth is held out; ask for more")
    both = np.isin(families(BOARD, found), families(BOARD, found.rows(~held_out)))
    write(found.rows(~held_out), options.train)
    write(found.rows(held_out & ~both), options.validation)


if __name__ == "__main__":
    main()
