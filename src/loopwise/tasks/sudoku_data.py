"""Where the puzzles of the Sudoku splits come from, and what keeps the splits apart.

    test        a file, or generated
    validation  held out from the training file, or generated
    train       a file (9x9: the one that travels with the package), or generated; tridagons; neighbours of what is hard

The splits are made in this order, and each leaves out what an earlier one has: the same puzzle under symmetry (equal
`signature`) and the same solution grid, cell by cell. Where a split is generated, a hash of the grid and the seed says
which split the grid belongs to, so that even on a 4x4 board, of 288 grids in all, no split uses up those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loopwise.errors import DataError
from loopwise.tasks.question_csv import read_columns
from loopwise.tasks.sudoku_boards import Board, Flags, Grids, Index, dig, is_solution, random_grids, restore_clues
from loopwise.tasks.sudoku_extreme import extremes, one_level
from loopwise.tasks.sudoku_symmetry import Hashes, grid_hashes, mix64, same, signature
from loopwise.types import SPLITS, Split

__all__ = ["ASSETS", "TRIDAGONS", "Puzzles", "SudokuData", "families", "read_csv", "symbol_codes"]

BLANKS = ".0_*"
UNKNOWN = 255
BLOCK = 2048
ASSETS = resources.files("loopwise.tasks") / "assets"
TRIDAGONS = "sudoku_tridagons.csv.gz"

SHARES: dict[Split, tuple[int, ...]] = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7)}
"""Which eighths of all grids belong to a generated split."""


class Puzzles(NamedTuple):
    """Puzzles and their solutions, digits [N, cells] each, 0 for a blank."""

    puzzles: Grids
    solutions: Grids

    def rows(self, index: npt.NDArray[Any]) -> Puzzles:
        """The puzzles that `index` (anything numpy takes) selects."""
        return Puzzles(self.puzzles[index], self.solutions[index])

    def and_also(self, others: Puzzles) -> Puzzles:
        """These puzzles and others behind them."""
        return Puzzles(*(np.concatenate(pair) for pair in zip(self, others, strict=True)))


@cache
def symbol_codes(board: Board) -> npt.NDArray[np.uint8]:
    """The digit that each byte of text stands for, [256]: 0 for a blank, UNKNOWN for what is none."""
    codes = np.full(256, UNKNOWN, dtype=np.uint8)
    for blank in BLANKS:
        codes[ord(blank)] = 0
    for digit, symbol in enumerate(board.symbols, start=1):
        codes[[ord(symbol), ord(symbol.lower())]] = digit
    return codes


def read_csv(board: Board, source: Path | Traversable, name: str) -> Puzzles:
    """Read puzzles from a CSV, plain or gzip, with columns question and answer (others are passed over).

    That an answer is the only one is taken on trust. Raises DataError with the line and the reason.
    """
    questions, answers, lines = read_columns(source, name, board.cells)

    def refuse(bad: Flags, reason: str) -> None:
        if bad.any():
            raise DataError(f"{name!r}, line {lines[int(bad.argmax())]}: {reason}; correct or remove the line")

    def digits(texts: list[str]) -> Grids:
        # "replace" keeps one byte a symbol: a question mark for what is not ASCII, which is no digit either.
        raw = "".join(texts).encode("ascii", "replace")
        return symbol_codes(board)[np.frombuffer(raw, dtype=np.uint8)].reshape(-1, board.cells)

    found = Puzzles(digits(questions), digits(answers))
    refuse((found.puzzles == UNKNOWN).any(axis=1), "the question has an unknown symbol")
    solved = [is_solution(board, found.solutions[at : at + BLOCK]) for at in range(0, len(lines), BLOCK)]
    refuse(~np.concatenate(solved), "the answer is not a solved board")
    wrong = (found.puzzles != 0) & (found.puzzles != found.solutions)
    refuse(wrong.any(axis=1), "the answer contradicts the question")
    return found


class _Taken:
    """What earlier splits have, and what the split itself has so far (`own`), whose grids may come again."""

    def __init__(self, board: Board, *earlier: Puzzles, own: Sequence[Puzzles] = ()) -> None:
        self.board = board
        none = [np.zeros(0, np.uint64)]
        self.signatures = np.concatenate([signature(board, *p) for p in (*earlier, *own)] or none)
        self.grids = np.concatenate([grid_hashes(p.solutions) for p in earlier] or none)

    def free(self, found: Puzzles, signatures: Hashes) -> Flags:
        """Which puzzles [N] have neither a signature nor a solution grid that is taken."""
        taken = np.isin(signatures, self.signatures) | np.isin(grid_hashes(found.solutions), self.grids)
        return np.asarray(~taken)


def families(board: Board, found: Puzzles) -> Hashes:
    """A number [N] that puzzles share whose solutions are one grid up to symmetry."""
    return signature(board, found.solutions, found.solutions)


def _default_count(board: Board, split: Split) -> int:
    """How many puzzles to generate unless told: as many as are there to find, or take a minute at most up to 12x12."""
    train = 2000 if board.side <= 5 else 10_000 if board.side <= 8 else 2000
    if board.side > 12:
        return {"train": 500, "validation": 100, "test": 200}[split]
    return {"train": train, "validation": 500, "test": 1000}[split]


class SudokuData:
    """The splits of one configuration; made when first asked for. A count of None is the board's own."""

    def __init__(
        self,
        board: Board,
        counts: Mapping[Split, int | None],
        train_file: str,
        test_file: str,
        seed: int,
        extreme: int = 0,
        tridagon: int = 0,
    ) -> None:
        self.board, self.counts, self.seed = board, counts, seed
        self.extreme, self.tridagon = extreme, tridagon
        self.train_file, self.test_file = train_file, test_file
        self.shipped = not train_file and (board.box_rows, board.box_columns) == (3, 3)

    def split(self, split: Split) -> Puzzles:
        """All puzzles of a split."""
        if split == "test":
            return self.test
        if split == "validation":
            return self.validation
        if self.shipped or self.train_file:
            train = self._training_file().rows(self._file_split[1])
            if self.tridagon:
                train = train.and_also(self._tridagons(train))
            return train.and_also(self._extremes(train)) if self.extreme else train
        return self._generate("train", _Taken(self.board, self._reserved, self.validation))

    @cached_property
    def test(self) -> Puzzles:
        """The test split."""
        if not self.test_file:
            return self._reserved
        return self._reserved.rows(self._choose(np.arange(len(self._reserved.puzzles)), "test", self.test_file))

    @cached_property
    def _reserved(self) -> Puzzles:
        """The test split; of a file also what is not drawn: a model must not have seen it when it is, another time."""
        if self.test_file:
            return read_csv(self.board, Path(self.test_file), self.test_file)
        return self._generate("test", _Taken(self.board))

    @cached_property
    def validation(self) -> Puzzles:
        """The validation split."""
        if self.shipped or self.train_file:
            return self._training_file().rows(self._file_split[0])
        return self._generate("validation", _Taken(self.board, self._reserved))

    @cached_property
    def held_out_grids(self) -> frozenset[int]:
        """The hashes of the solution grids of validation and test."""
        return frozenset(np.concatenate([grid_hashes(p.solutions) for p in (self._reserved, self.validation)]).tolist())

    def _rng(self, split: Split) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), self.board.box_rows, self.board.box_columns])

    def _choose(self, index: Index, split: Split, name: str) -> Index:
        """Draw as many of the rows of a file as are asked for; they stay in the order of the file."""
        count = self.counts[split]
        if count is None or count == len(index):
            return index
        if count > len(index):
            raise DataError(f"{name!r} has {len(index)} puzzles for {split}, {count} are asked for; lower `{split}`")
        return np.sort(self._rng(split).permutation(index)[:count])

    def remarks(self) -> list[str]:
        """What the training file repeats, what of it the test file has, too, and what it has of the same families."""
        if not (self.shipped or self.train_file):
            return []
        board, train = self.board, self._training_file()
        marks = signature(board, *train)
        first = np.unique(marks, return_index=True)[1]
        others = train.rows(np.delete(np.arange(len(train.puzzles)), first))
        repeats = len({j for _, j in same(board, train.rows(first), others)})
        lines = [f"{self._training_name}: {len(train.puzzles):,} puzzles, {repeats} of them repeats up to symmetry"]
        if self.test_file:
            pairs = same(board, train, self._reserved)
            numbers = ", ".join(f"{i + 1} is test puzzle {j + 1}" for i, j in pairs[:3])
            disguised, free = len({i for i, _ in pairs}), _Taken(board, self._reserved).free(train, marks)
            grids, tested = (families(board, puzzles) for puzzles in (train.rows(free), self._reserved))
            lines += [
                f"test puzzles in disguise, left out: {disguised}" + (f" (number {numbers})" if pairs else ""),
                f"others with the solution of a test puzzle, left out: {np.sum(~free) - disguised}",
                f"others with the solution of a test puzzle in disguise, kept: {np.isin(grids, tested).sum()}",
            ]
        return lines

    @property
    def _training_name(self) -> str:
        return self.train_file or "sudoku_train_1k.csv"

    def _training_file(self) -> Puzzles:
        name = self._training_name
        return read_csv(self.board, ASSETS / name if self.shipped else Path(name), name)

    @cached_property
    def _file_split(self) -> tuple[Index, Index]:
        """The rows of the training file that are for validation, and those for training.

        Families, puzzles whose solutions are one grid up to symmetry, stand whole on one side: some lists of hard
        puzzles are made by moving a clue or two of others. Below side 9 there are too few grids for that (49 of 6x6),
        and a family is a puzzle with its symmetric images.
        """
        found, name = self._training_file(), self._training_name
        taken = _Taken(self.board, self._reserved)
        free = np.flatnonzero(taken.free(found, signature(self.board, *found)))
        usable = found.rows(free)
        marks = signature(self.board, *usable) if self.board.side < 9 else families(self.board, usable)
        kinds, member, sizes = np.unique(marks, return_inverse=True, return_counts=True)
        wanted = self.counts["validation"]
        if wanted is None:
            wanted = min(500, len(free) // 10)
        chosen = np.zeros(len(kinds), dtype=np.bool_)
        room = wanted
        for family in mix64(kinds ^ mix64([self.seed % 2**64])).argsort():
            if sizes[family] <= room:
                chosen[family] = True
                room -= int(sizes[family])
        if room:
            reason = f"{name!r} has {len(free)} usable puzzles in {len(kinds)} families"
            raise DataError(f"{reason}, which leaves no {wanted} to hold out; lower `validation`")
        held_out = chosen[member]
        train = self._choose(free[~held_out], "train", name)
        if not len(train):
            raise DataError(f"{name!r} has no puzzle left for training; lower `validation` or give a larger file")
        return free[held_out], train

    def _generate(self, split: Split, taken: _Taken) -> Puzzles:
        """Generate the puzzles of a split."""
        asked, rng, n = self.counts[split], self._rng(split), self.board.side
        wanted = _default_count(self.board, split) if asked is None else asked
        found = self._collect(lambda count: self._fresh(split, count, rng), wanted, taken)
        have = len(found.puzzles)
        if have < wanted and (asked is not None or not have):
            raise DataError(f"only {have} {n}x{n} puzzles that differ are left for {split}, not {wanted}; ask for less")
        return found

    @cached_property
    def _held_out_families(self) -> Hashes:
        return np.concatenate([families(self.board, puzzles) for puzzles in (self._reserved, self.validation)])

    def _tridagons(self, train: Puzzles) -> Puzzles:
        """Draw from the tridagons that travel with the package: none of a held-out family, none that is there already.

        Raises DataError where more are asked for than there are.
        """
        found = read_csv(self.board, ASSETS / TRIDAGONS, TRIDAGONS)
        free = _Taken(self.board, own=(train,)).free(found, signature(self.board, *found))
        free &= ~np.isin(families(self.board, found), self._held_out_families)
        index = np.flatnonzero(free)
        if len(index) < self.tridagon:
            raise DataError(
                f"{len(index)} tridagons are left for training, {self.tridagon} are asked for; lower `tridagon`"
            )
        return found.rows(np.random.default_rng([self.seed, len(SPLITS) + 1]).permutation(index)[: self.tridagon])

    def _extremes(self, train: Puzzles) -> Puzzles:
        """Make puzzles beside the hard ones of the training split, then beside those made, and so on.

        The further away the easier, so each round goes on until it gives little. None is of a held-out family. Raises
        DataError where no training puzzle is hard, or too few are found.
        """
        board, rng = self.board, np.random.default_rng([self.seed, len(SPLITS)])
        seeds = train.puzzles[~one_level(board, train.puzzles)]
        if not len(seeds):
            reason = "the training puzzles can all be solved by one level of trial and error"
            raise DataError(f"{reason}: `extreme` has nothing to begin with; give harder ones as `train_file`")

        def draw(seeds: Grids, count: int) -> Puzzles:
            fresh = Puzzles(*extremes(board, seeds, count, rng))
            return fresh.rows(~np.isin(families(board, fresh), self._held_out_families))

        found, more = train.rows(np.arange(0)), train
        while len(found.puzzles) < self.extreme and len(more.puzzles):
            taken = _Taken(board, self._reserved, self.validation, own=(train, found))
            more = self._collect(partial(draw, seeds), self.extreme - len(found.puzzles), taken, least=0.2)
            found = found.and_also(more)
            seeds = found.puzzles
        if len(found.puzzles) < self.extreme:
            reason = f"only {len(found.puzzles)} extreme puzzles were found beside the hard ones of the training split"
            raise DataError(f"{reason}; lower `extreme` or give more hard ones as `train_file`")
        return found

    def _collect(self, draw: Callable[[int], Puzzles], wanted: int, taken: _Taken, least: float = 0.02) -> Puzzles:
        """Draw many puzzles at a time until there are as many as wanted, or less than a share `least` is new.

        `draw` is told about how many to draw. None comes twice up to symmetry, nor one that is taken.
        """
        found = Puzzles(*np.zeros((2, 0, self.board.cells), dtype=np.uint8))
        signatures = np.zeros(0, dtype=np.uint64)
        new = block = 1
        while len(signatures) < wanted and new >= least * block:
            block = min(BLOCK, max(64, wanted - len(signatures)))
            fresh = draw(block)
            marks = signature(self.board, *fresh)
            # Equal signatures count as equal puzzles. Should two differ after all, one is lost and no harm is done.
            first = np.sort(np.unique(marks, return_index=True)[1])
            first = first[taken.free(fresh, marks)[first] & ~np.isin(marks[first], signatures)]
            new = len(first)
            signatures = np.concatenate([signatures, marks[first]])
            found = found.and_also(fresh.rows(first))
        return found.rows(np.arange(min(len(signatures), wanted)))

    def _fresh(self, split: Split, count: int, rng: np.random.Generator) -> Puzzles:
        """Generate at most `count` puzzles on grids that belong to the split."""
        board = self.board
        grids = random_grids(board, count, rng)
        for _ in range(64):
            stray = np.flatnonzero(~self._belongs(grids, split))
            if not stray.size:
                break
            names = 1 + rng.random((stray.size, board.side)).argsort(axis=1)
            grids[stray] = np.take_along_axis(names, grids[stray].astype(np.intp) - 1, axis=1)
        grids = grids[self._belongs(grids, split)]
        puzzles = dig(board, grids, rng.random(grids.shape))
        if board.side < 6:  # a 4x4 board has but 36 minimal puzzles
            puzzles = restore_clues(puzzles, grids, 6, rng)
        return Puzzles(puzzles, grids)

    def _belongs(self, grids: Grids, split: Split) -> Flags:
        eighth = mix64(grid_hashes(grids) ^ mix64([self.seed % 2**64])) % np.uint64(8)
        return np.isin(eighth, np.array(SHARES[split], dtype=np.uint64))
