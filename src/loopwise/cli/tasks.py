"""loopwise tasks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as Grid

from loopwise.cli.parsing import arguments_class, parse
from loopwise.recipes import recipe_notes
from loopwise.registry import discover
from loopwise.tasks.base import Task

__all__ = ["main"]

ABOUT = """List the tasks, what can be set about each, and the recipes that train them.

  loopwise tasks
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parse(arguments_class("Tasks"), arguments, command="tasks", about=ABOUT)
    console = Console(highlight=False)
    tasks = Grid("task", "what it asks", "options (with their defaults)", title="Tasks: loopwise train TASK")
    for name, cls in discover("loopwise.tasks", Task).items():  # type: ignore[type-abstract]
        options = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(cls.Config))
        tasks.add_row(name, _first_line(cls), options)
    console.print(tasks)
    recipes = Grid("recipe", "what it is", title="Recipes: loopwise train RECIPE")
    for name, note in recipe_notes().items():
        recipes.add_row(name, note)
    console.print(recipes)
    return 0


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
