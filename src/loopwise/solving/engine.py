"""The slot engine: the one loop, with budgets. It knows no tasks and starts no thread; whoever calls `step` drives it.

One step advances all slots; a row that is finished leaves at once and a waiting one takes its slot. Puzzles of
different lengths cannot share a batch: a length has a lane, slots of its own, while puzzles of that length are in it,
and `step` advances one lane, by turns.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loopwise.checkpoint import Model
from loopwise.errors import DeadlineError
from loopwise.solving.budgets import Budget, Progress
from loopwise.solving.guessing import Guesses
from loopwise.solving.lane import CANCELLED, Lane, Pass
from loopwise.solving.noise import Noise
from loopwise.types import Tokens

__all__ = ["LANES", "Engine"]

LANES = 8
"""Most lengths that are in slots at a time; others wait. Bounds the memory."""


class Engine:
    """Slots for a model that is on `device` and in evaluation mode. Not for several threads at once."""

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.monotonic,
        step_flops: Callable[[int], float] = lambda length: 0.0,
    ) -> None:
        self.model = model
        self.slots = slots
        self.device = torch.device(device)
        self.clock = clock
        self.step_flops = step_flops
        self._submitted = 0
        self._queues: dict[int, deque[Pass]] = {}  # by length; none is empty
        self._lanes: OrderedDict[int, Lane] = OrderedDict()  # by length; the one whose turn it is comes first

    @property
    def active(self) -> int:
        """Passes that are in slots."""
        return sum(lane.active for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Passes that wait for a slot."""
        return sum(map(len, self._queues.values()))

    @property
    def open_slots(self) -> int:
        """Slots of all lengths that have some now."""
        return self.slots * len(self._lanes)

    @property
    def hungry(self) -> bool:
        """Whether a lane has a slot that no waiting pass will take."""
        passes = {length: lane.active for length, lane in self._lanes.items()}
        for length, queue in self._queues.items():
            passes[length] = passes.get(length, 0) + len(queue)
        return min(passes.values(), default=0) < self.slots

    def submit(
        self,
        tokens: Tokens,
        budget: Budget,
        *,
        check: Callable[[Tokens], bool | None] = lambda answer: None,
        noise: Noise | None = None,
        guesses: Guesses | None = None,
        needs_residual: bool = False,
        watch: Callable[[Progress, Tensor], None] | None = None,
        arrival: float | None = None,
        key: Any = None,
    ) -> Pass:
        """Let a puzzle [L] wait for a slot. `check` is what the rules say of an answer [L]; for `watch` see Pass."""
        needs = budget.needs
        work = Pass(
            tokens=tokens,
            budget=budget,
            progress=Progress(check=check),
            arrival=self.clock() if arrival is None else arrival,
            number=self._submitted,
            noise=noise,
            guesses=guesses,
            key=key,
            needs_residual=needs_residual or "residual" in needs,
            has_deadline="seconds" in needs,
            step_flops=self.step_flops(len(tokens)) if "flops" in needs else 0.0,
            watch=watch,
        )
        self._submitted += 1
        self._queues.setdefault(len(tokens), deque()).append(work)
        return work

    def cancel(self, work: Pass) -> None:
        """Take a pass out of its slot or its queue. Nothing happens where it has ended."""
        if work.stopped_by:
            return
        length = len(work.tokens)
        if work.slot is None:
            self._queues[length].remove(work)
        else:
            self._lanes[length].release(work)
        work.stopped_by = CANCELLED
        self._tidy(length)

    @torch.inference_mode()
    def step(self) -> list[Pass]:
        """Advance one lane by one supervision step; return the passes that have ended by themselves.

        Those whose time was over before they found a slot are among them, with a DeadlineError.
        """
        ended = self._overdue()
        barrier = self._open_lanes()
        if not self._lanes:
            return ended
        length, lane = next(iter(self._lanes.items()))
        self._lanes.move_to_end(length)
        queue = self._queues.get(length, deque())
        fresh: list[Pass] = []
        while queue and queue[0].number < barrier and lane.active + len(fresh) < self.slots:
            fresh.append(queue.popleft())
        if fresh:
            now = self.clock()
            for work in fresh:
                work.progress.waited = now - work.arrival
            lane.admit(fresh)
        if lane.active:
            ended += lane.advance(self.clock)
        self._tidy(length)
        return ended

    def _overdue(self) -> list[Pass]:
        """Take the passes out of the queues whose budget has ended while they waited."""
        now = self.clock()
        ended: list[Pass] = []
        for work in [work for queue in self._queues.values() for work in queue if work.has_deadline]:
            work.progress.seconds = now - work.arrival
            stopped_by = work.budget.stop(work.progress)
            if stopped_by:
                self.cancel(work)
                work.stopped_by = stopped_by
                work.error = DeadlineError(
                    f"the time was over after {work.progress.seconds:.3g} s of waiting; "
                    "allow more seconds, or take more slots"
                )
                ended.append(work)
        return ended

    def _open_lanes(self) -> float:
        """Open a lane for every length that waits, the longest waiting first, as far as LANES allows.

        Returns the number of the oldest pass that found none: nobody younger may enter a slot before it, so that some
        lane runs empty.
        """
        unserved = ((queue[0].number, n) for n, queue in self._queues.items() if n not in self._lanes)
        for number, length in sorted(unserved):
            if len(self._lanes) == LANES:
                return number
            self._lanes[length] = Lane(self.model, self.slots, length, self.device)
        return math.inf

    def _tidy(self, length: int) -> None:
        """Forget a queue without passes and a lane without active slots."""
        if not self._queues.get(length, True):
            del self._queues[length]
        if length in self._lanes and not self._lanes[length].active:
            del self._lanes[length]
