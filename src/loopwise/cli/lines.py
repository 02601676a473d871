"""Puzzles from a stream of lines, one a line, as they come and whatever is in them."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import IO

from loopwise.cli.puzzles import read_line
from loopwise.errors import DataError, PuzzleError
from loopwise.solving.solver import NOT_YET
from loopwise.types import Json

__all__ = ["LONGEST", "Lines"]

CHUNK = 2**16
LONGEST = 2**20
"""Bytes of the longest line that is read."""


class Lines:
    """The puzzles of a file, or of the standard input where `file` is empty, in constant memory.

    A line that is too long or no text gives its PuzzleError; empty ones are passed over. Where the next line has not
    come and answers are on their way, NOT_YET stands for it; so `answered` must be called for each answer.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._on_their_way = 0
        self._read = 0
        self._size = 0

    @property
    def share(self) -> float:
        """How much of a file has been read; 0 where its size is not known."""
        return self._read / self._size if self._size else 0.0

    def answered(self) -> None:
        """Take note that a puzzle has its answer, or its error."""
        self._on_their_way -= 1

    def __iter__(self) -> Iterator[Json]:
        try:
            with open(self._file, "rb") if self._file else contextlib.nullcontext(_standard_input()) as stream:
                for line in _split(self._chunks(stream)):
                    if line is None:
                        yield NOT_YET
                    elif line.strip():
                        self._on_their_way += 1
                        yield _puzzle(line)
        except FileNotFoundError:
            raise DataError(f"there is no file {self._file}; give a file of one puzzle a line") from None
        except (ValueError, IsADirectoryError) as error:
            raise DataError(f"{self._file or 'the standard input'} cannot be read as text ({error})") from None

    def _chunks(self, stream: IO[bytes]) -> Iterator[bytes | None]:
        """What is there, in pieces; None where nothing is, but answers are on their way."""
        try:
            number = stream.fileno()
            found = os.fstat(number)
            select.select([number], [], [], 0)
        except (OSError, ValueError):  # no file of the system's, or one that cannot be asked whether there is something
            yield from iter(lambda: stream.readline(CHUNK), b"")
            return
        self._size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        while True:
            there, _, _ = select.select([number], [], [], 0 if self._on_their_way else None)
            if not there:
                yield None
            elif chunk := os.read(number, CHUNK):
                self._read += len(chunk)
                yield chunk
            else:
                return


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise DataError("the standard input is closed; give a puzzle, or --file FILE")
    return sys.stdin.buffer


def _split(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """The lines of a stream in pieces, cut where they are longer than LONGEST; None passes through."""
    begun = b""
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        *lines, begun = (begun + chunk).split(b"\n")
        yield from lines
        begun = begun[: LONGEST + 1]
    yield begun


def _puzzle(line: bytes) -> Json:
    """The puzzle of a line, or why it has none."""
    if len(line) > LONGEST:
        return PuzzleError(f"the line is longer than {LONGEST:,} bytes; one puzzle a line is expected")
    try:
        return read_line(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r").decode())
    except UnicodeDecodeError as error:
        return PuzzleError(f"the line is no text: byte {error.start + 1} is not UTF-8; save the file as UTF-8")
