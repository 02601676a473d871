"""How far a stream of answers is, told on the standard error where that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

__all__ = ["Progress"]

INTERVAL = 0.2
"""Seconds between two lines that replace each other."""


class Progress:
    """A line that tells count and rate; the last one stays. Nothing where `hidden`."""

    def __init__(self, *, hidden: bool = False) -> None:
        shown = sys.stderr.isatty() and not hidden
        live = Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False)
        self._live = live if shown else None
        self._begun = self._told = time.monotonic()
        self._count = 0
        self._share = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._tell(self._live)
            self._live.stop()

    def advance(self, share: float = 0.0) -> None:
        """One more is done; `share` of the input has been read, 0 where its size is not known."""
        self._count += 1
        self._share = share
        if self._live and time.monotonic() - self._told > INTERVAL:
            self._tell(self._live)

    def _tell(self, live: Live) -> None:
        self._told = time.monotonic()
        rate = self._count / max(self._told - self._begun, 1e-9)
        read = f", {100 * self._share:.0f} % of the file read" if self._share else ""
        live.update(Text(f"{self._count:,} puzzles, {rate:,.0f} a second{read}"), refresh=True)
