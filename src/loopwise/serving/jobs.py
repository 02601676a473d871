"""The puzzles of one request on their way: what was asked of each, when all have ended, and how to give them up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from loopwise.errors import ConfigError, DeadlineError, PuzzleError
from loopwise.serving.host import Host
from loopwise.serving.problems import Problem
from loopwise.serving.schemas import SolveRequest
from loopwise.solving.budget_text import as_budget
from loopwise.solving.budgets import Budget, Seconds, Steps
from loopwise.solving.service import Answer
from loopwise.solving.solution import Glimpse, Solution
from loopwise.solving.starts import Starts, as_starts
from loopwise.solving.usual import usual_budget, usual_count
from loopwise.tasks.base import Task
from loopwise.types import Json

__all__ = ["Job", "Outcome", "Plan", "make_plan", "reason"]

Outcome: TypeAlias = Literal["done", "gone", "late", "refused", "slow"]
"""How a request ended: all puzzles have, the caller went away, the service's own time limit passed, the service shuts
down, or the caller read too slowly.
"""

TURN = 32
"""Puzzles that are read before others of the event loop have their turn."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the puzzles of a request are to be solved."""

    puzzles: Sequence[Json]
    budget: Budget
    starts: Starts
    several: bool
    """Whether the request had a list, where each puzzle may have an error of its own."""


def make_plan(request: SolveRequest, host: Host) -> Plan:
    """What a request asks of a model, within the ceilings. Raises Problem."""
    settings, solver = host.settings, host.solver
    puzzles = [request.puzzle] if request.puzzles is None else request.puzzles
    if len(puzzles) > settings.max_puzzles:
        raise Problem(413, "too-many", f"{len(puzzles)} puzzles are too many; send at most {settings.max_puzzles}")
    try:
        guess = solver.model.guess if request.guess is None else request.guess
        count = min(usual_count(solver.model, guess), settings.max_starts) if request.starts is None else request.starts
        noise = request.sigma_init, request.sigma_step
        starts = solver.starts(_make_starts(solver.task, count, request.select, request.seed, *noise, guess))
        budget = usual_budget(solver.model, starts) if request.budget is None else as_budget(request.budget)
    except ConfigError as error:
        raise Problem(422, "option", str(error)) from None
    if starts.count > settings.max_starts:
        raise Problem(422, "option", f"starts is {starts.count}; at most {settings.max_starts} are allowed here")
    budget = budget | Steps(settings.max_steps)
    if request.deadline is not None:
        budget = budget | Seconds(request.deadline)
    return Plan(puzzles=puzzles, budget=budget, starts=starts, several=request.puzzles is not None)


@lru_cache(maxsize=256)
def _make_starts(
    task: Task[Any], count: int, select: str, seed: int, sigma_init: float, sigma_step: float, guess: int
) -> Starts:
    """The starts of a request. Kept, since to check options was measured to take a millisecond."""
    starts = replace(as_starts(count, task), select=tuple(select.split(",")), seed=seed)
    if sigma_init or sigma_step:
        starts = replace(starts, views=False, sigma_init=sigma_init, sigma_step=sigma_step)
    return replace(starts, guess=guess, single=not guess)


class Job:
    """Made and awaited in an event loop; the engine's thread tells it of answers."""

    def __init__(self, host: Host, plan: Plan, watch: Callable[[Glimpse], None] | None = None) -> None:
        """Take room for all puzzles, or raise Problem."""
        host.admit(len(plan.puzzles) * plan.starts.count)
        self.host = host
        self.plan = plan
        self.results: list[Solution | BaseException | None] = [None] * len(plan.puzzles)
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._watch = watch
        self._futures: list[Answer | None] = [None] * len(plan.puzzles)
        self._lock = threading.Lock()
        self._left = len(plan.puzzles)
        self._begun = 0

    async def begin(self) -> None:
        """Send the puzzles on their way."""
        solver, plan = self.host.solver, self.plan
        for index, puzzle in enumerate(plan.puzzles):
            if index and not index % TURN:
                await asyncio.sleep(0)
            if self.ended.done():
                break
            self._begun = index + 1
            try:
                self._check_length(puzzle)
                future = solver.begin(puzzle, plan.budget, starts=plan.starts, watch=self._watch)
            except Exception as error:  # of a user's task, too
                self._note(index, error)
                continue
            self._futures[index] = future
            future.add_done_callback(lambda done, index=index: self._take(index, done))  # type: ignore[misc]

    def end(self, outcome: Outcome) -> None:
        """Give up what is still on its way; what has ended already stays as it ended."""
        if self.ended.done():
            return
        self.ended.set_result(outcome)
        for future in self._futures:
            if future is not None:
                future.cancel()
        for index in range(self._begun, len(self.results)):
            self._note(index, asyncio.CancelledError())
        self._begun = len(self.results)

    def _check_length(self, puzzle: Json) -> None:
        """Refuse what is so long that a step would take the memory and the time of all others. Raises PuzzleError."""
        if self.host.solver.task.spec.any_length:
            length = len(self.host.solver.read(puzzle))
            if length > self.host.max_length:
                raise PuzzleError(
                    f"the puzzle has {length} positions, this service takes at most {self.host.max_length}"
                )

    def _take(self, index: int, future: Answer) -> None:
        """Note how a puzzle ended; in the engine's thread, or in the event loop's where it was cancelled."""
        if future.cancelled():
            self._note(index, asyncio.CancelledError())
        else:
            self._note(index, future.exception() or future.result())

    def _note(self, index: int, result: Solution | BaseException) -> None:
        self.host.release(self.plan.starts.count)
        if isinstance(result, Solution):
            self.host.meters.solved(self.host.name, result)
        else:
            self.host.meters.failed(self.host.name, reason(result))
        with self._lock:
            self.results[index] = result
            self._left -= 1
            last = not self._left
        if last:
            self.host.bell.ring(self.end, "done")


def reason(error: BaseException) -> str:
    """The finish_reason of a puzzle without an answer."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, DeadlineError):
        return "deadline"
    return "invalid" if isinstance(error, PuzzleError | ConfigError) else "error"
