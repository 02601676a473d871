"""Text in and out of tasks: values as people type them, and drawings with rich's console markup.

The functions know neither tasks nor tokens, so that every task can read and draw in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from loopwise.errors import PuzzleError
from loopwise.types import Json

__all__ = ["HOLE", "NO_SYMBOL", "items_of", "join_items", "load_json", "looks_like_json", "one_line", "paint", "shown"]

NO_SYMBOL = "?"
"""Written in a text where an answer holds padding between symbols, which only an unfinished answer does."""

HOLE = "·"
"""Drawn where an answer holds padding between symbols."""

SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
SPECIAL = re.compile(r"([\[:])")


def one_line(text: object, limit: int) -> str:
    """A text, or the message of an error, as it may stand in a one-line message."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shown(value: Json, limit: int = 40) -> str:
    """A value as it may stand in a one-line message: its repr, shortened."""
    try:
        return one_line(repr(value), limit)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists nested too deep
        return f"a value of type {type(value).__name__}"


def looks_like_json(text: str) -> bool:
    """Whether a text is meant as a JSON list."""
    return text.lstrip().startswith("[")


def load_json(text: str) -> Json:
    """Read JSON text; raises PuzzleError in one line where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PuzzleError(f"{shown(text)} starts like JSON but is none: {one_line(error, 80)}") from None


def items_of(text: str) -> list[Json]:
    """Read the items of `3 1 2`, `3,1,2`, `3; 1; 2` (as strings) or `[3, 1, 2]` (as JSON values)."""
    if looks_like_json(text):
        value = load_json(text)
        return value if isinstance(value, list) else [value]
    stripped = text.strip()
    return list(SEPARATOR.split(stripped)) if stripped else []


def join_items(items: Sequence[Json], like: str) -> str:
    """Write items with the separator of the text `like`, or as JSON if it is JSON; the inverse of `items_of`.

    An item that the separators would tear apart makes the text JSON, too.
    """
    texts = [NO_SYMBOL if item is None else str(item) for item in items]
    if looks_like_json(like) or any(SEPARATOR.search(text) for text in texts) or (texts and looks_like_json(texts[0])):
        return json.dumps(list(items), ensure_ascii=False)
    separator = SEPARATOR.search(like.strip())
    return (separator.group() if separator else " ").join(texts)


def paint(pieces: Iterable[tuple[str, str]]) -> str:
    """Join pieces (text, style) into console markup that shows every text as it is; style "" is plain.

    A bracket or a colon stands alone between tags: so it can begin neither a tag nor an emoji code, whatever
    follows. Characters that a terminal would act upon, all but the line break, are replaced.
    """
    segments: list[tuple[str, str]] = []
    for style, run in groupby(pieces, key=lambda piece: piece[1]):
        text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for t, _ in run for c in t)
        segments += [(part, style or ("none" if part in "[:" else "")) for part in SPECIAL.split(text) if part]
    drawn = ""
    for index, (text, style) in enumerate(segments):
        if style or (index + 1 < len(segments) and segments[index + 1][1]):
            # A backslash right before a tag would escape it; two are read as one.
            text += "\\" * (len(text) - len(text.rstrip("\\")))  # noqa: PLW2901
        drawn += f"[{style}]{text}[/]" if style else text
    return drawn
