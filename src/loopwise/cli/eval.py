"""loopwise eval."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import loopwise
from loopwise.cli.parsing import arguments_class, parse, parse_steps, take_positional
from loopwise.data import cache
from loopwise.errors import ConfigError
from loopwise.evaluation import Scores, default_steps, evaluate, wilson
from loopwise.reasoners.costs import count_flops
from loopwise.types import SPLITS, Json, Split

__all__ = ["main"]

ABOUT = """Measure a trained model on puzzles that it has not seen: loopwise eval CHECKPOINT [options].

The options of the task can be changed, such as its length.

  loopwise eval runs/six
  loopwise eval runs/six --max-steps 1,2,4,8,16,32 --json
  loopwise eval runs/sorting --task.n 24
  loopwise eval runs/sudoku --task.test-file my_puzzles.csv
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    if checkpoint is None:
        if {"-h", "--help"} & set(rest):
            parse(arguments_class("Eval"), rest, command="eval CHECKPOINT", about=ABOUT)
        raise ConfigError("say which model: loopwise eval CHECKPOINT; `loopwise models` lists the shipped ones")
    trust = "--trust" in rest
    solver = loopwise.load(checkpoint, trust=trust)
    task = solver.task
    cls = arguments_class(
        "Eval",
        split=(Split, "test", "which puzzles: test, validation or train"),  # type: ignore[arg-type]
        max_steps=(
            str,
            "",
            "numbers of steps to score, such as 1,2,4,8,16; default: powers of two up to the trained ones",
        ),
        limit=(int, 0, "score only the first so many puzzles; 0 means all"),
        slots=(int, 256, "puzzles that are worked on side by side"),
        trust=(bool, False, "import and call code of yours that the checkpoint names, such as the checker of a table"),
        json=(bool, False, "write the scores as JSON"),
        task=(type(task.config), task.config, ""),
    )
    args = parse(cls, rest, command="eval CHECKPOINT", about=ABOUT)
    if args.split not in SPLITS:
        raise ConfigError(f"unknown split {args.split!r}; known: {', '.join(SPLITS)}")
    if args.limit < 0 or args.slots < 1:
        raise ConfigError("--limit must be at least 0 and --slots at least 1")
    changed = type(task).restore(args.task, task.metadata())
    if changed.spec.vocab_size != solver.reasoner.spec.vocab_size:
        known, asked = solver.reasoner.spec.vocab_size, changed.spec.vocab_size
        raise ConfigError(f"this model knows {known} tokens, with these values there are {asked}; change only the size")
    data = cache.examples(changed, args.split)
    data = data.rows(slice(args.limit or None))
    trained = solver.trained_steps
    steps = parse_steps(args.max_steps) if args.max_steps else default_steps(trained)
    scores = evaluate(dataclasses.replace(solver.model, task=changed), data, steps, args.slots)
    flops = count_flops(solver.reasoner, solver.model.gradient, solver.model.halting, data.inputs.shape[1]).solving
    record = {
        "checkpoint": checkpoint,
        "task": task.name,
        "split": args.split,
        "data_sha256": cache.fingerprint(data),
        "trained_steps": trained,
        "flops_per_step": flops,
        **scores.to_json(),
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print(record, scores, flops)
    return 0


def _print(record: dict[str, Json], scores: Scores, flops: int) -> None:
    console = Console(highlight=False)
    table = Table(title=f"{record['checkpoint']}: {record['task']}, {scores.puzzles:,} {record['split']} puzzles")
    for column in ("steps", "exact", "95 % interval", "tokens", "verified", "FLOPs a puzzle"):
        table.add_column(column, justify="right")
    for i, steps in enumerate(scores.steps):
        verified = "-" if scores.verified is None else f"{100 * scores.verified[i] / scores.puzzles:.1f} %"
        share, interval = _share(scores.exact[i], scores.puzzles)
        table.add_row(str(steps), share, interval, f"{100 * scores.tokens[i]:.2f} %", verified, f"{flops * steps:.3g}")
    share, interval = _share(scores.halted_exact, scores.puzzles)
    mean = scores.halted_steps
    table.add_row(f"halted ({mean:.1f})", share, interval, "", "", f"{flops * mean:.3g}")
    console.print(table)
    console.print(
        "[dim]One pass of one set of weights, no votes, no search. Exact: every asked position right. Halted: the "
        f"answer at which the model stopped by itself. Data sha256 {record['data_sha256']}.[/dim]"
    )


def _share(count: int, total: int) -> tuple[str, str]:
    low, high = wilson(count, total)
    return f"{100 * count / total:.1f} %", f"{100 * low:.1f} - {100 * high:.1f}"
