"""Several processes behind one socket: started, watched, started again where one dies, and ended together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess
from types import FrameType

from loopwise.errors import LoopwiseError
from loopwise.serving.logs import log, to_standard_error
from loopwise.serving.settings import Settings

__all__ = ["Workers"]

GRACE = 10.0
"""Seconds beyond the drain time after which a process that has not ended is killed."""

SOON = 2.0
"""A process that dies so many seconds after its start is not started again at once."""

NO_MODEL = 3
"""Exit code of a process whose models cannot be loaded: to start it again would not help."""


class Workers:
    """The parent of the processes. It holds the socket, so that no caller is turned away while one starts again."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self.settings = settings
        self.listening = listening
        self._processes: list[BaseProcess] = []
        self._born: dict[int, float] = {}
        self._ending = 0.0
        self._hurried = False

    def run(self) -> None:
        """Run until a signal ends it. Raises LoopwiseError where a model cannot be loaded."""
        with tempfile.TemporaryDirectory(prefix="loopwise-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            before = {sig: signal.signal(sig, self._end) for sig in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._processes = [self._start() for _ in range(self.settings.workers)]
                while self._processes:
                    time.sleep(0.1)
                    self._look()
            finally:
                for process in self._processes:
                    process.kill()
                for sig, handler in before.items():
                    signal.signal(sig, handler)
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]

    def _start(self) -> BaseProcess:
        # A fresh interpreter: torch's threads do not survive a fork.
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(self.settings, self.listening))
        process.start()
        self._born[process.pid or 0] = time.monotonic()
        return process

    def _end(self, sig: int, frame: FrameType | None) -> None:
        """Pass a signal on: the first lets the processes drain, the second ends them at once."""
        self._hurried = bool(self._ending)
        self._ending = self._ending or time.monotonic()
        for process in self._processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)

    def _look(self) -> None:
        now = time.monotonic()
        for process in list(self._processes):
            if process.is_alive():
                if self._ending and now > self._ending + self.settings.drain_seconds + GRACE:
                    log("killed", pid=process.pid)
                    process.kill()
                continue
            process.join()
            self._processes.remove(process)
            self._forget(process)
            if self._ending:
                continue
            if process.exitcode == NO_MODEL:
                self._end(signal.SIGTERM, None)
                raise LoopwiseError("a process could not load its models; its log says why")
            log("process died", pid=process.pid, exit_code=process.exitcode)
            if now - self._born.pop(process.pid or 0, 0.0) < SOON:
                time.sleep(SOON)
            if not self._ending:
                self._processes.append(self._start())

    def _forget(self, process: BaseProcess) -> None:
        """Let the gauges of a process that is gone no longer count."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid)  # type: ignore[no-untyped-call]


def _work(settings: Settings, listening: socket.socket) -> None:
    """One process."""
    from loopwise.runtime import keep_freed_memory
    from loopwise.serving.server import serve

    os.setpgrp()  # Ctrl-C is for the parent, which passes it on; twice would end this process at once
    threading.Thread(target=_end_with_parent, name="loopwise parent", daemon=True).start()
    keep_freed_memory()
    with to_standard_error():
        try:
            serve(settings, listening)
        except LoopwiseError as error:
            log("cannot serve", reason=str(error))
            sys.exit(NO_MODEL)


def _end_with_parent() -> None:
    """End at once when the parent is gone, killed: who starts it again wants the socket."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
