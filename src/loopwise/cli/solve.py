"""loopwise solve."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

import loopwise
from loopwise.cli import puzzles as source
from loopwise.cli.changing import changed, option_groups
from loopwise.cli.lines import Lines
from loopwise.cli.parsing import arguments_class, parse, take_positional
from loopwise.cli.progress import Progress
from loopwise.cli.starting import StartOptions
from loopwise.cli.thinking import show_steps
from loopwise.errors import ConfigError, LoopwiseError
from loopwise.runtime import Device, SolvingDtype
from loopwise.solving.budget_text import as_budget
from loopwise.solving.budgets import Budget
from loopwise.solving.solution import Solution
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.types import Json

__all__ = ["main"]

RULES = {True: "obeys the rules", False: "breaks the rules", None: "the rules cannot tell"}

ABOUT = """Solve puzzles: loopwise solve CHECKPOINT PUZZLE, or --file FILE, or - for the standard input.

CHECKPOINT is a folder that `loopwise train` wrote, or the name of a shipped model (`loopwise models`). A file has one
puzzle a line, as text or as JSON: a list, a grid, or {"input": ...}; a stream may be of any length. A line without an
answer gives an error in its place, and exit code 2 in the end. The options of the task can be changed, such as its
size, and those of the reasoner that need no other weights, such as its cycles: loopwise solve CHECKPOINT --help.

A budget says when a puzzle stops: steps=64 or just 64, halted=0.95 (the model is satisfied), verified (the rules are),
converged=3 (the answer has not changed for so many steps; below 1: the residual of the state), seconds=5, flops=1e9;
joined by | (whichever comes first), & (all at once) and parentheses.

  loopwise solve runs/sorting "3 1 2 9 4 4 0 7 5 5 1 8 6 2 2 3"
  loopwise solve runs/six 4.....2...6....5..1.3...........2.4. --trace
  loopwise solve runs/six --sample 7 --budget "halted|verified|steps=64" --starts 32
  loopwise solve runs/six --sample 7 --guess 4
  loopwise solve runs/six --file puzzles.txt --json > answers.jsonl
  cat puzzles.jsonl | loopwise solve runs/six - --json
  loopwise solve maze-hard --file my_mazes.txt --task.size 12
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(StartOptions):
    """Options of loopwise solve."""

    file: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """A file of one puzzle a line."""
    json: bool = False
    """Write one JSON record a puzzle, in order."""
    unordered: bool = False
    """Write each record as soon as it is there, with the index of its puzzle, from 0; needs --json."""
    sample: int | None = None
    """Solve puzzle number N of the test split, which no training has seen."""
    trace: bool = False
    """Show the proposed answer after every step; of several starts those of the first, in one place."""
    budget: Annotated[str, tyro.conf.arg(metavar="BUDGET")] = ""
    """When a puzzle stops; by default halted|steps=N, N as many as in training, and with --trace also when verified."""
    starts: int = 0
    """Passes that a puzzle gets, the single pass and others of the puzzle in other symmetries of the task, or, where it
    has none, from noisy states; the best is the answer. 0: one, 4 with guesses, or 8 for a search by itself.
    """
    slots: int = 64
    """Passes that are worked on side by side; the answers are the same at equal slots."""
    device: Device = "auto"
    """Where to compute."""
    dtype: SolvingDtype = "trained"
    """Number format of activations; some processors take half the time in bfloat16 (`loopwise doctor` tells)."""
    compile: bool = False
    """Fuse the network's kernels first, half a minute that pays for thousands of puzzles."""
    trust: bool = False
    """Import and call code of yours that the checkpoint names, such as the checker of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    puzzle, rest = take_positional(rest)
    if checkpoint is None:
        if {"-h", "--help"} & set(arguments):
            parse(Arguments, rest, command="solve CHECKPOINT", about=ABOUT)
        raise ConfigError("say which model: loopwise solve CHECKPOINT PUZZLE; `loopwise models` lists the shipped ones")
    loaded = loopwise.load(checkpoint, device="cpu", trust="--trust" in rest)
    options = arguments_class("Solve", Arguments, **option_groups(loaded.model))
    args = parse(options, rest, command="solve CHECKPOINT", about=ABOUT)
    if (puzzle is not None) + bool(args.file) + (args.sample is not None) != 1:
        raise ConfigError("give one of: a puzzle, --file FILE, --sample N, or - for the standard input")
    if args.unordered and not args.json:
        raise ConfigError("--unordered needs --json, whose records tell the index of their puzzle")
    if args.starts < 0:
        raise ConfigError(f"--starts must be at least 0, not {args.starts}")
    if args.trace and (args.starts > 1 or args.unordered):
        raise ConfigError("--trace shows one pass of a puzzle after the other; leave --starts and --unordered away")
    budget = as_budget(args.budget) if args.budget else None
    single = not args.file and puzzle != "-"
    model = changed(loaded.model, args.task, args.reasoner)
    starts = args.starts_of(args.starts or None, model)
    args.refuse_idle(starts)
    slots = min(args.slots, starts.count) if single else args.slots
    solver = Solver(model, slots=slots, device=args.device, dtype=args.dtype, compile=args.compile)
    if not single:
        return _answer_all(solver, Lines(args.file), budget, starts, args)
    value = source.read_line(str(puzzle)) if args.sample is None else source.sample(solver, args.sample)
    if args.trace:
        show_steps(solver, value, budget, starts, number=1, as_json=args.json)
        return 0
    (result,) = solver.stream([value], budget, starts=starts)
    if args.json:
        return _write(solver, result, 0, args)
    return _show(solver, result)


def _answer_all(solver: Solver, lines: Lines, budget: Budget | None, starts: Starts, args: Arguments) -> int:
    """Write an answer, or an error, for each line; one that has none does not stop the others."""
    if args.trace:
        return _trace_all(solver, lines, budget, starts, args)
    if args.unordered:
        results = solver.as_completed(lines, budget, starts=starts)
    else:
        results = enumerate(solver.stream(lines, budget, starts=starts))
    code, verdicts = 0, Counter[str]()
    with Progress(hidden=sys.stdout.isatty()) as progress:  # answers on a terminal are progress enough
        for index, result in results:
            code = max(code, _write(solver, result, index, args))
            verdicts["no answer" if isinstance(result, LoopwiseError) else RULES[result.verified]] += 1
            lines.answered()
            progress.advance(lines.share)
    if sys.stderr.isatty() and not args.json:  # whose records tell it of each
        told = ", ".join(f"{count:,} x {verdict}" for verdict, count in verdicts.most_common())
        sys.stderr.write(f"{verdicts.total():,} puzzles, one a line{': ' if told else ''}{told}\n")
    return code


def _trace_all(solver: Solver, lines: Lines, budget: Budget | None, starts: Starts, args: Arguments) -> int:
    """Show the steps of each line's puzzle, one after the other."""
    code = 0
    for index, value in enumerate(lines):
        try:
            show_steps(solver, value, budget, starts, number=index + 1, as_json=args.json)
        except LoopwiseError as error:
            code = _write(solver, error, index, args)
        lines.answered()
    return code


def _write(solver: Solver, result: Solution | LoopwiseError, index: int, args: Arguments) -> int:
    """Write a line, at once: a reader may wait for it, and it was measured to cost 2 microseconds. The exit code."""
    failed = isinstance(result, LoopwiseError)
    if args.json:
        record: dict[str, Json] = {"index": index} if args.unordered else {}
        record |= {"error": str(result)} if isinstance(result, LoopwiseError) else _record(solver, result)
        print(json.dumps(record, ensure_ascii=False), flush=True)
    elif isinstance(result, LoopwiseError):
        print(flush=True)  # an empty line keeps the others in their places
        sys.stderr.write(f"loopwise: puzzle {index + 1}: {result}\n")
    else:
        print(result.answer if isinstance(result.answer, str) else json.dumps(result.answer), flush=True)
    return 2 if failed else 0


def _record(solver: Solver, solution: Solution) -> dict[str, Json]:
    record: dict[str, Json] = {
        "answer": source.symbols(solver, solution.answer),
        "verified": solution.verified,
        "steps": solution.steps,
        "stopped_by": solution.stopped_by,
        "halt_probability": round(solution.halt_probability, 6),
        "seconds": round(solution.seconds, 6),
    }
    if solution.single is not None:
        single = solution.single
        told = {"error": str(single)} if isinstance(single, LoopwiseError) else _record(solver, single)
        record |= {"start": solution.start, "total_steps": solution.total_steps, "single": told}
    return record


def _show(solver: Solver, result: Solution | LoopwiseError) -> int:
    """Draw one answer, and say how it came about."""
    if isinstance(result, LoopwiseError):
        raise result
    console = Console(highlight=False)
    console.print(solver.task.render(result.tokens, result.puzzle), soft_wrap=True)
    told = [f"{_verdict(result)}; {result.seconds:.2f} s"]
    if result.single is not None:
        told = [f"start {result.start}, {result.total_steps} steps of all starts: {told[0]}"]
        single = result.single
        told.append(f"the single pass: {single if isinstance(single, LoopwiseError) else _verdict(single)}")
    for line in told:
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)
    return 0


def _verdict(solution: Solution) -> str:
    verified = RULES[solution.verified]
    steps = f"{solution.steps} step{'s' if solution.steps > 1 else ''}"
    return f"{verified}; {steps}, stopped by {solution.stopped_by}; halt probability {solution.halt_probability:.3f}"
