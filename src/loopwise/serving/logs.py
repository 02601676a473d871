"""Structured logs: one JSON object a line, on the standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from loopwise.types import Json

__all__ = ["log", "to_standard_error"]

LOGGER = logging.getLogger("loopwise.serving")


class Lines(logging.Formatter):
    """A record as a line of JSON; `fields` of the record are members of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        found: dict[str, Json] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


def to_standard_error(stream: TextIO | None = None) -> None:
    """Write the records of loopwise and of uvicorn as lines of JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    for name, level in (("loopwise", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log(event: str, *, level: int = logging.INFO, **fields: Json) -> None:
    """Write an event with its fields."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})
