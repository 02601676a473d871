"""loopwise eval."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

import loopwise
from loopwise.cli.changing import changed, option_groups
from loopwise.cli.curve import MEASURES, PROTOCOL, Rows, answer_rows, curve_json, curve_rows, write_curve
from loopwise.cli.parsing import arguments_class, parse, parse_counts, take_positional
from loopwise.cli.progress import Progress
from loopwise.cli.starting import StartOptions
from loopwise.config import to_json
from loopwise.data import cache
from loopwise.errors import ConfigError
from loopwise.evaluation import Outcome, Scores, default_steps, evaluate, evaluate_answers, evaluate_curve, wilson
from loopwise.plots import require_matplotlib
from loopwise.runtime import dtype_name
from loopwise.solving.budget_text import as_budget
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.solving.usual import GUESS_STARTS, SEARCH_STARTS, searches, usual_budget
from loopwise.types import SPLITS, Examples, Json, Split

__all__ = ["main"]

ABOUT = """Measure a trained model on puzzles that it has not seen: loopwise eval CHECKPOINT [options].

By default the answers after fixed numbers of steps, and those at which the model halts. With --budget or --starts the
answers that `loopwise solve` gives with them. With --curve both, over numbers of steps beyond the trained one and over
numbers of starts, as tables and as a picture. The options of the task can be changed, such as its length, and those of
the reasoner that need no other weights, such as its cycles.

  loopwise eval runs/six
  loopwise eval runs/six --max-steps 1,2,4,8,16,32 --json
  loopwise eval runs/six --budget "verified|halted|steps=64" --starts 1,8
  loopwise eval runs/six --budget "verified|steps=64" --answers six.jsonl
  loopwise eval runs/six --guess 4 --budget "verified|seconds=5" --slots 4
  loopwise eval runs/six --curve --out curves/six
  loopwise eval runs/sorting --task.n 24
  loopwise eval runs/sorting --reasoner.H-cycles 3
  loopwise eval runs/sudoku --task.test-file my_puzzles.csv
"""

OUT = "curve"
CURVE_STARTS = "1,2,4,8,16"
CURVE_STEPS = 4
"""A curve goes so many times beyond the number of steps in training."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    if checkpoint is None:
        if {"-h", "--help"} & set(rest):
            parse(_arguments(), rest, command="eval CHECKPOINT", about=ABOUT)
        raise ConfigError("say which model: loopwise eval CHECKPOINT; `loopwise models` lists the shipped ones")
    trust = "--trust" in rest
    solver = loopwise.load(checkpoint, trust=trust)
    args = parse(_arguments(**option_groups(solver.model)), rest, command="eval CHECKPOINT", about=ABOUT)
    _check(args)
    solver = Solver(
        changed(solver.model, args.task, args.reasoner), slots=args.slots, dtype=args.dtype, compile=args.compile
    )
    starts = _starts(args, solver)
    data = cache.examples(solver.task, args.split)
    data = data.rows(slice(args.limit or None))
    record = {
        "checkpoint": checkpoint,
        "task": solver.task.name,
        "split": args.split,
        "data_sha256": cache.fingerprint(data),
        "puzzles": len(data.inputs),
        "search": solver.reasoner.search or any(each.guess for each in starts),
        "reasoner": to_json(solver.reasoner.config),
        "dtype": dtype_name(solver.reasoner.dtype),
        "trained_steps": solver.trained_steps,
        "flops_per_step": solver.step_flops(data.inputs.shape[1]),
    }
    if args.curve:
        _curve(solver, data, starts, args, record)
    elif starts:
        _answers(solver, data, starts, args, record)
    else:
        _scores(solver, data, args, record)
    return 0


def _arguments(**groups: tuple[type, Any, str]) -> type[Any]:
    """The options, with those of a task and of a reasoner."""
    return arguments_class(
        "Eval",
        StartOptions,
        split=(Split, "test", "which puzzles: test, validation or train"),  # type: ignore[arg-type]
        max_steps=(
            str,
            "",
            "numbers of steps to score, such as 1,2,4,8,16; default: powers of two up to the trained ones, or with "
            f"--curve up to {CURVE_STEPS} times as many",
        ),
        budget=(str, "", "score the answers under a budget, such as halted|steps=64; default: halted|steps=TRAINED"),
        starts=(
            str,
            "",
            f"numbers of starts to score, such as 1,8; default 1, {GUESS_STARTS} where they guess, {SEARCH_STARTS} "
            f"for a search, or with --curve {CURVE_STARTS}",
        ),
        curve=(bool, False, "score steps and starts, and draw a picture (needs the extra `plot`)"),
        out=(str, OUT, "the folder that --curve writes to: curve.json, curve.md and curve.png"),
        answers=(
            str,
            "",
            "a file that gets a JSON line for each puzzle that is scored under a budget, as it comes: its place in the "
            "split, the starts, exact, verified, steps of all starts, seconds, stopped_by, and the answer's tokens",
        ),
        limit=(int, 0, "score only the first so many puzzles; 0 means all"),
        slots=(int, 256, "passes that are worked on side by side"),
        dtype=(
            str,
            "trained",
            "number format of activations: trained (as in training), float32 or bfloat16, which some processors take "
            "half the time for (`loopwise doctor` tells)",
        ),
        compile=(bool, False, "fuse the network's kernels first, half a minute that pays for thousands of puzzles"),
        trust=(bool, False, "import and call code of yours that the checkpoint names, such as the checker of a table"),
        json=(bool, False, "write the scores as JSON"),
        **groups,
    )


def _check(args: Any) -> None:
    """Refuse what makes no sense, before the work."""
    if args.split not in SPLITS:
        raise ConfigError(f"unknown split {args.split!r}; known: {', '.join(SPLITS)}")
    if args.limit < 0 or args.slots < 1:
        raise ConfigError("--limit must be at least 0 and --slots at least 1")
    if args.max_steps:
        parse_counts(args.max_steps, "steps")
    if args.budget:
        as_budget(args.budget)
    if args.guess and args.curve:
        raise ConfigError("--curve scores what a model finds without guesses; leave --guess away")
    if args.answers and (args.curve or not (args.budget or args.starts or args.guess)):
        raise ConfigError("--answers tells what came of each puzzle under a budget; add --budget, without --curve")
    if args.curve:
        require_matplotlib()
    elif args.out != OUT:
        raise ConfigError("--out is where --curve writes to; add --curve")
    elif args.max_steps and (args.budget or args.starts or args.guess):
        raise ConfigError(
            "--max-steps scores fixed numbers of steps; leave budget, starts and guess away, or add --curve"
        )


def _opened(file: str) -> contextlib.AbstractContextManager[IO[str] | None]:
    """The file of --answers, where one is named."""
    try:
        return open(file, "w", encoding="utf-8") if file else contextlib.nullcontext()
    except OSError as error:
        raise ConfigError(f"--answers {file} cannot be written ({error.strerror}); choose another file") from None


def _teller(progress: Progress, file: IO[str] | None, starts: Starts) -> Callable[[Outcome], None]:
    """Who is told of each outcome of puzzles with so many starts, in order: a line of progress, and the file."""
    places = count()

    def tell(outcome: Outcome) -> None:
        progress.advance()
        if file is not None:
            answer = None if outcome.tokens is None else outcome.tokens.tolist()
            told = {"puzzle": next(places), "starts": starts.count, **outcome._asdict(), "tokens": answer}
            print(json.dumps(told), file=file, flush=True)

    return tell


def _starts(args: Any, solver: Solver) -> list[Starts]:
    """What to score under a budget, in front the single pass of what is no search; nothing without a budget."""
    if not (args.starts or args.budget or args.guess or args.curve):
        args.refuse_idle(Starts())
        return []
    asked = args.starts or (CURVE_STARTS if args.curve else "")
    counts: list[int] | list[None] = sorted(set(parse_counts(asked, "starts"))) if asked else [None]
    chosen = [args.starts_of(count, solver.model, 0 if args.curve else None) for count in counts]
    args.refuse_idle(chosen[-1])
    if searches(solver.model, chosen[0]):
        return chosen
    return [Starts(), *(starts for starts in chosen if starts.count > 1)]


def _scores(solver: Solver, data: Examples, args: Any, record: dict[str, Json]) -> None:
    """Score fixed numbers of steps."""
    steps = parse_counts(args.max_steps, "steps") if args.max_steps else default_steps(solver.trained_steps)
    scores = evaluate(solver.model, data, steps, args.slots)
    if args.json:
        print(json.dumps(record | scores.to_json()))
    else:
        _print_scores(record, scores, solver.reasoner.search)


def _answers(solver: Solver, data: Examples, starts: Sequence[Starts], args: Any, record: dict[str, Json]) -> None:
    """Score answers under a budget."""
    budget = as_budget(args.budget) if args.budget else usual_budget(solver.model, starts[0])
    with Progress() as progress, _opened(args.answers) as file:
        answers = [evaluate_answers(solver, data, budget, each, _teller(progress, file, each)) for each in starts]
    if args.json:
        print(json.dumps(record | {"answers": [each.to_json() for each in answers]}))
    else:
        _print([answer_rows(answers, record["flops_per_step"])], record)


def _curve(solver: Solver, data: Examples, starts: Sequence[Starts], args: Any, record: dict[str, Json]) -> None:
    """Score steps and starts, and draw them."""
    limit = CURVE_STEPS * solver.trained_steps
    steps = parse_counts(args.max_steps, "steps") if args.max_steps else default_steps(limit)
    budget = as_budget(args.budget) if args.budget else usual_budget(solver.model, starts[0])
    with Progress() as progress:
        curve = evaluate_curve(solver, data, steps, starts, budget, lambda outcome: progress.advance())
    record = record | curve_json(curve)
    write_curve(Path(args.out), curve, record, _title(record))
    if args.json:
        print(json.dumps(record))
    else:
        _print(curve_rows(curve), record)
        print(f"written to {args.out}")


def _title(record: dict[str, Json]) -> str:
    return f"{record['checkpoint']}: {record['task']}, {record['puzzles']:,} {record['split']} puzzles"


def _print(tables: Sequence[Rows], record: dict[str, Json]) -> None:
    console = Console(highlight=False)
    console.print(_title(record))
    for rows in tables:
        table = Table(title=rows.title)
        for column in rows.header:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows.rows:
            table.add_row(*row)
        console.print(table)
        if rows.note:
            console.print(rows.note)
    console.print(f"[dim]{PROTOCOL} Data sha256 {record['data_sha256']}.[/dim]")


def _print_scores(record: dict[str, Json], scores: Scores, search: bool) -> None:
    console = Console(highlight=False)
    table = Table(title=_title(record))
    flops = record["flops_per_step"]
    for column in ("steps", "exact", "95 % interval", "tokens", "verified", "FLOPs a puzzle"):
        table.add_column(column, justify="right")
    for i, steps in enumerate(scores.steps):
        share, interval = _share(scores.exact[i], scores.puzzles)
        verified = "-" if scores.verified is None else _share(scores.verified[i], scores.puzzles)[0]
        table.add_row(str(steps), share, interval, f"{100 * scores.tokens[i]:.2f} %", verified, f"{flops * steps:.3g}")
    share, interval = _share(scores.halted_exact, scores.puzzles)
    verified = "-" if scores.halted_verified is None else _share(scores.halted_verified, scores.puzzles)[0]
    mean = scores.halted_steps
    label = f"{'verified' if search else 'halted'} ({mean:.1f})"
    table.add_row(label, share, interval, "", verified, f"{flops * mean:.3g}")
    console.print(table)
    if search:
        protocol, stop = "A search by one set of weights, one start", "Verified: the rules' word stopped it."
    else:
        protocol = "One pass of one set of weights, no votes, no search"
        stop = "Halted: the answer at which the model stopped by itself."
    console.print(f"[dim]{protocol}. {MEASURES} {stop} Data sha256 {record['data_sha256']}.[/dim]")


def _share(count: int, total: int) -> tuple[str, str]:
    low, high = wilson(count, total)
    return f"{100 * count / total:.1f} %", f"{100 * low:.1f} - {100 * high:.1f}"
