"""loopwise models."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from loopwise.checkpoint import WEIGHTS, load_model
from loopwise.cli.parsing import arguments_class, parse
from loopwise.models import shipped
from loopwise.solving.usual import GUESS_STARTS, SEARCH_STARTS

__all__ = ["main"]

ABOUT = """List the trained models that come with loopwise; solve with one by its name.

  loopwise models
  loopwise models --json
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    cls = arguments_class("Models", json=(bool, False, "write one JSON record a model"))
    args = parse(cls, arguments, command="models", about=ABOUT)
    table = Table(
        Column("model", no_wrap=True),  # a name that is cut cannot be typed
        "task",
        "weights",
        "size",
        "exact",
        title="Models: loopwise solve MODEL PUZZLE",
        caption="exact: of the validation puzzles; in brackets the 95 % interval. "
        f"A search runs {SEARCH_STARTS} chains; one that guesses does so with {GUESS_STARTS} starts",
    )
    for name, folder in shipped().items():
        model, notes = load_model(folder)
        parameters, size = model.reasoner.num_parameters()[0], (folder / WEIGHTS).stat().st_size
        scores = notes["scores"]["by_steps"][-1]
        if args.json:
            record = {"name": name, "task": model.task.name, "parameters": parameters, "bytes": size}
            print(json.dumps({**record, "validation_exact": scores["exact_accuracy"]}))
        low, high = scores["interval_95"]
        exact = f"{100 * scores['exact_accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] in {scores['steps']} steps"
        exact += " of one chain" * model.reasoner.search + ", without guesses" * bool(model.guess)
        table.add_row(name, model.task.name, f"{parameters:,}", f"{size / 1e6:.2f} MB", exact)
    if not args.json:
        Console(highlight=False).print(table if table.rows else "no models come with this version")
    return 0
