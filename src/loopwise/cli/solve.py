"""loopwise solve."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console

import loopwise
from loopwise.cli import puzzles as source
from loopwise.cli.parsing import parse, take_positional
from loopwise.errors import ConfigError, LoopwiseError
from loopwise.runtime import Device
from loopwise.solving.budgets import HALT_THRESHOLD, Budget, Halted, Steps
from loopwise.solving.solution import Solution
from loopwise.solving.solver import Solver
from loopwise.types import Json, Tokens

__all__ = ["main"]

ABOUT = """Solve puzzles: loopwise solve CHECKPOINT PUZZLE, or --file FILE, or - for the standard input.

CHECKPOINT is a folder that `loopwise train` wrote, or the name of a shipped model (`loopwise models`). A file has one
puzzle a line, as text or as JSON: a list, a grid, or {"input": ...}. Puzzles are read ahead and answered in order; with
--slots 1 each is answered before the next is read.

  loopwise solve runs/sorting "3 1 2 9 4 4 0 7 5 5 1 8 6 2 2 3"
  loopwise solve runs/six 4.....2...6....5..1.3...........2.4. --trace
  loopwise solve runs/six --sample 7 --trace
  loopwise solve runs/six --file puzzles.txt --json > answers.jsonl
  cat puzzles.jsonl | loopwise solve runs/six - --json
"""


SECONDS_A_STEP = 0.4
"""Pause after each step of a trace in a terminal, so that the eye can follow."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Options of loopwise solve."""

    file: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """A file of one puzzle a line."""
    json: bool = False
    """Write one JSON record a puzzle, in order."""
    sample: int | None = None
    """Solve puzzle number N of the test split, which no training has seen."""
    trace: bool = False
    """Show the proposed answer after every step."""
    max_steps: int = 0
    """Most supervision steps a puzzle may take; 0 means as many as in training."""
    until_halted: bool = True
    """Stop a puzzle when the model believes that its answer is right."""
    halt_threshold: float = HALT_THRESHOLD
    """The halting probability above which it does."""
    slots: int = 64
    """Puzzles that are worked on side by side; the answers are the same at equal slots."""
    device: Device = "auto"
    """Where to compute."""
    trust: bool = False
    """Import and call code of yours that the checkpoint names, such as the checker of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    puzzle, rest = take_positional(rest)
    args = parse(Arguments, rest, command="solve CHECKPOINT", about=ABOUT)
    if checkpoint is None:
        raise ConfigError("say which model: loopwise solve CHECKPOINT PUZZLE; `loopwise models` lists the shipped ones")
    if (puzzle is not None) + bool(args.file) + (args.sample is not None) != 1:
        raise ConfigError("give one of: a puzzle, --file FILE, --sample N, or - for the standard input")
    if args.max_steps < 0:
        raise ConfigError(f"--max-steps must be at least 1, not {args.max_steps}")
    single = args.file == "" and puzzle != "-"
    solver = loopwise.load(checkpoint, slots=1 if single else args.slots, device=args.device, trust=args.trust)
    puzzles: Iterable[Json] = map(source.read_line, source.lines(puzzle, args.file))
    if args.sample is not None:
        puzzles = [source.sample(solver, args.sample)]
    if args.trace:
        return _trace(solver, puzzles, args)
    budget: Budget = Steps(args.max_steps or solver.trained_steps)
    if args.until_halted:
        budget = Halted(args.halt_threshold) | budget
    results = solver.stream(puzzles, budget)
    if single and not args.json:
        return _show(solver, next(results))
    return _write_all(solver, results, as_json=args.json)


def _write_all(solver: Solver, results: Iterable[Solution | LoopwiseError], *, as_json: bool) -> int:
    """Write an answer, or a record, for each puzzle; one that cannot be read does not stop the others."""
    failed = False
    for number, result in enumerate(results, 1):
        failed |= isinstance(result, LoopwiseError)
        if as_json:
            print(json.dumps(_record(solver, result), ensure_ascii=False), flush=True)
        elif isinstance(result, Solution):
            answer = result.answer
            print(answer if isinstance(answer, str) else json.dumps(answer), flush=True)
        else:
            print(flush=True)  # an empty line keeps the others in their places
            sys.stderr.write(f"loopwise: puzzle {number}: {result}\n")
    return 2 if failed else 0


def _record(solver: Solver, result: Solution | LoopwiseError) -> dict[str, Json]:
    if isinstance(result, LoopwiseError):
        return {"error": str(result)}
    return {
        "answer": source.symbols(solver, result.answer),
        "verified": result.verified,
        "steps": result.steps,
        "stopped_by": result.stopped_by,
        "halt_probability": round(result.halt_probability, 6),
        "seconds": round(result.seconds, 6),
    }


def _show(solver: Solver, result: Solution | LoopwiseError) -> int:
    """Draw one answer, and say how it came about."""
    if isinstance(result, LoopwiseError):
        raise result
    console = Console(highlight=False)
    console.print(solver.task.render(result.tokens, result.puzzle), soft_wrap=True)
    console.print(f"[dim]{_verdict(result)}[/dim]", soft_wrap=True)
    return 0


def _verdict(solution: Solution) -> str:
    verified = {True: "obeys the rules", False: "breaks the rules", None: "the rules cannot tell"}[solution.verified]
    why = "the model was satisfied" if solution.stopped_by == "halted" else "the budget was spent"
    steps = f"{solution.steps} step{'s' if solution.steps > 1 else ''}"
    return f"{verified}; {steps}, {why}; halt probability {solution.halt_probability:.3f}; {solution.seconds:.2f} s"


def _trace(solver: Solver, puzzles: Iterable[Json], args: Arguments) -> int:
    """Show every step of each puzzle, until it is solved: what changed, and what the model thinks of it."""
    as_json = args.json
    console = Console(highlight=False)
    for index, value in enumerate(puzzles, 1):
        puzzle = solver.read(value)
        if not as_json:
            console.print("[bold]the puzzle[/bold]")
            console.print(solver.task.render(puzzle), soft_wrap=True)
        previous: Tokens | None = None
        for number, step in enumerate(solver.trace(value, max_steps=args.max_steps or None), 1):
            verified = solver.checker(puzzle, step.tokens)
            if as_json:
                answer = source.symbols(solver, step.answer)
                record: dict[str, Any] = {"puzzle": index, "step": number, "answer": answer}
                print(
                    json.dumps({**record, "verified": verified, "halt_probability": step.halt_probability}), flush=True
                )
            else:
                changed = "" if previous is None else f", {int((step.tokens != previous).sum())} changed"
                says = {True: ", solved", False: "", None: ""}[verified]
                console.print(
                    f"[bold]step {number}[/bold]{changed}, halt probability {step.halt_probability:.3f}{says}"
                )
                console.print(solver.task.render(step.tokens, puzzle, previous), soft_wrap=True)
            previous = step.tokens
            if console.is_terminal and not as_json:
                time.sleep(SECONDS_A_STEP)
            if verified or (args.until_halted and step.halt_probability > args.halt_threshold):
                break
    return 0
