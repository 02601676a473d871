"""One engine for many callers: a thread that steps it, and a queue with an end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias, cast

from loopwise.errors import ClosedError, QueueFullError
from loopwise.solving.engine import Engine
from loopwise.solving.solution import Request, Solution

__all__ = ["Answer", "Service"]

Answer: TypeAlias = "Future[Solution]"


class Service:
    """Steps an engine in a thread of its own while there is work.

    `most` puzzles may be on their way; one more is refused. Its methods may be called from any thread.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine = engine
        self._most = most
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Answer, Callable[[Answer], Request] | None]] = deque()  # None: it was cancelled
        self._pending: set[Answer] = set()
        self._requests: dict[Answer, Request] = {}  # the thread's own
        self._closed = False
        self.load = (0, 0, 0)
        """(passes in slots, passes that wait for one, slots there are) after the last step; lengths have slots each."""
        self._thread = threading.Thread(target=self._run, name="loopwise solver", daemon=True)
        self._thread.start()

    def submit(self, enter: Callable[[Answer], Request]) -> Answer:
        """Let the thread make a request, whose passes have the future as their key; it gets the answer.

        A future that is cancelled frees its slots. Raises QueueFullError, or ClosedError after `close`.
        """
        future: Answer = Future()
        with self._wake:
            if self._closed:
                raise ClosedError("the solver is closed")
            if len(self._pending) >= self._most:
                raise QueueFullError(
                    f"{self._most} puzzles are on their way already; try again later, or allow more with max_waiting"
                )
            self._pending.add(future)
            self._inbox.append((future, enter))
            self._wake.notify()
        future.add_done_callback(self._done)
        return future

    @property
    def closed(self) -> bool:
        """Whether it takes no more puzzles."""
        return self._closed

    def close(self) -> None:
        """End the thread. What is still on its way gets a ClosedError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _done(self, future: Answer) -> None:
        with self._wake:
            self._pending.discard(future)
            if future.cancelled():
                self._inbox.append((future, None))
                self._wake.notify()

    def _run(self) -> None:
        reason: BaseException = ClosedError("the solver was closed before the puzzle was solved")
        try:
            while self._take():
                for work in self.engine.step():
                    future = cast(Answer, work.key)
                    if self._requests[future].ended(work):
                        _settle(future, _result(self._requests.pop(future)))
                self.load = (self.engine.active, self.engine.waiting, self.engine.open_slots)
        except BaseException as error:  # such as a device without memory; those who wait shall hear of it
            reason = error
        with self._wake:
            self._closed = True
            self.load = (0, 0, 0)
            pending = list(self._pending)
        for future in pending:
            _settle(future, reason)

    def _take(self) -> bool:
        """Wait until there is work, and take in what has come; whether to go on."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._inbox or self._requests)
            if self._closed:
                return False
            inbox, self._inbox = self._inbox, deque()
        for future, enter in inbox:
            if future.cancelled():
                if future in self._requests:
                    self._requests.pop(future).cancel()
            elif enter is not None:
                try:
                    self._requests[future] = enter(future)
                except Exception as error:  # of a user's task; no other puzzle has to do with it
                    _settle(future, error)
        return True


def _result(request: Request) -> Solution | Exception:
    """The solution of a puzzle that is done, or what went wrong, in the code of a user's task too."""
    try:
        return request.result()
    except Exception as error:
        return error


def _settle(future: Answer, result: Solution | BaseException) -> None:
    """Give a future its result, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
