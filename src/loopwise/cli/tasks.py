"""loopwise tasks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from loopwise.cli.parsing import arguments_class, parse
from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.halting import HaltingPolicy
from loopwise.recipes import recipe_notes
from loopwise.registry import discover
from loopwise.tasks.base import Task

__all__ = ["main"]

ABOUT = """List the tasks, what can be set about each, the recipes that train them, and the parts of a recipe.

  loopwise tasks
"""


PARTS: dict[type[Any], str] = {
    Reasoner: "Reasoners: loopwise train TASK --reasoner NAME --reasoner.OPTION VALUE",
    GradientPolicy: "Gradient policies: --gradient NAME --gradient.OPTION VALUE",
    HaltingPolicy: "Halting policies: --halting NAME --halting.OPTION VALUE",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parse(arguments_class("Tasks"), arguments, command="tasks", about=ABOUT)
    console = Console(highlight=False)
    tasks = Grid("task", "what it asks", "options (with their defaults)", title="Tasks: loopwise train TASK")
    for name, cls in discover("loopwise.tasks", Task).items():  # type: ignore[type-abstract]
        tasks.add_row(name, _first_line(cls), _options(cls.Config))
    console.print(tasks)
    recipes = Grid("recipe", "what it is", title="Recipes: loopwise train RECIPE")
    for name, note in recipe_notes().items():
        recipes.add_row(name, note)
    console.print(recipes)
    for base, title in PARTS.items():
        parts = Grid("name", "what it is", "options (with their defaults)", title=title)
        for name, cls in discover("loopwise.reasoners", base).items():
            parts.add_row(name, _first_line(cls), _options(cls.Config))
        console.print(parts)
    return 0


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def _options(config: type[Any]) -> str:
    return ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(config))
