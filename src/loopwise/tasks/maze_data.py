"""Where the mazes of the splits come from, and what keeps the splits apart.

    test        a file, or generated
    validation  held out from the training file, or generated
    train       a file, or generated

The splits are made in this order, and each leaves out what an earlier one has, also rotated, reflected or with S and G
exchanged. A generated maze belongs to a split by its number of walls, which none of these change: so no other seed, and
no other number of mazes, brings a test maze into training.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from loopwise.errors import DataError
from loopwise.tasks.maze_generator import Mazes, random_mazes
from loopwise.tasks.maze_paths import OPEN, PATH, WALL, canonical, flaw, solve
from loopwise.tasks.question_csv import read_columns
from loopwise.types import SPLITS, Split

__all__ = ["SYMBOLS", "TOKENS", "MazeData", "read_mazes"]

SYMBOLS = "# SGo"
"""How the tokens from 1 on are written."""

TOKENS = {symbol: token for token, symbol in enumerate(SYMBOLS, start=1)} | {".": OPEN}
"""The token that a symbol is read as."""

SHARES: dict[Split, tuple[int, ...]] = {"test": (0,), "validation": (1,), "train": (2, 3)}
"""The number of walls, modulo 4, that a generated maze of a split has."""

PATIENCE = 1000
"""Draws in a row that bring hardly a new maze, after which no more are looked for: some seconds."""


class MazeData:
    """The splits of one configuration, mazes [N, L] without their labels; made when first asked for."""

    def __init__(
        self, size: int, least: int, counts: Mapping[Split, int | None], train_file: str, test_file: str, seed: int
    ) -> None:
        self.size, self.least, self.counts, self.seed = size, least, counts, seed
        self.train_file, self.test_file = train_file, test_file

    def split(self, split: Split) -> Mazes:
        """All mazes of a split."""
        if split == "test":
            return self._choose(self._tests, "test", self.test_file) if self.test_file else self._tests
        if not self.train_file:
            return self._generate(split, _distinct(self._tests) if self.test_file else {})
        held_out = self._held_out()
        if split == "validation":
            return self._of_file[:held_out]
        return self._choose(self._of_file[held_out:], "train", self.train_file)

    @cached_property
    def _tests(self) -> Mazes:
        """The test split; of a file also what is not drawn: a model must not have seen it when it is, another time."""
        return read_mazes(self.test_file, self.size) if self.test_file else self._generate("test", {})

    @cached_property
    def _of_file(self) -> Mazes:
        """The mazes of the training file that differ and are no test mazes, shuffled."""
        tests = _distinct(self._tests)
        found = [maze for key, maze in _distinct(read_mazes(self.train_file, self.size)).items() if key not in tests]
        return self._rng("train").permutation(_stacked(found, self.size))

    def remarks(self) -> list[str]:
        """What the training file repeats, and what of it are test mazes; a line each."""
        if not self.train_file:
            return []
        train = read_mazes(self.train_file, self.size)
        known, tests = list(_distinct(train)), _distinct(self._tests)
        leaks = sum(key in tests for key in known)
        return [
            f"{self.train_file}: {len(train):,} mazes, {len(train) - len(known)} of them repeats up to symmetry",
            f"{leaks} are test mazes in disguise; these and the repeats are left out",
        ]

    def _held_out(self) -> int:
        """How many mazes of the training file are for validation."""
        have, asked = len(self._of_file), self.counts["validation"]
        wanted = min(500, have // 10) if asked is None else asked
        if wanted >= have:
            reason = f"{self.train_file!r} has {have} usable mazes, too few to hold {wanted} out"
            raise DataError(f"{reason}; lower `validation` or give a larger file")
        return wanted

    def _choose(self, mazes: Mazes, split: Split, name: str) -> Mazes:
        """Draw as many mazes of a file as are asked for."""
        count = self.counts[split]
        if count is None:
            return mazes
        if count > len(mazes):
            raise DataError(f"{name!r} has {len(mazes)} mazes for {split}, {count} are asked for; lower `{split}`")
        return self._rng(split).permutation(mazes)[:count]

    def _generate(self, split: Split, taken: Mapping[bytes, Mazes]) -> Mazes:
        """Generate mazes until there are as many as wanted, or until hardly one is new."""
        asked, size = self.counts[split], self.size
        wanted = _default_count(size, split) if asked is None else asked
        rng, idle = self._rng(split), 0
        found: dict[bytes, Mazes] = {}
        while len(found) < wanted and idle < PATIENCE:
            fresh, before = _distinct(random_mazes(size, self.least, SHARES[split], rng)), len(found)
            found |= {key: maze for key, maze in fresh.items() if key not in taken and key not in found}
            idle = 0 if 50 * (len(found) - before) > len(fresh) else idle + 1
        if len(found) < wanted and (asked is not None or not found):
            raise DataError(
                f"only {len(found)} {size}x{size} mazes of {self.least} moves or more were found for {split}, not "
                f"{wanted}; lower `min_moves` or ask for fewer"
            )
        return _stacked([*found.values()][:wanted], size)

    def _rng(self, split: Split) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), self.size])


def _default_count(size: int, split: Split) -> int:
    """How many mazes to generate unless told: what takes about a minute at most up to 30x30."""
    return {"train": 10_000 if size <= 15 else 1000, "validation": 500 if size <= 15 else 200, "test": 1000}[split]


def _distinct(mazes: Mazes) -> dict[bytes, Mazes]:
    """Those of the mazes [N, L] that no symmetry makes equal, [L] each."""
    return {canonical(maze): maze for maze in mazes}


def _stacked(mazes: Sequence[Mazes], size: int) -> Mazes:
    return np.array(mazes, dtype=np.uint8).reshape(-1, size * size)


def read_mazes(name: str, size: int) -> Mazes:
    """Read mazes [N, L] from .npz (arrays `inputs` and `labels` [N, L], tokens) or CSV (columns question and answer).

    Labels are only compared with those of `solve`: one that differs is a DataError, too, with the place and the reason.
    """
    read = _read_npz if name.endswith(".npz") else _read_csv
    mazes, answers, places = read(name, size * size)
    for maze, answer, place in zip(mazes, answers, places, strict=True):
        reason = None if ((maze >= WALL) & (maze < PATH)).all() else f"the maze has other symbols than {SYMBOLS[:4]!r}"
        reason = reason or flaw(maze)
        if reason is None and not np.array_equal(solve(maze), answer):
            reason = "its label is not the shortest path that prefers down, then left, right, up"
        if reason is not None:
            raise DataError(f"{name!r}, {place}: {reason}; correct or remove it")
    return mazes


def _read_npz(name: str, cells: int) -> tuple[Mazes, Mazes, list[str]]:
    """Mazes, their labels [N, L], and where in the file each pair stands."""
    try:
        with np.load(Path(name)) as file:
            mazes, answers = file["inputs"], file["labels"]
    except FileNotFoundError:
        raise DataError(f"there is no file {name!r}; give the path of an .npz or a CSV file of mazes") from None
    except (OSError, EOFError, KeyError, ValueError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read {name!r} ({reason}); it must be an .npz with arrays inputs and labels") from error
    for array in (mazes, answers):
        if array.dtype.kind not in "iu" or mazes.ndim != 2 or array.shape != (len(mazes), cells) or not len(array):
            what = f"whole numbers [N, {cells}]"
            raise DataError(f"{name!r} has {array.dtype} {list(array.shape)} where {what} must be; see `size`")
    mazes, answers = (np.clip(array, 0, 255).astype(np.uint8) for array in (mazes, answers))
    return mazes, answers, [f"row {row}" for row in range(len(mazes))]


def _read_csv(name: str, cells: int) -> tuple[Mazes, Mazes, list[str]]:
    """The same from a CSV, plain or gzip; what is no symbol of a maze becomes 0."""
    questions, answers, lines = read_columns(Path(name), name, cells)
    codes = np.zeros(256, dtype=np.uint8)
    codes[[ord(symbol) for symbol in TOKENS]] = list(TOKENS.values())

    def tokens(texts: list[str]) -> Mazes:
        raw = "".join(texts).encode("ascii", "replace")  # a question mark for what is not ASCII
        return codes[np.frombuffer(raw, dtype=np.uint8)].reshape(-1, cells)

    return tokens(questions), tokens(answers), [f"line {line}" for line in lines]
