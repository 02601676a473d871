"""Sudoku, on boards of any box shape: fill in the digits 1 to n so that no row, column or box has one twice.

Tokens: 0 padding, 1 blank, d + 1 for digit d; V = 11 on the 9x9 board, as in the data of HRM and TRM. Training data for
9x9 are 1,000 puzzles that travel with the package (see `assets/README.md`) or a file such as Sudoku-Extreme's; for
other boards they are generated, each with one solution and, from side 6 to 9, minimal: no clue can be spared.

The 9x9 puzzles of the `test` split are generated too unless `test_file` names a file. They are far easier than
Sudoku-Extreme (random minimal puzzles, about 24 clues, mostly solved by logic): a number on them must not be compared
with published ones. For training, `extreme` makes more of the hard ones, and `tridagon` adds hard ones of another kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from loopwise.config import check
from loopwise.errors import ConfigError, PuzzleError
from loopwise.tasks.base import Inverse, Task, TaskConfig, identity
from loopwise.tasks.sudoku_boards import Board, is_solution
from loopwise.tasks.sudoku_data import BLANKS, UNKNOWN, SudokuData, symbol_codes
from loopwise.tasks.sudoku_symmetry import draw_symmetry, grid_hashes
from loopwise.tasks.text import shown
from loopwise.types import IGNORE_LABEL, Examples, Json, Split, TaskSpec, Tokens

__all__ = ["Sudoku", "SudokuConfig"]

BLANK = 1
SEPARATORS = "|+-"


@dataclass(frozen=True, kw_only=True)
class SudokuConfig(TaskConfig):
    """Options of the sudoku task. A size of None is the board's own, see each."""

    teaching: ClassVar[tuple[str, ...]] = ("reveal",)

    box: str = "3x3"
    """Rows x columns of a box: 3x3 is the usual 9x9 board, 2x2 makes a 4x4 board, 2x3 a 6x6 one; side 4 to 25."""
    train: int | None = None
    """Training puzzles before augmentation. None: 10,000 for 6x6, up to 2,000 for 4x4; of a file, all that are left."""
    validation: int | None = None
    """Validation puzzles. None: 500 where they are generated; a tenth of a training file, 500 at most."""
    test: int | None = None
    """Test puzzles. None: 1,000 where they are generated (200 above side 12); of a file, all."""
    train_file: str = ""
    """CSV (.gz too) with columns question,answer to train and validate on; empty: shipped for 9x9, else generated."""
    test_file: str = ""
    """CSV (.gz too) with columns question,answer to test on; empty: generated, 9x9 far easier than Sudoku-Extreme."""
    extreme: int = 0
    """So many training puzzles more, made by moving clues of the hardest: 9x9 only, about 50 a second."""
    tridagon: int = 0
    """So many of the shipped tridagons more in training, 9x9 only: a hard kind that our other puzzles lack, and a fifth
    of Sudoku-Extreme is. Three digits have two clues and stand crosswise in three of four boxes.
    """
    reveal: int = 0
    """In training, up to so many digits of the answer, a new number at each drawing of a puzzle, stand in it as further
    clues, unless `training.shorten` is off: from few puzzles come many, easy ones among them.
    """
    seed: int = 0
    """Seed of the generator and of the choice of what is held out."""

    def __post_init__(self) -> None:
        check(self)
        Board.parse(self.box)
        for option in ("train", "validation", "test", "extreme", "tridagon", "reveal", "seed"):
            value, least = getattr(self, option), int(option == "train")
            if value is not None and value < least:
                raise ConfigError(f"sudoku: {option} is {value}, must be at least {least}")
        for option in ("extreme", "tridagon"):
            if getattr(self, option) and Board.parse(self.box) != Board(3, 3):
                raise ConfigError(f"sudoku: {option} puzzles are of box 3x3, not {self.box}; leave {option} at 0")


class Sudoku(Task[SudokuConfig]):
    """Fill in the digits so that no row, column or box has one twice."""

    name: ClassVar[str] = "sudoku"
    Config: ClassVar[type[TaskConfig]] = SudokuConfig

    def __init__(self, config: SudokuConfig) -> None:
        super().__init__(config)
        self.board = Board.parse(config.box)
        counts: dict[Split, int | None] = {"train": config.train, "validation": config.validation, "test": config.test}
        files = config.train_file, config.test_file
        self._data = SudokuData(self.board, counts, *files, config.seed, config.extreme, config.tridagon)

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are given."""
        return tuple(file for file in (self.config.train_file, self.config.test_file) if file)

    @cached_property
    def spec(self) -> TaskSpec:
        """V = n + 2 tokens on n x n cells."""
        n = self.board.side
        digits = tuple(range(BLANK + 1, n + 2))
        return TaskSpec(
            vocab_size=n + 2,
            shape=(n, n),
            symbols=("", ".", *self.board.symbols),
            interchangeable=digits,
            givens=digits,
            groups=tuple(map(tuple, self.board.units.tolist())),
        )

    def examples(self, split: Split) -> Examples:
        """All puzzles of a split; no two splits share a puzzle under symmetry, nor a solution grid."""
        found = self._data.split(split)
        inputs, labels = (grids.astype(np.int32) + 1 for grids in found)
        return Examples(inputs, labels, np.zeros(len(inputs), dtype=np.int32))

    def summary(self) -> str:
        """What it is, and what the training file has in common with the test file."""
        return "\n".join([super().summary(), *self._data.remarks()])

    def augment(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, Inverse]:
        """Draw a symmetry of the board; a grid that is held out for validation or test never comes out as labels.

        Where it would, the puzzle comes back as it was. To know these grids, the first call makes both splits.
        """
        cells, digits = draw_symmetry(self.board, rng)
        # Counted from the end, so that a label IGNORE_LABEL finds its own place in the same table.
        table = np.full(self.spec.vocab_size - IGNORE_LABEL, IGNORE_LABEL, dtype=np.int32)
        table[:2] = 0, BLANK
        table[2 : self.spec.vocab_size] = digits + 1
        new_labels = table[labels[cells]]
        # A puzzle without its solution is none to train on, and needs no splits to be made.
        if new_labels.min() > BLANK and int(grid_hashes(new_labels - 1)) in self._data.held_out_grids:
            return inputs, labels, identity

        def inverse(answer: Tokens) -> Tokens:
            names = np.arange(self.spec.vocab_size, dtype=np.int32)
            names[digits + 1] = np.arange(2, self.spec.vocab_size)
            original = np.empty_like(answer)
            original[cells] = names[answer]
            return original

        return table[inputs[cells]], new_labels, inverse

    def shorten(self, inputs: Tokens, labels: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Reveal some digits of the answer: any number up to `reveal`, each as likely, anywhere."""
        if not self.config.reveal:
            return inputs, labels
        blanks = np.flatnonzero((inputs == BLANK) & (labels > BLANK))
        shown = rng.permutation(blanks)[: rng.integers(self.config.reveal + 1)]
        easier = inputs.copy()
        easier[shown] = labels[shown]
        return easier, labels

    def verify(self, inputs: Tokens, answer: Tokens) -> bool:
        """Whether `answer` [L] is a solved board that has the givens of `inputs` [L]."""
        if answer.shape != (self.board.cells,) or bool(((inputs > BLANK) & (inputs != answer)).any()):
            return False
        return bool(is_solution(self.board, answer - 1))

    def violations(self, inputs: Tokens, answer: Tokens) -> list[int]:
        """Cells that share their digit with another of a row, column or box, or differ from their given."""
        given = inputs > BLANK
        return [int(cell) for cell in np.flatnonzero(self._broken(answer) | (given & (answer != inputs)))]

    def parse(self, value: Json) -> Tokens:
        """Read a puzzle [L] from a string, a flat list or a grid.

        In a string `.`, `0`, `_` and `*` are blanks, digits above 9 are letters from A on, and white space, `|`, `-`
        and `+` are passed over. In a list 0 and null are blanks.
        """
        if isinstance(value, str):
            digits = self._digits_of_string(value)
        elif isinstance(value, list | tuple):
            digits = self._digits_of_list(value)
        else:
            kind = type(value).__name__
            raise PuzzleError(f"a sudoku is a string, a list of numbers or a list of rows, not a value of type {kind}")
        self._refuse_length(len(digits))
        self._refuse_contradiction(digits)
        return np.array(digits, dtype=np.int32) + 1

    def format(self, answer: Tokens, like: Json) -> Json:
        """Write an answer [L] in the form of `like`, separators and the way to write blanks included."""
        digits = iter([max(int(token) - 1, 0) for token in answer])

        def number(old: Json) -> Json:
            digit = next(digits)
            return digit if digit else (old if not old else 0)

        def symbol(old: str) -> str:
            digit = next(digits)
            return self.board.symbols[digit - 1] if digit else (old if old in BLANKS else ".")

        self.parse(like)
        if isinstance(like, str):
            return "".join(old if _is_separator(old) else symbol(old) for old in like)
        if isinstance(like[0], list | tuple):
            return [[number(old) for old in row] for row in like]
        return [number(old) for old in like]

    def render(self, answer: Tokens, puzzle: Tokens | None = None, previous: Tokens | None = None) -> str:
        """Draw a board with its boxes: givens bold, cells that break a rule red, others new since `previous` green."""
        board, nothing = self.board, np.zeros(self.board.cells, dtype=np.bool_)
        given = nothing if puzzle is None else puzzle > BLANK
        broken = nothing if puzzle is None else self._broken(answer) | (given & (answer != puzzle))
        changed = nothing if previous is None else answer != previous
        drawn = []
        for cell, token in enumerate(answer):
            styles = [style for style, on in (("bold", given[cell]), ("red", broken[cell])) if on]
            if changed[cell] and not broken[cell]:
                styles.append("green")
            symbol = board.symbols[token - 2] if token > BLANK else "·"
            style = " ".join(styles)
            drawn.append(f"[{style}]{symbol}[/{style}]" if style else symbol)
        n, wide = board.side, board.box_columns
        lines = []
        for row in range(n):
            if row and row % board.box_rows == 0:
                ruled = " │ ".join([" ".join("─" * wide)] * (n // wide))
                lines.append(ruled.replace(" ", "─").replace("│", "┼"))
            boxes = [drawn[at : at + wide] for at in range(row * n, row * n + n, wide)]
            lines.append(" │ ".join(" ".join(box) for box in boxes))
        return "\n".join(lines)

    def _broken(self, answer: Tokens) -> npt.NDArray[np.bool_]:
        """Which cells [L] share their digit with another cell of a row, column or box."""
        in_unit = answer[self.board.units]  # [3n, n]
        twice = (in_unit[:, :, None] == in_unit[:, None, :]).sum(axis=2) > 1
        broken = np.zeros(self.board.cells, dtype=np.bool_)
        broken[self.board.units[twice & (in_unit > BLANK)]] = True
        return broken

    def _digits_of_string(self, text: str) -> list[int]:
        codes = symbol_codes(self.board)
        count = sum(not _is_separator(symbol) for symbol in text)
        if isqrt(count) ** 2 == count > 15:  # the cells of a board, which may be another
            self._refuse_length(count)
        digits = []
        for at, symbol in enumerate(text, start=1):
            if _is_separator(symbol):
                continue
            digit = int(codes[ord(symbol)]) if symbol.isascii() else UNKNOWN
            if digit == UNKNOWN:
                known = f"{self.board.symbols[0]} to {self.board.symbols[-1]}"
                raise PuzzleError(
                    f"unknown symbol {symbol!r} at position {at}: write {known}, and one of {BLANKS} for a blank"
                )
            digits.append(digit)
        return digits

    def _digits_of_list(self, value: list[Any] | tuple[Any, ...]) -> list[int]:
        n = self.board.side
        if value and all(isinstance(row, list | tuple) for row in value):
            if len(value) != n:
                raise PuzzleError(f"the grid has {len(value)} rows, it must have {n}")
            for at, row in enumerate(value, start=1):
                if len(row) != n:
                    raise PuzzleError(f"row {at} of the grid has {len(row)} cells, it must have {n}")
            value = [number for row in value for number in row]
        for at, number in enumerate(value, start=1):
            if number is not None and (type(number) is not int or not 0 <= number <= n):
                raise PuzzleError(
                    f"cell {at} is {shown(number)}: write a number from 1 to {n}, and 0 or null for a blank"
                )
        return [number or 0 for number in value]

    def _refuse_length(self, count: int) -> None:
        n, cells = self.board.side, self.board.cells
        if count != cells:
            raise PuzzleError(f"the puzzle has {count} cells, a {n}x{n} sudoku has {cells}; write every cell")

    def _refuse_contradiction(self, digits: list[int]) -> None:
        n = self.board.side
        for number, unit in enumerate(self.board.units.tolist()):
            seen: dict[int, int] = {}
            for cell in unit:
                digit = digits[cell]
                if digit and digit in seen:
                    (r1, c1), (r2, c2) = ((at // n + 1, at % n + 1) for at in (seen[digit], cell))
                    kind = ("row", "column", "box")[number // n]
                    columns, rows = f"columns {c1} and {c2}", f"rows {r1} and {r2}"
                    where = {"row": columns, "column": rows}.get(kind, f"{rows}, {columns}")
                    what = f"{kind} {number % n + 1} has the digit {self.board.symbols[digit - 1]} twice ({where})"
                    raise PuzzleError(f"{what}; remove one of them")
                seen[digit] = cell


def _is_separator(symbol: str) -> bool:
    return symbol.isspace() or symbol in SEPARATORS
