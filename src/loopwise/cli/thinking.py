"""Showing the steps of a solve, as `loopwise solve --trace` does."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from functools import partial

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from loopwise.cli.puzzles import symbols
from loopwise.solving.budgets import Budget, Progress, Verified
from loopwise.solving.solver import Solver
from loopwise.types import Json, Tokens

__all__ = ["show_steps"]

SECONDS_A_STEP = 0.4
"""Pause after each step in a terminal, so that the eye can follow."""

SECONDS_A_SEARCH_STEP = 0.05
"""Pause after each step of a search, which takes hundreds."""


def show_steps(solver: Solver, value: Json, budget: Budget | None, *, number: int, as_json: bool) -> None:
    """Show what is proposed after each step of a solve, until its budget ends it; `number` tells puzzles apart.

    By default it ends where the model halts, and where the puzzle is solved. Raises PuzzleError and SolvingError.
    """
    budget = Verified() | solver.default_budget if budget is None else budget
    puzzle = solver.read(value)
    console = Console(highlight=False)
    if not as_json:
        console.print("[bold]the puzzle[/bold]")
        console.print(solver.task.render(puzzle), soft_wrap=True)
    screen = _Screen(solver, puzzle, console)
    engine = solver.engine()
    work = engine.submit(puzzle, budget, check=partial(solver.checker, puzzle))
    with screen.live if screen.in_place else nullcontext():
        while not work.stopped_by:
            engine.step()
            if work.error:
                raise work.error
            if as_json:
                _write(solver, value, work.progress, number)
            else:
                screen.show(work.progress, last=bool(work.stopped_by))


def _write(solver: Solver, value: Json, progress: Progress, number: int) -> None:
    """Write a step as a line of JSON."""
    assert progress.answer is not None
    answer = progress.answer if isinstance(value, np.ndarray) else solver.task.format(progress.answer, value)
    record = {"puzzle": number, "step": progress.steps, "answer": symbols(solver, answer)}
    record |= {"verified": progress.verified, "halt_probability": progress.halt_probability}
    print(json.dumps(record, ensure_ascii=False), flush=True)


class _Screen:
    """The steps as a person sees them: one board below the other, or, of a search, whose steps are many, all in one
    place; where that is no terminal, a line for each and the last board.
    """

    def __init__(self, solver: Solver, puzzle: Tokens, console: Console) -> None:
        self.task = solver.task
        self.search = solver.reasoner.search
        self.puzzle = puzzle
        self.previous: Tokens | None = None
        self.console = console
        self.in_place = self.search and console.is_terminal
        self.live = Live(console=console, auto_refresh=False)

    def show(self, progress: Progress, *, last: bool) -> None:
        """Show a step."""
        answer, previous = progress.answer, self.previous
        assert answer is not None
        line = f"[bold]step {progress.steps}[/bold]"
        if previous is not None:
            line += f", {int((answer != previous).sum())} changed"
        if not self.search:
            line += f", halt probability {progress.halt_probability:.3f}"
        if progress.verified:
            line += ", solved"
        board = self.task.render(answer, self.puzzle, previous)
        if self.in_place:
            self.live.update(Text.from_markup(f"{line}\n{board}"), refresh=True)
        else:
            self.console.print(line)
            if last or not self.search:
                self.console.print(board, soft_wrap=True)
        if self.console.is_terminal:
            time.sleep(SECONDS_A_SEARCH_STEP if self.search else SECONDS_A_STEP)
        self.previous = answer
