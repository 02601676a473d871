"""Showing the steps of a solve, as `loopwise solve --trace` does."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from loopwise.cli.puzzles import symbols
from loopwise.solving.budgets import Budget, Verified
from loopwise.solving.solution import Glimpse
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.solving.usual import usual_budget
from loopwise.types import Json, Tokens

__all__ = ["show_steps"]

SECONDS_A_STEP = 0.4
"""Pause after each step in a terminal, so that the eye can follow."""

GUESSED = ", with a guess among the clues"


def show_steps(
    solver: Solver, value: Json, budget: Budget | None, starts: Starts | None, *, number: int, as_json: bool
) -> None:
    """Show what is proposed after each step of a solve, until its budget ends it; `number` tells puzzles apart. Of
    several starts, the first is shown, and the answer that was found.

    By default it ends where the model halts, and where the puzzle is solved. Raises PuzzleError and SolvingError.
    """
    chosen = solver.starts(starts)
    budget = Verified() | usual_budget(solver.model, chosen) if budget is None else budget
    puzzle = solver.read(value)
    console = Console(highlight=False)
    if not as_json:
        console.print("[bold]the puzzle[/bold]")
        console.print(solver.task.render(puzzle), soft_wrap=True)
    trace = _Trace(solver, value, puzzle, console, number, as_json)
    if solver.reasoner.search or chosen.count > 1:
        trace.search(budget, chosen)
    else:
        trace.single_pass(budget, chosen)


@dataclass(frozen=True)
class _Trace:
    """A puzzle, and where its steps are shown."""

    solver: Solver
    value: Json
    puzzle: Tokens
    console: Console
    number: int
    as_json: bool

    def single_pass(self, budget: Budget, starts: Starts) -> None:
        """One board below the other."""
        solver, puzzle, console = self.solver, self.puzzle, self.console
        engine = solver.engine()
        work = engine.submit(puzzle, budget, check=partial(solver.checker, puzzle), guesses=starts.guesses(0))
        previous: Tokens | None = None
        while not work.stopped_by:
            seen = puzzle if work.progress.seen is None else work.progress.seen
            engine.step()
            if work.error:
                raise work.error
            progress = work.progress
            answer, probability = progress.answer, progress.halt_probability
            assert answer is not None
            if self.as_json:
                self._write(progress.steps, answer, progress.verified, halt_probability=probability)
            else:
                changed = "" if previous is None else f", {int((answer != previous).sum())} changed"
                solved = ", solved" if progress.verified else ""
                doing = f"{'' if seen is puzzle else GUESSED}{changed}, halt probability {probability:.3f}{solved}"
                console.print(f"[bold]step {progress.steps}[/bold]{doing}")
                console.print(solver.task.render(answer, puzzle if solved else seen, previous), soft_wrap=True)
                if console.is_terminal:
                    time.sleep(SECONDS_A_STEP)
            previous = answer

    def search(self, budget: Budget, starts: Starts) -> None:
        """The first of the chains or starts, all of its steps in one place as they are many, then what was found."""
        solver, puzzle, console = self.solver, self.puzzle, self.console
        live = Live(console=console, auto_refresh=False, transient=True)
        in_place = console.is_terminal and not self.as_json
        name = "chain" if solver.reasoner.search else "start"
        previous: list[Tokens | None] = [None]

        def show(glimpse: Glimpse) -> None:
            if glimpse.start:
                return
            if self.as_json:
                self._write(glimpse.step, glimpse.answer, None, start=0)
            elif in_place:
                seen = puzzle if glimpse.seen is None else glimpse.seen
                board = solver.task.render(glimpse.answer, seen, previous[0])
                doing = f"[bold]step {glimpse.step}[/bold] of {name} 1{'' if seen is puzzle else GUESSED}"
                live.update(Text.from_markup(f"{doing}\n{board}"), refresh=True)
            previous[0] = glimpse.answer

        with live if in_place else nullcontext():
            solution = solver.begin(self.value, budget, starts=starts, watch=show).result()
        solver.close()
        if self.as_json:
            self._write(solution.steps, solution.tokens, solution.verified, start=solution.start)
            return
        outcome = "solved" if solution.verified else f"not solved, stopped by {solution.stopped_by}"
        where = f"step {solution.steps} of {name} {solution.start + 1}"
        console.print(
            f"[bold]{where}[/bold], {outcome}, {solution.total_steps:,} steps in all, {solution.seconds:.2g} s"
        )
        console.print(solver.task.render(solution.tokens, puzzle), soft_wrap=True)

    def _write(self, step: int, tokens: Tokens, verified: bool | None, **more: Any) -> None:
        """Write a step as a line of JSON."""
        text = tokens if isinstance(self.value, np.ndarray) else self.solver.task.format(tokens, self.value)
        answer = symbols(self.solver, text)
        record = {"puzzle": self.number, "step": step, "answer": answer, "verified": verified, **more}
        print(json.dumps(record, ensure_ascii=False), flush=True)
