"""Steps as they happen: what is told of each, and the server-sent events that tell it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loopwise.serving.host import Host
from loopwise.serving.jobs import Job
from loopwise.serving.problems import Problem, to_json
from loopwise.serving.results import slow_reader
from loopwise.solving.solution import Glimpse
from loopwise.types import Json, Tokens

__all__ = ["MOST_STEPS", "EventStream", "Watch", "event"]

MOST_STEPS = 4096
"""Of one request, that are kept for a caller who does not read them, or for a trace."""

MOST_POSITIONS = 2**20
"""Of all those steps together; told, they are tens of megabytes."""

HEARTBEAT = 10.0
"""Seconds after which a silent stream gets a comment, so that nobody between takes the connection for dead."""

Confidence: TypeAlias = npt.NDArray[np.float32]


class Watch:
    """Takes the steps of one puzzle from the engine's thread; another reads them."""

    def __init__(self, host: Host, puzzle: Json) -> None:
        self.host = host
        self.overflown = False
        self.news = asyncio.Event()
        self._puzzle = puzzle
        self._tokens: Tokens = host.solver.read(puzzle)
        self._most = min(MOST_STEPS, MOST_POSITIONS // max(len(self._tokens), 1))
        self._checked = not host.solver.task.foreign_rules  # foreign code may raise, or never return
        self._seen: deque[tuple[Glimpse, Confidence | None]] = deque()
        self._previous: dict[int, Tokens] = {}

    def __call__(self, glimpse: Glimpse) -> None:
        """Note a step, in the engine's thread, where nothing may fail: what is left out is only less to look at."""
        if len(self._seen) >= self._most:
            self.overflown = True
            return
        answer = np.array(glimpse.answer)
        confidence = None if glimpse.logits is None else self.host.confidence(glimpse.logits, answer)
        self._seen.append((glimpse._replace(answer=answer, logits=None), confidence))
        self.host.bell.ring(self.news.set)

    @property
    def waiting(self) -> bool:
        """Whether there are steps to take."""
        return bool(self._seen)

    def take(self) -> Iterator[dict[str, Json]]:
        """What has been seen since the last call, as JSON objects. To be called in one thread at a time."""
        while self._seen:
            glimpse, confidence = self._seen.popleft()
            yield self._told(glimpse, confidence)

    def _told(self, glimpse: Glimpse, confidence: Confidence | None) -> dict[str, Json]:
        task, answer = self.host.solver.task, glimpse.answer
        before = self._previous.get(glimpse.start)
        self._previous[glimpse.start] = answer
        changed = [] if before is None else np.flatnonzero(answer != before).tolist()
        return {
            "start": glimpse.start,
            "step": glimpse.step,
            "answer": task.format(answer, self._puzzle),
            "tokens": answer.tolist(),
            "changed": changed,
            "guess": None if glimpse.seen is None else _guess(self._tokens, glimpse.seen),
            "halt_probability": round(glimpse.halt_probability, 6),
            "residual": round(glimpse.residual, 6) if math.isfinite(glimpse.residual) else None,
            "confidence": None if confidence is None else [round(share, 4) for share in confidence.tolist()],
            "violations": task.violations(self._tokens, answer) if self._checked else [],
            "verified": task.verify(self._tokens, answer) if self._checked else None,
        }


def _guess(puzzle: Tokens, seen: Tokens) -> dict[str, Json] | None:
    """What was guessed into a puzzle [L]; nothing where no position was open."""
    places = np.flatnonzero(seen != puzzle)
    return {"position": int(places[0]), "token": int(seen[places[0]])} if len(places) else None


def event(name: str, data: Json) -> bytes:
    """A server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + to_json(data) + b"\n\n"


class EventStream(Response):
    """The response that sends steps while a job goes on, then its result, then [DONE].

    `conclude` makes the result, or raises Problem, which is sent as an `error` event.
    """

    def __init__(self, job: Job, watch: Watch, conclude: Callable[[], Json], seconds: float) -> None:
        super().__init__(media_type="text/event-stream")
        self.job = job
        self.watch = watch
        self.conclude = conclude
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the job ends where the caller goes away or does not read for `seconds`."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"x-accel-buffering", b"no"))
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
            self.job.ended.add_done_callback(lambda ended: self.watch.news.set())
            while not self.job.ended.done():
                await self._steps(send)
            scope["loopwise"]["outcome"] = self.job.ended.result()
            if self.job.ended.result() == "gone":
                return
            last = await asyncio.to_thread(self._events)
            try:
                result = self.conclude()
                if self.watch.overflown:  # just before the end, or the job would have ended for it
                    raise slow_reader()
                last += event("result", result)
            except Problem as problem:
                last += event("error", problem.body())
            body = last + b"data: [DONE]\n\n"
            await self._send(send, {"type": "http.response.body", "body": body, "more_body": False})
        except (TimeoutError, OSError):
            scope["loopwise"]["outcome"] = "gone"
        finally:
            self.job.end("gone")

    async def _steps(self, send: Send) -> None:
        """Wait for steps and send them, together where there are several."""
        self.watch.news.clear()
        chunk = await asyncio.to_thread(self._events) if self.watch.waiting else b""
        if not chunk:
            if self.job.ended.done():
                return
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self.watch.news.wait()
                return
            except TimeoutError:
                chunk = b": still here\n\n"
        if self.watch.overflown:
            self.job.end("slow")
        await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})

    def _events(self) -> bytes:
        """The events of the steps that wait to be sent; in a thread, since there may be thousands."""
        return b"".join(event("step", step) for step in self.watch.take())

    async def _send(self, send: Send, message: dict[str, Json]) -> None:
        async with asyncio.timeout(self.seconds):
            await send(message)
