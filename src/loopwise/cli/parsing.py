"""Command lines from dataclasses, by tyro; its boxes of text become one line for an error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from loopwise.errors import ConfigError

__all__ = ["arguments_class", "parse", "parse_counts", "parse_duration", "take_option", "take_positional"]

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str], *, command: str, about: str) -> T:
    """Fill a dataclass from a command line. `--help` prints and exits; a mistake raises ConfigError in one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            filled: T = tyro.cli(cls, args=list(arguments), prog=f"loopwise {command}", description=about)
            return filled
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_sentence(complaint.getvalue())}; see loopwise {command} --help") from None


def arguments_class(name: str, *bases: type, **fields: tuple[type, Any, str]) -> type[Any]:
    """A dataclass made of {field: (type, default, help)}, for options whose types are known only at run time; it has
    the options of its bases too.
    """
    made = [
        (field, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default))
        for field, (kind, default, text) in fields.items()
    ]
    return dataclasses.make_dataclass(name, made, bases=bases, frozen=True, kw_only=True)


def take_positional(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the first argument if it is no option, the others)."""
    if arguments and (not arguments[0].startswith("-") or arguments[0] == "-"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def take_option(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """(the value of `option`, the arguments without it); for options that decide which others there are."""
    rest, value = [], None
    pending = iter(arguments)
    for argument in pending:
        if argument == option:
            value = next(pending, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{option} needs a value")
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m` or `1.5h`. Raises ConfigError."""
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        hours, minutes, seconds = (float(p or 0) for p in (parts.groups() if parts and text.strip() else ("x",)))
    except ValueError:
        raise ConfigError(f"{text!r} is no duration; write 90s, 10m or 1h30m") from None
    return 3600 * hours + 60 * minutes + seconds


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """The whole numbers of `1,2,4`, of what they count such as steps. Raises ConfigError."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{text!r} is no list of {what}; write whole numbers with commas, such as 1,4,16") from None
    if min(counts) < 1:
        raise ConfigError(f"numbers of {what} must be at least 1, not {min(counts)}")
    return counts


def _sentence(box: str) -> str:
    """The message of one of tyro's boxes: its first section, and the first proposal if there is one."""
    raws = box.splitlines()
    if "╭" not in box:  # where the output is not in UTF-8 there is no frame: a title, and rules of hyphens
        raws = raws[2:]
    sections: list[list[str]] = [[]]
    for raw in raws:
        if raw.startswith(("╭", "╰")):
            continue
        line = raw.strip("│─ \n")
        if line.strip("-"):
            sections[-1].append(line)
        else:
            sections.append([])
    message = " ".join(sections[0]).rstrip(".")
    hints = [s for s in sections[1:] if s and s[0].startswith("Perhaps")]
    if hints and len(hints[0]) > 1:
        message += f", perhaps you meant {hints[0][1].split()[0].rstrip(',')}"
    return message[:1].lower() + message[1:]
