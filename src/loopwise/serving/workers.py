"""Several processes behind one socket: started, watched, started again where one dies, and ended together."""

from __future__ import annotations

import ctypes
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
"""Where a process dies within so many seconds of its start, or cannot load, it is started again after as many."""

NO_MODEL = 3
"""Exit code of a process whose models cannot be loaded. Until one has served, to start it again would not help."""


class Workers:
    """The parent of the processes. It holds the socket, so that no caller is turned away while one starts again."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self.settings = settings
        self.listening = listening
        self._processes: list[BaseProcess] = []
        self._born: dict[int, float] = {}
        self._ending = 0.0
        self._not_before = 0.0
        self._failed = False
        # Set by the first process whose models are warm. It has no lock, which a process could take to its death.
        self._warm = multiprocessing.get_context("spawn").RawValue(ctypes.c_bool, False)

    def run(self) -> None:
        """Run until a signal ends it. Raises LoopwiseError where a model cannot be loaded and none has served yet."""
        with tempfile.TemporaryDirectory(prefix="loopwise-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            before = {sig: signal.signal(sig, self._end) for sig in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._fill()
                while self._processes or not self._ending:
                    time.sleep(0.1)
                    self._look()
            finally:
                for process in self._processes:
                    process.kill()
                for sig, handler in before.items():
                    signal.signal(sig, handler)
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        if self._failed:
            raise LoopwiseError("a process could not load its models; its log says why")

    def _fill(self) -> None:
        """Start as many as are missing."""
        while len(self._processes) < self.settings.workers and not self._ending:
            self._start()

    def _start(self) -> None:
        # A fresh interpreter: torch's threads do not survive a fork.
        arguments = (self.settings, self.listening, self._warm)
        process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments)
        process.start()
        self._processes.append(process)
        self._born[process.pid or 0] = time.monotonic()
        if self._ending:  # the signal came before it was in the list
            process.terminate()

    def _end(self, sig: int, frame: FrameType | None) -> None:
        """Pass a signal on: the first lets the processes drain, the second ends them at once."""
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
            age = now - self._born.pop(process.pid or 0, 0.0)
            if self._ending:
                continue
            unable = process.exitcode == NO_MODEL
            if unable and not self._warm.value:
                self._failed = True
                self._end(signal.SIGTERM, None)
                continue
            log("process died", pid=process.pid, exit_code=process.exitcode)
            if unable or age < SOON:
                self._not_before = now + SOON
        if now >= self._not_before:
            self._fill()

    def _forget(self, process: BaseProcess) -> None:
        """Let the gauges of a process that is gone no longer count."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid)  # type: ignore[no-untyped-call]


def _work(settings: Settings, listening: socket.socket, warm: ctypes.c_bool) -> None:
    """One process."""
    from loopwise.runtime import keep_freed_memory
    from loopwise.serving.server import serve

    os.setpgrp()  # Ctrl-C is for the parent, which passes it on; twice would end this process at once
    threading.Thread(target=_end_with_parent, name="loopwise parent", daemon=True).start()
    keep_freed_memory()
    with to_standard_error():
        try:
            serve(settings, listening, warm)
        except LoopwiseError as error:
            log("cannot serve", reason=str(error))
            sys.exit(NO_MODEL)


def _end_with_parent() -> None:
    """End at once when the parent is gone, killed: who starts it again wants the socket."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
