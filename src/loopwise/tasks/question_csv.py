"""Puzzles from a CSV file with columns question and answer, the form of the published Sudoku-Extreme and Maze-Hard."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from importlib.resources.abc import Traversable
from pathlib import Path

from loopwise.errors import DataError

__all__ = ["read_columns"]


def _read_text(source: Path | Traversable, name: str) -> str:
    try:
        raw = source.read_bytes()
        return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no file {name!r}; give the path of a CSV with columns question,answer") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read {name!r} ({reason}); give a CSV file, plain or .gz") from error


def read_columns(source: Path | Traversable, name: str, cells: int) -> tuple[list[str], list[str], list[int]]:
    """The questions and the answers [N], of `cells` symbols each, and the line of the file [N] that each ends on.

    Blanks around a value are passed over unless they are cells. Raises DataError with the line and the reason.
    """
    reader = csv.DictReader(io.StringIO(_read_text(source, name)))
    columns: dict[str, list[str]] = {"question": [], "answer": []}
    lines: list[int] = []
    try:
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise DataError(f"{name!r} has no column {column!r}; its first line must name question and answer")
        for row in reader:
            for column, values in columns.items():
                value = row[column] or ""
                if cells not in (len(value), len(value.strip())):
                    reason = f"the {column} has {len(value)} symbols and must have {cells}"
                    advice = "correct or remove the line, or choose the size of the task to fit"
                    raise DataError(f"{name!r}, line {reader.line_num}: {reason}; {advice}")
                values.append(value if len(value) == cells else value.strip())
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{name!r}, line {reader.line_num}: {error}; correct or remove the line") from error
    if not lines:
        raise DataError(f"{name!r} has no puzzles; give a CSV with a line for each below the names of the columns")
    return columns["question"], columns["answer"], lines
