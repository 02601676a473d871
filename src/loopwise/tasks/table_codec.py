"""From a user's own values to tokens and back: what a table's checkpoint must know to do without the file.

Every value is seen as rows of cells: a text or a list is one row, a grid has several. A cell is a symbol, a string or
a whole number. All values are padded, to the right and below, to the shape of the largest; token 0 is padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np

from loopwise.errors import PuzzleError
from loopwise.tasks.text import HOLE, NO_SYMBOL, items_of, join_items, load_json, looks_like_json, paint, shown
from loopwise.types import Json, TaskSpec, Tokens

__all__ = ["Codec", "Kind", "Rows", "kind_of", "rows_of", "symbol_of"]

Kind: TypeAlias = Literal["text", "words", "list", "grid"]
Rows: TypeAlias = list[list[Json]]

FORMS: dict[Kind, str] = {
    "text": "a text, a symbol a character",
    "words": "a text, a symbol a word",
    "list": "a list of symbols, such as [1, 2, 3]",
    "grid": "a list of equally long rows, such as [[1, 2], [3, 4]]",
}


def kind_of(value: Json, words: bool) -> Kind:
    """Of which kind a value is; raises PuzzleError where it is of none."""
    if isinstance(value, str):
        return "words" if words else "text"
    if isinstance(value, list):
        return "grid" if value and isinstance(value[0], list) else "list"
    raise PuzzleError(f"{shown(value)} is neither text nor list; put it in quotes or in brackets")


def rows_of(value: Json, kind: Kind) -> Rows:
    """The cells of a value of that kind; raises PuzzleError for an empty value and for a ragged grid."""
    if kind == "text":
        rows = [list(value)]
    elif kind == "words":
        rows = [value.split()]
    elif kind == "list":
        rows = [value]
    else:
        rows = value
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, list):
                raise PuzzleError(f"row {number} is {shown(row)}; every row of a grid is a list")
            if len(row) != len(rows[0]):
                count = f"row {number} has {len(row)} cells, but row 1 has {len(rows[0])}"
                raise PuzzleError(f"{count}; the rows of a grid are equally long")
    if not rows or not rows[0]:
        raise PuzzleError(f"the value is empty; give {FORMS[kind]}")
    return rows


def symbol_of(cell: Json) -> str:
    """How a cell is written; raises PuzzleError where it is neither a whole number nor a non-empty string."""
    if isinstance(cell, str) and cell:
        return cell
    if isinstance(cell, int) and not isinstance(cell, bool) and abs(cell) < 2**63:
        return str(cell)
    raise PuzzleError(f"the cell {shown(cell)} is no symbol; cells are whole numbers or non-empty strings")


@dataclass(frozen=True)
class Codec:
    """Kind, vocabulary and shape of a table's values, and the translation that follows from them."""

    kind: Kind
    values: tuple[str | int, ...]  # V of them, as the user writes them; the first, padding, is ""
    shape: tuple[int, ...]  # of the largest value: (length,), or (rows, columns) of a grid
    num_puzzle_ids: int = 1  # more than the blank one only for a model that came with a table of them

    @classmethod
    def build(cls, kind: Kind, values: Iterable[Rows]) -> Codec:
        """The codec that fits all values; raises PuzzleError where a symbol is both number and text."""
        cells: dict[str, str | int] = {}
        height = width = 0
        for rows in values:
            height, width = max(height, len(rows)), max(width, len(rows[0]))
            # Characters and words need one look each; among numbers 1, 1.0 and True would hide each other in a set.
            for cell in set(rows[0]) - cells.keys() if kind in ("text", "words") else chain.from_iterable(rows):
                symbol = symbol_of(cell)
                if type(cells.setdefault(symbol, cell)) is not type(cell):
                    raise PuzzleError(f"{symbol} occurs as a number and as the text {symbol!r}; write all in one way")
        ordered = sorted(cells.values(), key=lambda cell: (isinstance(cell, str), cell))
        return cls(kind, ("", *ordered), (height, width) if kind == "grid" else (width,))

    @cached_property
    def spec(self) -> TaskSpec:
        """What a reasoner must know."""
        symbols = tuple(map(str, self.values))
        return TaskSpec(vocab_size=len(symbols), shape=self.shape, symbols=symbols, num_puzzle_ids=self.num_puzzle_ids)

    @cached_property
    def tokens(self) -> dict[Json, int]:
        """The token of each symbol; a number is found as a number and as text."""
        found: dict[Json, int] = {value: token for token, value in enumerate(self.values) if token}
        return found | {str(value): token for value, token in found.items()}

    @property
    def box(self) -> tuple[int, int]:
        """Rows and columns; a text or a list is one row."""
        return (self.shape[0], self.shape[1]) if self.kind == "grid" else (1, self.shape[0])

    def encode(self, rows: Rows, blanks: bool = False) -> Tokens:
        """Tokens [L] of the rows, padded to the shape; None is padding where `blanks` are allowed.

        Raises PuzzleError for a value that is too large, and for an unknown symbol.
        """
        height, width = self.box
        if len(rows) > height or len(rows[0]) > width:
            if self.kind == "grid":
                size = f"{len(rows)} x {len(rows[0])} cells are too many; the largest grid known is {height} x {width}"
            else:
                unit = {"text": "characters", "words": "words"}.get(self.kind, "values")
                size = f"{len(rows[0])} {unit} are too many; the longest known has {width}"
            raise PuzzleError(size)
        tokens = np.zeros(self.box, np.int32)
        for r, row in enumerate(rows):
            if set(map(type, row)) <= {int, str}:  # the fast way; bool, which equals 0 or 1, is another type
                line: list[Any] = list(map(self.tokens.get, row))
            else:
                line = [0 if blanks and cell is None else self.tokens.get(symbol_of(cell)) for cell in row]
            if None in line:
                c = line.index(None)
                symbol_of(row[c])  # a cell that is no symbol at all has its own message
                place = f"row {r + 1}, column {c + 1}" if self.kind == "grid" else f"position {c + 1}"
                raise PuzzleError(f"unknown symbol {shown(row[c])} at {place}; known: {self.known()}")
            tokens[r, : len(row)] = line
        return tokens.reshape(-1)

    def known(self) -> str:
        """The vocabulary in a line, shortened if it is long."""
        symbols = [repr(symbol) if symbol.isspace() else symbol for symbol in self.spec.symbols[1:]]
        return " ".join(symbols[:40]) + (f" and {len(symbols) - 40} more" if len(symbols) > 40 else "")

    def cells(self, answer: Tokens) -> Rows:
        """The cells of an answer [L] without the padding to the right and below; None for padding in between."""
        grid = answer.reshape(self.box)
        filled = grid > 0
        if not filled.any():
            return [[]]
        height, width = (int(np.flatnonzero(filled.any(axis=axis))[-1]) + 1 for axis in (1, 0))
        return [[self.values[token] if token > 0 else None for token in row] for row in grid[:height, :width]]

    def native(self, rows: Rows) -> Json:
        """Rows of cells as a value of the table's own kind."""
        if self.kind == "grid":
            return rows
        return rows[0] if self.kind == "list" else self._text(rows[0])

    def _text(self, row: list[Json]) -> str:
        return ("" if self.kind == "text" else " ").join(NO_SYMBOL if cell is None else str(cell) for cell in row)

    def parse(self, value: Json) -> Tokens:
        """Read a value [L] of the table's kind, or one written in another way: see `format`."""
        if isinstance(value, str):
            value = self._from_text(value)
        if isinstance(value, list):
            if self.kind == "grid" and not any(isinstance(item, list) for item in value):
                return self._parse_flat(value)
            return self.encode(rows_of(value, "grid" if self.kind == "grid" else "list"))
        raise PuzzleError(f"{shown(value)} is no puzzle; give {FORMS[self.kind]}")

    def _from_text(self, text: str) -> Json:
        if self.kind in ("text", "words"):
            return rows_of(text, self.kind)[0]
        if looks_like_json(text):
            return load_json(text)
        return items_of(text) if self.kind == "list" else [items_of(line) for line in text.splitlines()]

    def _parse_flat(self, cells: list[Json]) -> Tokens:
        height, width = self.box
        if len(cells) != height * width:
            raise PuzzleError(f"a flat list needs all {height} x {width} cells, not {len(cells)}; give {FORMS['grid']}")
        if all(cell is None for cell in cells):
            raise PuzzleError(f"the value is empty; give {FORMS['grid']}")
        return self.encode([cells[start : start + width] for start in range(0, len(cells), width)], blanks=True)

    def format(self, answer: Tokens, like: Json) -> Json:
        """Write an answer [L] in the form of `like`.

        A text or a list serves for every kind: the text of a list separates its items by spaces or commas or is JSON,
        that of a grid has a line a row or is JSON; the flat list of a grid has all positions, null for padding.
        """
        rows = self.cells(answer)
        if isinstance(like, str):
            if self.kind in ("text", "words"):
                return self._text(rows[0])
            if self.kind == "list":
                return join_items(rows[0], like)
            lines = [join_items(row, like.split("\n")[0]) for row in rows]
            return json.dumps(rows, ensure_ascii=False) if any(map(looks_like_json, lines)) else "\n".join(lines)
        if self.kind == "grid" and isinstance(like, list) and like and not isinstance(like[0], list):
            return [self.values[token] if token > 0 else None for token in answer]
        if self.kind == "grid":
            return [_like(row, like[0] if isinstance(like, list) and like else like) for row in rows]
        return _like(rows[0], like)

    def render(self, answer: Tokens, puzzle: Tokens | None = None, previous: Tokens | None = None) -> str:
        """Draw an answer [L]: green where changed since `previous`, dim where the puzzle of that size says the same."""
        rows = self.cells(answer)
        text = self.kind == "text"
        width = max(map(len, self.spec.symbols)) if self.kind in ("list", "grid") else 1
        changed = np.zeros(len(answer), bool) if previous is None else answer != previous
        given = np.zeros(len(answer), bool)
        # Only in a puzzle of the same size does the same place mean the same thing.
        if puzzle is not None and np.array_equal(puzzle > 0, answer > 0):
            given = answer == puzzle
        pieces: list[tuple[str, str]] = []
        for r, row in enumerate(rows):
            pieces += [("\n", "")] if r else []
            for c, cell in enumerate(row):
                position = r * self.box[1] + c
                style = "green" if changed[position] else "dim" if given[position] else ""
                symbol = HOLE if cell is None else str(cell)
                pieces += [(" ", "")] if c and not text else []
                pieces.append((symbol.rjust(width), style))
        return paint(pieces or [(HOLE, "")])

    def metadata(self) -> dict[str, Json]:
        """The codec as JSON."""
        identities = {"num_puzzle_ids": self.num_puzzle_ids} if self.num_puzzle_ids > 1 else {}
        return {"kind": self.kind, "values": list(self.values), "shape": list(self.shape), **identities}

    @classmethod
    def restore(cls, metadata: dict[str, Json]) -> Codec:
        """The codec of `metadata`; raises KeyError, TypeError or ValueError where it is malformed."""
        if not isinstance(metadata, dict):
            raise TypeError("the metadata of a table is not an object")
        kind, values, shape = metadata["kind"], metadata["values"], metadata["shape"]
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind {shown(kind)}")
        if not (isinstance(values, list) and isinstance(shape, list)):
            raise TypeError("values and shape must be lists")
        try:
            symbols = {symbol_of(value) for value in values[1:]}
        except PuzzleError as error:
            raise ValueError(str(error)) from None
        if values[:1] != [""] or not symbols or len(symbols) != len(values) - 1:
            raise ValueError("values must be the empty string, then symbols that differ")
        if kind in ("text", "words") and not all(isinstance(value, str) for value in values):
            raise ValueError("the values of a text must be strings")
        if len(shape) != (2 if kind == "grid" else 1):
            raise ValueError(f"the shape {shown(shape)} does not fit the kind {kind}")
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"the shape {shown(shape)} must hold positive whole numbers")
        identities = metadata.get("num_puzzle_ids", 1)
        if type(identities) is not int or identities < 1:
            raise ValueError(f"num_puzzle_ids {shown(identities)} must be a positive whole number")
        return cls(cast(Kind, kind), tuple(values), tuple(shape), identities)


def _like(row: list[Json], like: Json) -> list[Json]:
    """The row with its numbers as strings, if the list `like` has only strings."""
    if isinstance(like, list) and like and all(isinstance(item, str) for item in like):
        return [None if cell is None else str(cell) for cell in row]
    return row
