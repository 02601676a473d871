"""Asking a task's rules about an answer, where the rules may be a user's own code: it may raise, or never return."""

from __future__ import annotations

import ctypes
import logging
from threading import Lock, Thread
from typing import Any

from loopwise.tasks.base import Task
from loopwise.types import Tokens

__all__ = ["Checker"]

SECONDS = 2.0
"""How long a call of foreign code may take."""
MOST_HANGS = 3
"""After so many calls that took longer, foreign code is not called again."""


class Checker:
    """The rules of a task, asked safely and from any thread: checker(puzzle, answer) -> bool or None (undecided).

    What fails or takes longer than `seconds` is undecided. The first of either is logged as a warning.
    """

    def __init__(self, task: Task[Any], seconds: float = SECONDS) -> None:
        self.task = task
        self.seconds = seconds
        self._lock = Lock()
        self._hangs = 0
        self._failures = 0

    def __call__(self, puzzle: Tokens, answer: Tokens) -> bool | None:
        """What the rules say of an answer [L]. Raises ConfigError where a checker of the user's cannot be imported."""
        if not self.task.foreign_rules:
            return self.task.verify(puzzle, answer)
        with self._lock:
            return self._ask(puzzle, answer) if self._hangs < MOST_HANGS else None

    def _ask(self, puzzle: Tokens, answer: Tokens) -> bool | None:
        """Call foreign code in a thread of its own, which is given up when the time is over."""
        said: list[Any] = []

        def ask() -> None:
            try:
                said.append(self.task.verify(puzzle, answer))
            except BaseException as error:  # SystemExit among them: it is foreign code
                said.append(error)

        thread = Thread(target=ask, name="loopwise checker", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not said:
            self._hung(thread)
            return None
        (verdict,) = said
        if not isinstance(verdict, BaseException):
            return None if verdict is None else bool(verdict)
        self._failures += 1
        if self._failures == 1:
            _warn(f"{verdict or type(verdict).__name__}; counted as undecided, as are failures to come")
        return None

    def _hung(self, thread: Thread) -> None:
        self._hangs += 1
        if self._hangs == 1:
            _warn(f"the rules took longer than {self.seconds:g} s to check an answer; counted as undecided")
        if self._hangs == MOST_HANGS:
            _warn(f"the rules took too long {MOST_HANGS} times; they are not asked again")
        # A thread cannot be killed, and one that computes without end was measured to slow the solver down 40 times, as
        # Python runs one thread at a time. An exception raised inside of it ends it, unless it sleeps or catches all.
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


def _warn(text: str) -> None:
    logging.getLogger("loopwise").warning(text)
