"""From the records of a file to a table's data set: checked, encoded, free of repeats, split, and summed up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loopwise.errors import DataError, PuzzleError
from loopwise.registry import suggest
from loopwise.tasks.table_codec import FORMS, Codec, Kind, Rows, kind_of, rows_of
from loopwise.tasks.table_file import Record
from loopwise.tasks.text import shown
from loopwise.types import SPLITS, Json, Split, Tokens

__all__ = ["Dataset", "Pair", "SplitRule", "build_codec", "build_dataset", "read_pairs"]

SPLIT_COLUMN = "split"
SPLIT_NAMES: dict[str, Split] = {
    **{split: split for split in SPLITS},
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}


class Pair(NamedTuple):
    """A puzzle and its answer, as rows of cells."""

    where: str  # "puzzles.csv, line 3"
    input: Rows
    output: Rows
    split: Split | None  # what the file says


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How the rows are divided where the file does not say it."""

    validation: float
    test: float
    seed: int
    fewest: int  # different puzzles that the file must have
    allow_ambiguous: bool


def read_pairs(records: Sequence[Record], input: str, output: str, words: bool) -> tuple[Kind, list[Pair]]:
    """The puzzles of the records and their common kind; raises DataError where one is not of it."""
    has_split = any(SPLIT_COLUMN in record.fields for record in records)
    kind: Kind | None = None
    pairs = []
    for record in records:
        rows = []
        for option, column in (("input", input), ("output", output)):
            value = _cell(record, column, option)
            try:
                own = kind_of(value, words)
                kind = kind or own
                if own != kind:
                    first = f"{records[0].where} has {FORMS[kind]}"
                    raise PuzzleError(f"{shown(value)} is {FORMS[own]}, but {first}; all values must be of one kind")
                rows.append(rows_of(value, kind))
            except PuzzleError as error:
                raise DataError(f"{record.where}, column {column!r}: {error}") from None
        pairs.append(Pair(record.where, rows[0], rows[1], _split(record) if has_split else None))
    assert kind is not None, "a file without records is refused when it is read"
    return kind, pairs


def _cell(record: Record, column: str, option: str) -> Json:
    if column not in record.fields:
        known = ", ".join(record.fields)
        hint = f"there are: {known}; name yours with --task.{option}"
        raise DataError(f"{record.where}: no column {column!r}{suggest(column, record.fields)}; {hint}")
    return record.fields[column]


def _split(record: Record) -> Split:
    value = _cell(record, SPLIT_COLUMN, SPLIT_COLUMN)
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise DataError(f"{record.where}: the split {shown(value)} is none of {', '.join(SPLITS)}")
    return split


def build_codec(kind: Kind, pairs: Sequence[Pair]) -> Codec:
    """The vocabulary and shape that fit all puzzles and answers."""
    where = ""

    def values() -> Iterator[Rows]:
        nonlocal where
        for pair in pairs:
            where = pair.where  # the codec takes values one by one, so a complaint is about this one
            yield pair.input
            yield pair.output

    try:
        return Codec.build(kind, values())
    except PuzzleError as error:
        raise DataError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The rows of a file as tokens."""

    file: str
    codec: Codec
    rows: int  # in the file
    repeats: int  # removed: same input, same output
    others: int  # removed: same input, another output
    inputs: Tokens  # [N, L]
    labels: Tokens  # [N, L]
    splits: npt.NDArray[np.str_]  # [N]
    drawn: tuple[Split, ...]  # the splits that the file does not name

    def summary(self) -> str:
        """What was found and made of it, in several lines of plain text."""
        codec = self.codec
        sizes = [_sizes(tokens, codec.box) for tokens in (self.inputs, self.labels)]
        padding = f"to {_size(codec.box, codec.kind)}, {100 * np.mean(self.labels == 0):.0f} % of the label positions"
        counts = ", ".join(f"{split} {np.count_nonzero(self.splits == split):,}" for split in SPLITS)
        drawn = f"{' and '.join(self.drawn)} drawn by share and seed" if self.drawn else "all from the column 'split'"
        removed = f"{self.repeats:,} repeated" + (f" and {self.others:,} with another answer" if self.others else "")
        lines = [
            ("file", self.file),
            ("rows", f"{self.rows:,}; {len(self.inputs):,} puzzles without {removed}"),
            ("kind", FORMS[codec.kind]),
            ("inputs", _range(sizes[0], codec.kind)),
            ("outputs", _range(sizes[1], codec.kind)),
            ("vocabulary", f"{len(codec.values) - 1} symbols and padding: {codec.known()}"),
            ("padding", padding),
            ("splits", f"{counts} ({drawn})"),
            *self._lengths(sizes),
            *self._hints(),
        ]
        return "\n".join(f"{name:<11} {text}" for name, text in lines)

    def _lengths(self, sizes: list[npt.NDArray[np.int64]]) -> list[tuple[str, str]]:
        cells = [size.prod(axis=1) for size in sizes]
        groups = {"same size": cells[0] == cells[1], "shorter": cells[1] < cells[0], "longer": cells[1] > cells[0]}
        lines = []
        for name, rows in groups.items():
            if rows.any():
                index = int(np.flatnonzero(rows)[0])
                texts = (self.codec.native(self.codec.cells(tokens[index])) for tokens in (self.inputs, self.labels))
                lines.append((name, f"{np.count_nonzero(rows):,} outputs, such as {' -> '.join(map(shown, texts))}"))
        return lines

    def _hints(self) -> list[tuple[str, str]]:
        hints = []
        if np.mean(self.labels == 0) > 0.5:
            hints.append("most labels are padding, so token accuracy says little: look at exact accuracy")
        if self.codec.kind == "text" and " " in self.codec.tokens:
            hints.append("the texts hold spaces; with --task.tokens words, a symbol is a word")
        missing = set(self.codec.tokens.values()) - set(np.unique(self.inputs[self.splits == "train"]).tolist())
        missing -= set(np.unique(self.labels[self.splits == "train"]).tolist()) | {0}
        if missing:
            symbols = " ".join(self.codec.spec.symbols[token] for token in sorted(missing)[:20])
            hints.append(f"never seen in training: {symbols}")
        return [("hint", hint) for hint in hints]


def build_dataset(file: str, pairs: Sequence[Pair], codec: Codec, rule: SplitRule) -> Dataset:
    """Encode the pairs, remove repeats and divide the rest."""
    tokens = np.empty((2, len(pairs), codec.spec.length), np.int32)
    for index, pair in enumerate(pairs):
        try:
            tokens[0, index], tokens[1, index] = codec.encode(pair.input), codec.encode(pair.output)
        except PuzzleError as error:
            raise DataError(f"{pair.where}: {error}") from None
    kept, others = _without_repeats(pairs, tokens, rule.allow_ambiguous)
    if len(kept) < rule.fewest:
        raise DataError(f"{file} has {len(kept)} different puzzles; at least {rule.fewest} are needed, so add some")
    splits, drawn = _assign_splits([pairs[index] for index in kept], rule)
    return Dataset(
        file=file,
        codec=codec,
        rows=len(pairs),
        repeats=len(pairs) - len(kept) - others,
        others=others,
        inputs=tokens[0, kept],
        labels=tokens[1, kept],
        splits=splits,
        drawn=drawn,
    )


def _without_repeats(pairs: Sequence[Pair], tokens: Tokens, allow_ambiguous: bool) -> tuple[list[int], int]:
    """The rows to keep, and how many of the others have another output than the one that is kept."""
    first: dict[bytes, int] = {}
    others = 0
    # A puzzle that the file has in the test and in training is a test puzzle: test sets are there to be compared.
    order = {None: 0, "test": 0, "validation": 1, "train": 2}
    for index in sorted(range(len(pairs)), key=lambda index: order[pairs[index].split]):
        earlier = first.setdefault(tokens[0, index].tobytes(), index)
        if np.array_equal(tokens[1, earlier], tokens[1, index]):
            continue
        if not allow_ambiguous:
            places = " and ".join(pairs[place].where for place in sorted((earlier, index)))
            hint = "mend one, or keep the first with --task.allow-ambiguous"
            raise DataError(f"{places} have the same input but different outputs; {hint}")
        others += 1
    return sorted(first.values()), others


def _assign_splits(pairs: Sequence[Pair], rule: SplitRule) -> tuple[npt.NDArray[np.str_], tuple[Split, ...]]:
    """The split of each pair, and which splits had to be drawn."""
    splits = np.array([pair.split or "train" for pair in pairs], dtype="<U10")
    pool = [index for index, pair in enumerate(pairs) if pair.split in (None, "train")]
    pool.sort(key=lambda index: hashlib.sha256(f"{rule.seed} {json.dumps(pairs[index].input)}".encode()).digest())
    drawn: list[Split] = []
    shares: dict[Split, float] = {"test": rule.test, "validation": rule.validation}
    begin = 0
    for split, share in shares.items():
        if share > 0 and not (splits == split).any():
            end = begin + max(1, round(share * len(pool)))
            splits[pool[begin:end]] = split
            begin = end
            drawn.append(split)
    return splits, tuple(drawn)


def _sizes(tokens: Tokens, box: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Rows and columns [N, 2] of each value without its padding."""
    filled = tokens.reshape(-1, *box) > 0
    return np.stack([filled.any(axis=2).sum(axis=1), filled.any(axis=1).sum(axis=1)], axis=1)


def _range(sizes: npt.NDArray[np.int64], kind: Kind) -> str:
    low, high = _size(sizes.min(axis=0), kind), _size(sizes.max(axis=0), kind)
    return low if low == high else f"{low} to {high}"


def _size(box: Sequence[int] | npt.NDArray[np.int64], kind: Kind) -> str:
    rows, columns = (int(size) for size in box)
    return f"{rows} x {columns} cells" if kind == "grid" else f"{columns} symbols"
