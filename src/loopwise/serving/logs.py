"""Structured logs: one JSON object a line, on the standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class Handler(logging.StreamHandler[TextIO]):
    """Writes to what is the standard error at that moment."""

    @property
    def stream(self) -> TextIO:
        """The standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


@contextmanager
def to_standard_error() -> Iterator[None]:
    """Write the records of loopwise and of uvicorn as lines of JSON, for as long as this lasts."""
    handler = Handler()
    handler.setFormatter(Lines())
    levels = {"loopwise": logging.INFO, "uvicorn": logging.WARNING, "asyncio": logging.WARNING}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger, level in loggers.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def log(event: str, *, level: int = logging.INFO, **fields: Json) -> None:
    """Write an event with its fields."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})
