"""Showing the steps of a solve, as `loopwise solve --trace` does."""

from __future__ import annotations

import json
import time
from functools import partial

import numpy as np
from rich.console import Console

from loopwise.cli.puzzles import symbols
from loopwise.solving.budgets import Budget, Verified
from loopwise.solving.solver import Solver
from loopwise.types import Json, Tokens

__all__ = ["show_steps"]

SECONDS_A_STEP = 0.4
"""Pause after each step in a terminal, so that the eye can follow."""


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
    engine = solver.engine()
    work = engine.submit(puzzle, budget, check=partial(solver.checker, puzzle))
    previous: Tokens | None = None
    while not work.stopped_by:
        engine.step()
        if work.error:
            raise work.error
        progress = work.progress
        answer, probability = progress.answer, progress.halt_probability
        assert answer is not None
        if as_json:
            written = symbols(solver, answer if isinstance(value, np.ndarray) else solver.task.format(answer, value))
            record = {"puzzle": number, "step": progress.steps, "answer": written, "verified": progress.verified}
            print(json.dumps({**record, "halt_probability": probability}, ensure_ascii=False), flush=True)
        else:
            changed = "" if previous is None else f", {int((answer != previous).sum())} changed"
            solved = ", solved" if progress.verified else ""
            console.print(f"[bold]step {progress.steps}[/bold]{changed}, halt probability {probability:.3f}{solved}")
            console.print(solver.task.render(answer, puzzle, previous), soft_wrap=True)
            if console.is_terminal:
                time.sleep(SECONDS_A_STEP)
        previous = answer
