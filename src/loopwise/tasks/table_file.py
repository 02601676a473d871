"""Records from a file of puzzles: JSON Lines, JSON, CSV or TSV, plain or gzipped.

A record is a mapping from column to value, with the place where it stands, so that every complaint about a value can
name file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from loopwise.errors import DataError
from loopwise.tasks.text import one_line, shown
from loopwise.types import Json

__all__ = ["Record", "read_records"]


class Record(NamedTuple):
    """One puzzle of a file."""

    where: str  # "puzzles.csv, line 3"
    fields: dict[str, Json]


def read_records(file: str, list_columns: Iterable[str] = ()) -> list[Record]:
    """Read all records of a file; its ending says in which format.

    A separated file (CSV, TSV) has only strings. Of its `list_columns`, those whose first cell is a JSON list are read
    as JSON.

    Raises DataError, in one line with file and line number, for whatever is wrong with it.
    """
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    zipped = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if zipped else suffixes)[-1:]
    reader = READERS.get(suffix[0] if suffix else "")
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(f"{file}: the name must end in one of {known} (or these and .gz), so that its format is known")
    text = _decode(file, _read_bytes(file, zipped))
    records = list(reader(file, text))
    if not records:
        raise DataError(f"{file} is empty; it needs a puzzle and its answer on each line")
    return _decode_lists(records, list_columns) if reader in (_read_csv, _read_tsv) else records


def _read_bytes(file: str, zipped: bool) -> bytes:
    try:
        content = Path(file).read_bytes()
        return gzip.decompress(content) if zipped else content
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; check the path given as --task.file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{file} is damaged or not gzipped; compress it again, or drop .gz from its name") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file} cannot be read: {reason}") from None


def _decode(file: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not UTF-8 text; save the file with the encoding UTF-8") from None


def _read_json_lines(file: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if line.strip():
            where = f"{file}, line {number}"
            yield Record(where, _as_fields(where, _load(where, line)))


def _read_json(file: str, text: str) -> Iterator[Record]:
    if not text.strip():
        return
    items = _load(file, text)
    if not isinstance(items, list):
        raise DataError(f'{file} must hold a list of objects, such as [{{"input": "12", "output": "21"}}]')
    for number, item in enumerate(items, start=1):
        where = f"{file}, item {number}"
        yield Record(where, _as_fields(where, item))


def _load(where: str, text: str) -> Json:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        reason = f"{error.msg} at {place}"
        hint = "; one object a line is the format .jsonl" if error.msg == "Extra data" else ""
    except (ValueError, RecursionError) as error:
        reason, hint = one_line(error, 80), ""
    raise DataError(f"{where}: invalid JSON: {reason}{hint}")


def _as_fields(where: str, value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise DataError(f'{where}: {shown(value)} is not an object; write {{"input": "12", "output": "21"}}')
    return value


def _read_csv(file: str, text: str) -> Iterator[Record]:
    header = text.lstrip().split("\n", 1)[0]
    # Spreadsheets write semicolons where the comma is the decimal sign.
    return _read_separated(file, text, ";" if ";" in header and "," not in header else ",")


def _read_tsv(file: str, text: str) -> Iterator[Record]:
    return _read_separated(file, text, "\t")


def _read_separated(file: str, text: str, delimiter: str) -> Iterator[Record]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    end = 0  # a cell may hold line breaks: the record that follows begins on the next line
    try:
        for row in rows:
            where, end = f"{file}, line {end + 1}", rows.line_num
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            if len(row) != len(header):
                count = f"{len(row)} cells, but the header has {len(header)}"
                raise DataError(f"{where}: {count}; quote cells that hold the separator {delimiter!r}")
            yield Record(where, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: {error}; check the quotes") from None


def _decode_lists(records: list[Record], columns: Iterable[str]) -> list[Record]:
    for column in columns:
        if not _is_json_list(records[0].fields.get(column, "")):
            continue
        for where, fields in records:
            fields[column] = _load(f"{where}, column {column!r}", fields[column])
    return records


def _is_json_list(cell: str) -> bool:
    try:
        return isinstance(json.loads(cell), list)
    except (ValueError, RecursionError):
        return False


READERS: dict[str, Callable[[str, str], Iterator[Record]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
