"""What can go wrong with a request, as the HTTP world writes it: application/problem+json (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from loopwise.errors import (
    ClosedError,
    ConfigError,
    DataError,
    DeadlineError,
    LoopwiseError,
    PuzzleError,
    QueueFullError,
)
from loopwise.types import Json

__all__ = ["PROBLEM_JSON", "JsonResponse", "Problem", "problem_of", "to_json"]

PROBLEM_JSON = "application/problem+json"

TOO_MANY = 429

UNAVAILABLE = 503

KINDS: dict[type[LoopwiseError], tuple[int, str]] = {
    PuzzleError: (422, "puzzle"),
    ConfigError: (422, "option"),
    DataError: (422, "data"),
    QueueFullError: (TOO_MANY, "queue-full"),
    DeadlineError: (TOO_MANY, "deadline"),
    ClosedError: (UNAVAILABLE, "shutting-down"),
}
"""Status and name of the problems that are foreseen where a puzzle is solved."""


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A request, or one puzzle of it, that gets no answer."""

    def __init__(self, status: int, kind: str, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after

    def body(self) -> dict[str, Json]:
        """The members of the problem's JSON object."""
        title = HTTPStatus(self.status).phrase
        found: dict[str, Json] = {
            "type": f"urn:loopwise:problem:{self.kind}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.retry_after is not None:
            found["retry_after"] = self.retry_after
        return found

    def response(self) -> Response:
        """The whole response."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            headers["connection"] = "close"  # the rest of the body is not waited for
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        return JsonResponse(self.body(), self.status, headers, PROBLEM_JSON)


class JsonResponse(Response):
    """JSON in ASCII: text that no UTF-8 can write, such as half of a surrogate pair, is escaped like all the rest."""

    def __init__(
        self,
        content: Json,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/json",
    ) -> None:
        super().__init__(to_json(content), status, headers, media_type)


def to_json(content: Json) -> bytes:
    """JSON without NaN and infinity, which other readers refuse."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def problem_of(error: BaseException) -> Problem:
    """The problem of an error that solving a puzzle has raised.

    What nobody foresaw is logged with its traceback and told without.
    """
    if isinstance(error, Problem):
        return error
    for kind, (status, name) in KINDS.items():
        if isinstance(error, kind):
            return Problem(status, name, str(error), retry_after=1 if status in (TOO_MANY, UNAVAILABLE) else None)
    if isinstance(error, LoopwiseError):
        # Numbers that are not finite, by the weights' doing: what is told is of the start that never has noise.
        return Problem(500, "not-finite", str(error))
    logging.getLogger("loopwise.serving").error("a puzzle has failed", exc_info=error)
    return Problem(500, "internal", "an internal error; the server's log says more")
