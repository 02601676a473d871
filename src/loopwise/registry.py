"""Plug-ins are found by their base class: put a file into the package and its class has a name everywhere.

A plug-in is a concrete subclass of a base such as `Task` with a class attribute `name`. Nothing is registered by
hand: `discover` imports the modules of a package and collects what it finds, so the command line, the checkpoint
format and the conformance tests know a new class at once. A class outside loopwise is named by its dotted path,
`my_package.my_module:MyTask`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterable
from typing import TypeVar

from loopwise.errors import ConfigError

__all__ = ["discover", "resolve", "suggest"]

T = TypeVar("T")


def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """Return {name: class} of every concrete subclass of `base` defined in a module of `package`, sorted by name."""
    root = importlib.import_module(package)
    modules = [root] + [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(root.__path__)]
    found: dict[str, type[T]] = {}
    for module in modules:
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                found[plugin_name(cls)] = cls
    return dict(sorted(found.items()))


def plugin_name(cls: type) -> str:
    """The name by which a plug-in is called: its own `name` attribute."""
    name = cls.__dict__.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{cls.__module__}.{cls.__qualname__} has no class attribute `name`; give it one")
    return name


def resolve(name: str, package: str, base: type[T]) -> type[T]:
    """Return the plug-in called `name`, or the class at a dotted path `module:Class`.

    Raises ConfigError, with the nearest known name, when there is none.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        sys.path.insert(0, os.getcwd())  # where a user's own module is, when the console script started us
        try:
            cls = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # whatever the user's file raises is the user's to mend
            raise ConfigError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.pop(0)
        if not (inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)):
            raise ConfigError(f"{name!r} is not a concrete subclass of {base.__name__}")
        return cls
    known = discover(package, base)
    if name not in known:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.__name__).lower()
        raise ConfigError(f"unknown {kind} {name!r}{suggest(name, known)}; known: {', '.join(known)}")
    return known[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the nearest of the known names, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
