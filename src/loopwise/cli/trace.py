"""loopwise trace."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

import loopwise
from loopwise.cli import puzzles
from loopwise.cli.parsing import parse, take_positional
from loopwise.errors import ConfigError
from loopwise.plots import draw_trace
from loopwise.runtime import Device
from loopwise.solving.solver import Solver, Step
from loopwise.types import Json, Tokens

__all__ = ["main"]

ABOUT = """Watch a model think, in numbers: loopwise trace CHECKPOINT PUZZLE [options].

For each supervision step: how many positions of the answer changed, the halting probability, what the rules say, and
how much the updates of the state changed it (residual, |new - old| / |new|). `loopwise solve --trace` shows the
answers.

  loopwise trace sudoku-6x6 --sample 7
  loopwise trace sudoku-6x6 --sample 7 --max-steps 32 --plot trace.png
  loopwise trace runs/sorting "3 1 2 9 4 4 0 7 5 5 1 8 6 2 2 3" --json > trace.jsonl
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Options of loopwise trace."""

    sample: int | None = None
    """Trace puzzle number N of the test split, which no training has seen."""
    max_steps: int = 0
    """Supervision steps; 0 means as many as in training, more are allowed."""
    plot: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Draw the trace into this file (.png, .svg or .pdf; needs the extra `plot`)."""
    json: bool = False
    """Write one JSON record a step, with the residual of every update."""
    device: Device = "auto"
    """Where to compute."""
    trust: bool = False
    """Import and call code of yours that the checkpoint names, such as the checker of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    puzzle, rest = take_positional(rest)
    args = parse(Arguments, rest, command="trace CHECKPOINT PUZZLE", about=ABOUT)
    if checkpoint is None:
        raise ConfigError("say which model: loopwise trace CHECKPOINT PUZZLE; `loopwise models` lists the shipped ones")
    if (puzzle is None) == (args.sample is None):
        raise ConfigError("give one of: a puzzle, or --sample N")
    if args.max_steps < 0:
        raise ConfigError(f"--max-steps must be at least 1, not {args.max_steps}")
    solver = loopwise.load(checkpoint, slots=1, device=args.device, trust=args.trust)
    value = puzzles.sample(solver, args.sample) if args.sample is not None else puzzles.read_line(str(puzzle))
    tokens = solver.read(value)
    steps = solver.trace(value, max_steps=args.max_steps or None)
    if args.plot:
        name = f"sample {args.sample}" if args.sample is not None else "a puzzle"
        draw_trace(steps, Path(args.plot), f"{checkpoint}: {name}, {solver.reasoner.name} on {solver.task.name}")
        print(f"drawn to {args.plot}", file=sys.stderr)
    if args.json:
        for number, step in enumerate(steps, 1):
            print(json.dumps(_record(solver, tokens, number, step), ensure_ascii=False), flush=True)
    else:
        _show(solver, tokens, steps)
    return 0


def _record(solver: Solver, puzzle: Tokens, number: int, step: Step) -> dict[str, Json]:
    return {
        "step": number,
        "answer": puzzles.symbols(solver, step.answer),
        "changed": step.changed,
        "verified": solver.checker(puzzle, step.tokens),
        "halt_probability": step.halt_probability,
        "updates": [{"update": change.update, "residual": change.residual} for change in step.updates],
    }


def _show(solver: Solver, puzzle: Tokens, steps: Sequence[Step]) -> None:
    names = list(dict.fromkeys(change.update for step in steps for change in step.updates))
    table = Table()
    for column in ("step", "changed", "halt probability", "rules", *(f"last residual of {name}" for name in names)):
        table.add_column(column, justify="right")
    for number, step in enumerate(steps, 1):
        says = {True: "obeyed", False: "broken", None: "-"}[solver.checker(puzzle, step.tokens)]
        last = {change.update: change.residual for change in step.updates}
        changed = "" if step.changed is None else str(step.changed)
        residuals = (f"{last[name]:.3g}" if name in last else "" for name in names)
        table.add_row(str(number), changed, f"{step.halt_probability:.3f}", says, *residuals)
    Console(highlight=False).print(table)
