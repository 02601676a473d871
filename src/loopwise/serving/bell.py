"""How the engines' threads wake the event loop: once for all that has happened since it last looked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Bell"]


class Bell:
    """Lets other threads have functions called in an event loop.

    To wake the loop is a system call, during which another thread may take the interpreter and keep it for
    milliseconds; a step in which thirty puzzles end shall not risk that thirty times.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._rung = False

    def hang(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which loop it wakes."""
        self._loop = loop

    def ring(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have something called soon, from any thread."""
        self._calls.append((call, arguments))
        if self._rung or self._loop is None:
            return
        self._rung = True
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed, nobody waits any more
            self._calls.clear()

    def _answer(self) -> None:
        # Before the calls are looked at: whoever rings from now on is heard, at worst twice.
        self._rung = False
        while self._calls:
            call, arguments = self._calls.popleft()
            call(*arguments)
