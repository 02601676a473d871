"""One process of the service: uvicorn, with an end that loses no request, and without patience for the slow."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
import select
import socket
import time
from itertools import chain
from types import FrameType
from typing import Any

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from loopwise.errors import LoopwiseError
from loopwise.serving.app import make_app
from loopwise.serving.guard import Guard
from loopwise.serving.hosting import Hosting
from loopwise.serving.logs import log
from loopwise.serving.settings import Settings

__all__ = ["Server", "listen", "make_server", "serve"]

KEEP_ALIVE = 5
"""Seconds after which a connection without a request is closed."""

BACKLOG = 2048

SEND_BUFFER = 2**18
"""Bytes of a connection that the system keeps for a caller who does not read; it would keep megabytes by itself."""

QUIET = 0.5
"""Seconds without a puzzle or an answer on its way after which a draining service takes no more connections, and then
once more as long, in which those that are open still hear that it ends.
"""

HURRY = 0.2
"""Seconds that remain for telling those who are refused, where a second signal has come."""


class Connection(H11Protocol):
    """Closes a connection whose request does not come, or whose answer is not read, within `receive_seconds`."""

    receive_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's head, from its first byte on."""
        super().data_received(data)
        if self.flow.write_paused:
            return  # the timer waits for the other side to read, whatever else it sends
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._timer is None:
            self._wait()

    def pause_writing(self) -> None:
        """Wait for the other side to read."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._rest()

    def timeout_keep_alive_handler(self) -> None:
        """Close it, and do not wait for what nobody reads."""
        super().timeout_keep_alive_handler()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        super().connection_lost(exc)
        self._rest()

    def _wait(self) -> None:
        self._rest()
        self._timer = self.loop.call_later(self.receive_seconds, self._give_up)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abort()


class Server(uvicorn.Server):
    """Ends in order: after SIGTERM or Ctrl-C no more puzzles are taken, those on their way may finish within the drain
    time, the rest is refused, and then it ends. A second signal ends it at once.

    `warm`, which several processes share, says whether the models of one of them have been warm.
    """

    def __init__(self, config: uvicorn.Config, hosting: Hosting, warm: ctypes.c_bool) -> None:
        super().__init__(config)
        self.hosting = hosting
        self.warm = warm
        self._asked_at = 0.0
        self._busy_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        if self.hosting.draining:
            self.should_exit = self.force_exit = True
        self.hosting.draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to load the models, and listen: where others serve already, not before the models are warm, as callers
        would be turned away whom others can serve.
        """
        hosting = self.hosting
        hosting.start()
        while self.warm.value and not (hosting.ready or hosting.failure or hosting.draining):
            await asyncio.sleep(0.05)
        if hosting.failure is not None or hosting.draining:
            self.should_exit = True  # without having listened
            return
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end the engines; where there is hurry, they end with the process."""
        if self.force_exit:
            self.hosting.end_jobs("refused")
            await asyncio.sleep(HURRY)
        await super().shutdown(sockets)
        if not self.force_exit:
            await asyncio.to_thread(self.hosting.close)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: measure, and see whether to end."""
        hosting, now = self.hosting, time.monotonic()
        hosting.look()
        if hosting.failure is not None:
            return True
        if hosting.ready:
            self.warm.value = True
        if hosting.draining:
            if not self._asked_at:
                self._asked_at = self._busy_at = now
                log("draining", in_flight=hosting.in_flight, drain_seconds=hosting.settings.drain_seconds)
            # An answer that is being written is on its way, too; who does not read it is cut off by the connection.
            if hosting.jobs or any(each.transport.get_write_buffer_size() for each in self.server_state.connections):
                self._busy_at = now
            late = now - self._asked_at > hosting.settings.drain_seconds
            if late:
                log("refusing what is left", puzzles=sum(len(job.results) for job in hosting.jobs))
                hosting.end_jobs("refused")
            if late or now - self._busy_at > QUIET or not (hosting.in_flight or self.server_state.connections):
                await self._close_door()
                return True
        return await super().on_tick(counter)

    async def _close_door(self) -> None:
        """Take no more connections, and answer the requests of those that are open."""
        # To close drops those who knock, and those whose connection the loop has accepted but not set up; when a timer
        # wakes this one, the latter are none.
        end = time.monotonic() + QUIET
        await asyncio.sleep(0.001)
        while self._knocked() and time.monotonic() < end:
            await asyncio.sleep(0.001)
        for server in self.servers:
            server.close()
        end = time.monotonic() + QUIET
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _knocked(self) -> bool:
        """Whether someone waits for a connection to be accepted."""
        door = select.poll()
        for listening in chain.from_iterable(server.sockets for server in self.servers):
            door.register(listening, select.POLLIN)
        return bool(door.poll(0))


def listen(settings: Settings) -> socket.socket:
    """The socket of the service. Raises OSError where the address is taken or is none of this machine."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.set_inheritable(True)
    return listening


def make_server(guard: Guard, warm: ctypes.c_bool | None = None) -> Server:
    """A server of an application; `warm` as in Server."""
    hosting = guard.hosting
    protocol: Any = type("Connection", (Connection,), {"receive_seconds": hosting.settings.receive_seconds})
    config = uvicorn.Config(
        guard,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
        backlog=BACKLOG,
    )
    return Server(config, hosting, ctypes.c_bool(False) if warm is None else warm)


def serve(settings: Settings, listening: socket.socket, warm: ctypes.c_bool | None = None) -> None:
    """Serve until a signal ends it; `warm` as in Server. Raises LoopwiseError where a model cannot be loaded."""
    # HTTP needs a core too: with all of them taken by the engines, both were measured to be slower (docs/serving.md).
    torch.set_num_threads(settings.threads or max(1, (torch.get_num_threads() - 1) // settings.workers))
    _allow_connections()
    server = make_server(make_app(settings), warm)
    server.run(sockets=[listening])
    failure = server.hosting.failure
    if isinstance(failure, LoopwiseError):
        raise failure
    if failure is not None:
        raise LoopwiseError(f"the models could not be loaded: {failure}")
    log("ended")


def _allow_connections() -> None:
    """Let this process have as many connections as the system grants; the usual 1,024 are fewer than may wait."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the system's own limit is lower than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
