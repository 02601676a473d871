"""From a puzzle to its solution: the passes that it takes through the engine, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from loopwise.errors import SolvingError
from loopwise.solving.budgets import Budget, Progress
from loopwise.solving.checking import Checker
from loopwise.solving.engine import Engine
from loopwise.solving.lane import CANCELLED, Pass
from loopwise.solving.starts import Candidate, Starts, choose
from loopwise.tasks.base import Inverse, identity
from loopwise.types import Json, Tokens

__all__ = ["Glimpse", "Request", "Solution"]


class Glimpse(NamedTuple):
    """What one start of a puzzle proposes after one of its steps."""

    start: int
    step: int  # from 1
    answer: Tokens  # [L], seen from the puzzle itself
    halt_probability: float
    residual: float
    logits: Tensor | None  # [L, V], to be read at once; None where the start sees another view of the puzzle
    seen: Tokens | None  # [L], the puzzle with the guess that stood in it; None where none did, or as above


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer, and how it came about."""

    answer: Json
    """In the form of the puzzle: a string, a list or a grid, or tokens where the puzzle was given as such."""
    puzzle: Tokens
    """The puzzle as tokens [L]."""
    tokens: Tokens
    """The answer as tokens [L]."""
    verified: bool | None
    """Whether the task's rules accept it; None where the rules cannot decide."""
    steps: int
    """Supervision steps of the start that it comes from."""
    stopped_by: str
    """What stopped that start: the name of the budget, such as halted, steps or halted&verified."""
    halt_probability: float
    """The model's own belief, after the last step, that the answer is right."""
    residual: float | None
    """|new - old| / |new| of the state in the last step, where budget or selection asked for it."""
    seconds: float
    """From the puzzle's arrival to its answer."""
    start: int = 0
    """Number of the start that it comes from; 0 is the single pass."""
    total_steps: int
    """Supervision steps of all starts together."""
    waited: float = 0.0
    """Seconds from the puzzle's arrival until its single pass had a slot."""
    first_step: float = 0.0
    """Seconds from the puzzle's arrival to the end of the first step of its single pass."""
    single: Solution | SolvingError | None = None
    """With several starts, what the single pass alone has come to; None for a search and with guesses, where no start
    is one.
    """


class Request:
    """A puzzle that is being solved; the engine has it at once, once for every start.

    The single pass goes on to its own end, whatever the others find, unless `starts.single` says otherwise. Where
    `verified` is the first rule of the choice, the others end as soon as one of them is verified: those with fewer
    steps after as many, the rest at once. So the outcome does not depend on when a slot was free for whom.
    """

    def __init__(
        self,
        engine: Engine,
        puzzle: Tokens,
        write: Callable[[Tokens], Json],
        budget: Budget,
        starts: Starts,
        checker: Checker,
        *,
        key: Any,
        arrival: float | None = None,
        watch: Callable[[Glimpse], None] | None = None,
    ) -> None:
        self._engine = engine
        self._puzzle = puzzle
        self._write = write
        self._starts = starts
        self._arrival = engine.clock() if arrival is None else arrival
        views = [starts.view(checker.task, puzzle, start) for start in range(starts.count)]
        self._inverses = [inverse for _, inverse in views]
        self._passes = [
            engine.submit(
                seen,
                budget,
                check=partial(_check, checker, puzzle, inverse),
                noise=starts.noise(start),
                guesses=starts.guesses(start),
                needs_residual="residual" in starts.select or watch is not None,
                watch=None if watch is None else partial(_show, watch, start, inverse),
                arrival=self._arrival,
                key=key,
            )
            for start, (seen, inverse) in enumerate(views)
        ]
        self._running = set(self._passes)  # whose end has not been told yet

    def cancel(self) -> None:
        """Give the puzzle up."""
        for work in self._passes:
            self._engine.cancel(work)

    def ended(self, work: Pass) -> bool:
        """Take note that a pass has ended; whether the puzzle is done."""
        self._running.remove(work)
        if self._running and self._starts.select[0] == "verified" and _finished(work) and work.progress.verified:
            others = self._running - {self._passes[0]} if self._starts.single else set(self._running)
            for other in [other for other in others if not other.stopped_by]:
                other.most_steps = min(other.most_steps, work.progress.steps)
                if other.progress.steps >= other.most_steps:
                    self._engine.cancel(other)
                    self._running.remove(other)
        return not self._running

    def result(self) -> Solution | SolvingError:
        """The solution of a puzzle that is done, or why no start has come to one."""
        finished = [start for start, work in enumerate(self._passes) if _finished(work)]
        if not finished:
            return self._passes[0].error or SolvingError("the puzzle was given up")
        if self._starts.count == 1:
            return self._solution(0)
        best = finished[choose([self._candidate(start) for start in finished], self._starts.select)]
        single = None
        if self._starts.single:
            single = self._solution(0) if 0 in finished else self._passes[0].error
        total = sum(work.progress.steps for work in self._passes)
        return replace(self._solution(best), start=best, total_steps=total, single=single)

    def _candidate(self, start: int) -> Candidate:
        progress = self._passes[start].progress
        return Candidate(
            answer=self._answer(start),
            verified=progress.verified if "verified" in self._starts.select else None,
            halt_probability=progress.halt_probability,
            residual=progress.residual,
            steps=progress.steps,
        )

    def _solution(self, start: int) -> Solution:
        work = self._passes[start]
        answer = self._answer(start)
        return Solution(
            answer=self._write(answer),
            puzzle=self._puzzle,
            tokens=answer,
            verified=work.progress.verified,
            steps=work.progress.steps,
            stopped_by=work.stopped_by,
            halt_probability=work.progress.halt_probability,
            residual=work.progress.residual if work.needs_residual else None,
            seconds=self._engine.clock() - self._arrival,
            total_steps=work.progress.steps,
            waited=self._passes[0].progress.waited,
            first_step=self._passes[0].progress.first_step,
        )

    def _answer(self, start: int) -> Tokens:
        """The answer [L] of a start, seen from the puzzle itself."""
        answer = self._passes[start].progress.answer
        assert answer is not None
        return self._inverses[start](answer)


def _finished(work: Pass) -> bool:
    """Whether its budget has ended it, with an answer."""
    return work.error is None and work.stopped_by not in {"", CANCELLED}


def _check(checker: Checker, puzzle: Tokens, inverse: Inverse, answer: Tokens) -> bool | None:
    """What the rules say of an answer [L] to a view of the puzzle; undecided where a user's task finds no way back."""
    try:
        seen = inverse(answer)
    except Exception:  # whoever asks for the answer hears of it; those in the other slots have nothing to do with it
        return None
    return checker(puzzle, seen)


def _show(watch: Callable[[Glimpse], None], start: int, inverse: Inverse, progress: Progress, logits: Tensor) -> None:
    """Tell what a start proposes now. An inverse knows the way back of tokens alone, not of what belongs to them."""
    assert progress.answer is not None
    watch(
        Glimpse(
            start=start,
            step=progress.steps,
            answer=inverse(progress.answer),
            halt_probability=progress.halt_probability,
            residual=progress.residual,
            logits=logits if inverse is identity else None,
            seen=progress.seen if inverse is identity else None,
        )
    )
