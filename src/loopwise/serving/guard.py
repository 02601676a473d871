"""In front of everything: who may ask, how much may be sent and how slowly, what each response carries, the log."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import os
import time
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopwise.serving.hosting import Hosting
from loopwise.serving.logs import log
from loopwise.serving.problems import Problem
from loopwise.types import Json

__all__ = ["GONE", "OPEN_PATHS", "Guard", "read_body"]

GONE = 499
"""Status, in log and metrics alone, of a request whose caller has gone away."""

OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico")
"""What needs no key, and everything below /static/: the page asks for the key itself."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page may load nothing from elsewhere and run no code that stands in its HTML; pictures it may make itself."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

MOST_BODIES = 64
"""So many bodies of the largest size may be held while they are read: what callers can fill who never ask anything."""

LINGER = 16
"""Of a body that is too large, so many times the limit is read and thrown away: a caller that is still writing when the
connection closes does not get to see the answer.
"""


class Guard:
    """Wraps the application. Without a key, only requests to this machine's own names are let in: otherwise a page of
    another site could, by a name of its own that leads here, ask from inside the user's browser.
    """

    def __init__(self, app: ASGIApp, hosting: Hosting) -> None:
        self.app = app
        self.hosting = hosting
        settings = hosting.settings
        self._numbers = itertools.count(1)
        named = {*LOCAL_NAMES, settings.host, f"[{settings.host}]", *settings.hosts}
        self._names = {name.lower().encode() for name in named}
        self._key = settings.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        name = f"{os.getpid()}-{next(self._numbers)}"
        notes: dict[str, Json] = {}
        scope["loopwise"] = notes

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*HEADERS, (b"x-request-id", name.encode())]
                if self.hosting.draining:
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        self.hosting.in_flight += 1
        try:
            try:
                self._let_in(scope)
                await self.app(scope, receive, answer)
            except Problem as problem:
                await problem.response()(scope, receive, answer)
        except Exception as error:  # the application has answered it already
            logging.getLogger("loopwise.serving").error("a request has failed", exc_info=error)
        finally:
            self.hosting.in_flight -= 1
            if not status or notes.get("outcome") == "gone":  # a stream had its status before
                status = GONE
            self.hosting.meters.responses.labels(str(status)).inc()
            path, quiet = scope["path"], scope["path"] in ("/healthz", "/readyz", "/metrics")
            seconds = round(time.monotonic() - began, 6)
            level = logging.DEBUG if quiet else logging.INFO
            client = (scope.get("client") or ("",))[0]
            fields = {"method": scope["method"], "path": path, "status": status, "seconds": seconds}
            log("request", level=level, id=name, client=client, **fields, **notes)

    def _let_in(self, scope: Scope) -> None:
        """Raise Problem where a request may not come in."""
        path = scope["path"]
        if not self._key:
            host = _header(scope["headers"], b"host")
            if host.rsplit(b":", 1)[0].lower() not in self._names and host.lower() not in self._names:
                raise Problem(400, "host", "the service is not known by this name; --allow-host adds one")
        elif path not in OPEN_PATHS and not path.startswith("/static/"):
            scheme, _, shown = _header(scope["headers"], b"authorization").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self._key):
                raise Problem(401, "key", "show the service's key, as in Authorization: Bearer KEY")


async def read_body(scope: Scope, receive: Receive, hosting: Hosting) -> bytes:
    """The body of a request. Raises Problem where it is too large, too slow or no JSON, or where too many come at once,
    and ClientDisconnect where the caller goes away.
    """
    kind = _header(scope["headers"], b"content-type").split(b";")[0].strip().lower()
    if kind != b"application/json":
        # A page of another site can have a browser send any other kind without asking whether it may.
        raise Problem(415, "content-type", "send the request as Content-Type: application/json")
    settings = hosting.settings
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(settings.receive_seconds):
            complete = await _receive(receive, chunks, hosting)
    except TimeoutError:
        seconds = settings.receive_seconds
        raise Problem(408, "slow-body", f"the body has not arrived within {seconds:g} s; send it faster") from None
    finally:
        hosting.bytes_held -= sum(map(len, chunks))
    if not complete:
        raise Problem(413, "too-large", f"a request may have {settings.max_body} bytes; send fewer puzzles at a time")
    return b"".join(chunks)


async def _receive(receive: Receive, chunks: list[bytes], hosting: Hosting) -> bool:
    """Put a body into `chunks`; whether it is complete: of one that is too large, more is read than is kept."""
    most = hosting.settings.max_body
    size, more = 0, True
    while more and size <= most * LINGER:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= most:
            if hosting.bytes_held + len(chunk) > MOST_BODIES * most:
                raise Problem(429, "busy", "too many requests are being read already; ask again later", retry_after=1)
            hosting.bytes_held += len(chunk)
            chunks.append(chunk)
        more = message.get("more_body", False)
    return size <= most


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first header of that name; empty where there is none."""
    return next((value for key, value in headers if key == name), b"")
