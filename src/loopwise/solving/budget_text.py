"""Budgets as text: `halted=0.9&converged=3|seconds=5`. `&` binds tighter than `|`, parentheses group."""

from __future__ import annotations

import re
from typing import TypeAlias

from loopwise.errors import ConfigError
from loopwise.solving.budgets import Atom, Budget, Steps
from loopwise.tasks.text import shown

__all__ = ["BudgetLike", "as_budget", "parse_budget"]

BudgetLike: TypeAlias = int | str | Budget
"""A number of steps, a text such as `halted|steps=64`, or a budget."""


def as_budget(value: BudgetLike) -> Budget:
    """The budget of a number of steps, a text or a budget. Raises ConfigError where it might never end."""
    if isinstance(value, str):
        value = parse_budget(value)
    if not isinstance(value, int | Budget):
        raise ConfigError(f"a budget is a number of steps, a text such as halted|steps=64, or a Budget, not {value!r}")
    budget = value if isinstance(value, Budget) else Steps(value)
    if not budget.bounded:
        raise ConfigError(f"the budget {budget} may never end; add a limit, such as {budget}|steps=64")
    return budget


def parse_budget(text: str) -> Budget:
    """Read `halted|steps=64`. Raises ConfigError, which names what is known."""
    words = re.findall(r"[|&()]|[^|&()\s]+", text)
    try:
        budget = _parse_any(words, text)
    except RecursionError:
        raise _unreadable(text, "there are too many parentheses") from None
    if words:
        raise _unreadable(text, f"{words[0]!r} is left over")
    return budget


def _parse_any(words: list[str], text: str) -> Budget:
    """Read parts joined by |, and take their words away."""
    budget = _parse_all(words, text)
    while words[:1] == ["|"]:
        del words[0]
        budget = budget | _parse_all(words, text)
    return budget


def _parse_all(words: list[str], text: str) -> Budget:
    """Read parts joined by &."""
    budget = _parse_one(words, text)
    while words[:1] == ["&"]:
        del words[0]
        budget = budget & _parse_one(words, text)
    return budget


def _parse_one(words: list[str], text: str) -> Budget:
    """Read a number of steps, `name`, `name=value` or a group in parentheses."""
    word = words.pop(0) if words else "|"
    if word == "(":
        budget = _parse_any(words, text)
        if words[:1] != [")"]:
            raise _unreadable(text, "a parenthesis is not closed")
        del words[0]
        return budget
    if word in {"|", "&", ")"}:
        raise _unreadable(text, "a part is missing")
    name, equals, value = ("steps", "=", word) if word.isdecimal() else word.partition("=")
    known = {cls.name: cls for cls in Atom.__subclasses__()}
    if name not in known:
        raise _unreadable(text, f"there is no {name!r}")
    try:
        return known[name](*([_number(value)] if equals else []))
    except (TypeError, ValueError):
        raise _unreadable(text, f"{word!r} makes no sense") from None


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unreadable(text: str, why: str) -> ConfigError:
    known = ", ".join(cls.name for cls in Atom.__subclasses__())
    return ConfigError(
        f"the budget {shown(text)} cannot be read: {why}; write halted|steps=64, of {known}, with | & ( )"
    )
