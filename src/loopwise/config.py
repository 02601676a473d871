"""Options as frozen dataclasses, and their way to JSON and back; unknown keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar

from loopwise.errors import ConfigError
from loopwise.types import Json

__all__ = ["carry_over", "check", "from_json", "to_json"]

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Json]:
    """The options of a config as a dictionary of JSON values; tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_json(cls: type[T], data: Json, where: str = "config") -> T:
    """Build a config from what `to_json` made. Raises ConfigError, naming the key, for anything that does not fit."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object with the options of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ConfigError(f"{where} has an unknown option {unknown[0]!r}; known: {', '.join(names)}")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def check(config: Any) -> None:
    """Refuse a config with a value that its type does not allow, NaN and infinity among them. Raises ConfigError."""
    hints = typing.get_type_hints(type(config))
    for name, value in to_json(config).items():
        _typed(hints[name], value, name)


def carry_over(old: Any, cls: type[T]) -> T:
    """A config of class `cls` with the values of another where both have an option of one name, type and default."""
    defaults = {field.name: (field.type, field.default) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    same = [f.name for f in dataclasses.fields(old) if defaults.get(f.name) == (f.type, f.default)]
    return cls(**{name: getattr(old, name) for name in same})


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _typed(hint: Any, value: Json, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in args:
        return value
    if origin in {typing.Union, types.UnionType}:
        member = next((a for a in args if _fits(a, value)), None)
        if member is not None:
            return None if value is None else _typed(member, value, where)
    if origin is tuple and isinstance(value, list):
        each = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(each) == len(value):
            return tuple(_typed(a, v, where) for a, v in zip(each, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type[Any], hint), value, where)
    if _fits(hint, value):
        return float(value) if hint is float else value
    raise ConfigError(f"{where} cannot be {value!r}; expected {_name(hint)}")


def _fits(hint: Any, value: Json) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return isinstance(hint, type) and isinstance(value, hint)


def _name(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, args))
    return getattr(hint, "__name__", str(hint))
