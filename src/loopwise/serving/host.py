"""A served model: its solver, how much is on its way through it, and when it is ready."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import loopwise
from loopwise.checkpoint import CONFIG
from loopwise.config import to_json
from loopwise.data import cache
from loopwise.errors import LoopwiseError
from loopwise.models import find
from loopwise.serving.bell import Bell
from loopwise.serving.logs import log
from loopwise.serving.metrics import Meters
from loopwise.serving.problems import Problem
from loopwise.serving.settings import Settings
from loopwise.solving.solver import Solver
from loopwise.storage import read_json
from loopwise.tasks.base import Task
from loopwise.training.losses import LOSSES
from loopwise.types import Json, Tokens

__all__ = ["Host"]

POOL = 1000
"""Most puzzles to draw from."""

MEMORY = 30.0
"""Seconds over which the rate of answers is averaged, from which callers that are refused hear when to come again."""


class Host:
    """One model with its engine. `load` and `find_puzzles` may take their time, in a thread; all else is quick."""

    def __init__(self, name: str, checkpoint: str, settings: Settings, meters: Meters, bell: Bell) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.settings = settings
        self.meters = meters
        self.bell = bell
        self._solver: Solver | None = None
        self._pool: Tokens | None = None  # [N, L] puzzles to draw from; None until they are there
        self._loss = "softmax"
        self._lock = threading.Lock()
        self.on_the_way = 0
        """Passes that have been let in and have not ended."""
        self._rate, self._rated = 0.0, time.monotonic()
        meters.ready.labels(name).set(0)  # it is told of from the start, not when it has come true

    def load(self) -> None:
        """Read the weights and solve a puzzle to warm them. Raises LoopwiseError."""
        settings = self.settings
        solver = loopwise.load(
            self.checkpoint,
            slots=settings.slots,
            device=settings.device,
            dtype=settings.dtype,
            max_waiting=settings.max_waiting,
            compile=settings.compile,
            trust=settings.trust,
        )
        config = Path(find(self.checkpoint)) / CONFIG
        if config.exists():
            loss = read_json(config).get("training", {}).get("loss")
            self._loss = loss if loss in LOSSES else self._loss
        solver.begin(np.ones(solver.task.spec.length, np.int32), 2).result()
        self._solver = solver
        self.meters.ready.labels(self.name).set(1)
        self.meters.slots.labels(self.name).set(settings.slots)
        log("model ready", model=self.name, task=solver.task.name, slots=settings.slots, device=str(solver.device))

    def find_puzzles(self) -> None:
        """Have puzzles to draw; may take as long as to make the task's data."""
        try:
            self._pool = np.array(cache.examples(self.solver.task, "validation").inputs[:POOL])
        except Exception as error:  # a table's file may be gone, a user's task may fail: there are none to draw, then
            log("no puzzles to draw", model=self.name, reason=str(error))
            self._pool = np.empty((0, 0), np.int32)

    @property
    def ready(self) -> bool:
        """Whether puzzles can be solved."""
        return self._solver is not None

    @property
    def solver(self) -> Solver:
        """The solver. Raises Problem where it is not ready."""
        if self._solver is None:
            raise Problem(503, "not-ready", f"the model {self.name} is being loaded", retry_after=1)
        return self._solver

    @property
    def summary(self) -> str:
        """What the task is, in a sentence or two."""
        return Task.summary(self.solver.task)

    def close(self) -> None:
        """End the engine's thread."""
        if self._solver is not None:
            self._solver.close()

    def admit(self, passes: int) -> None:
        """Let so many passes in, all or none. Raises Problem where there is no room."""
        room = self.settings.slots + self.settings.max_waiting
        if passes > room:
            raise Problem(
                413, "too-many", f"the request has {passes} starts of puzzles; at most {room} fit; send fewer at a time"
            )
        with self._lock:
            if self.on_the_way + passes > room:
                wait = self.on_the_way / self._rate if self._rate else 1.0
                raise Problem(
                    429,
                    "queue-full",
                    f"{self.on_the_way} starts of puzzles are on their way already, at most {room} may be; "
                    "ask again later",
                    retry_after=math.ceil(min(max(wait, 1.0), 60.0)),
                )
            self.on_the_way += passes

    def release(self, passes: int) -> None:
        """So many passes have ended."""
        with self._lock:
            self.on_the_way -= passes
            now = time.monotonic()
            # The rate of a Poisson process whose past fades away.
            self._rate = self._rate * math.exp((self._rated - now) / MEMORY) + passes / MEMORY
            self._rated = now

    @property
    def max_length(self) -> int:
        """Most positions of a puzzle."""
        spec = self.solver.task.spec
        return spec.length * (self.settings.max_stretch if spec.any_length else 1)

    def look(self) -> None:
        """Tell the meters how busy it is."""
        self.meters.look(self.name, (0, 0, 0) if self._solver is None else self._solver.load)

    def draw(self, count: int, seed: int) -> list[Json]:
        """Puzzles of the validation split, in a form that the task reads. Raises Problem where there are none."""
        solver = self.solver
        if self._pool is None:
            raise Problem(503, "not-ready", "the puzzles are being made", retry_after=1)
        if not len(self._pool):
            raise Problem(404, "no-puzzles", f"there are no puzzles to draw for {self.name}")
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self._pool), size=count, replace=count > len(self._pool))
        return [_written(solver, self._pool[index]) for index in chosen]

    def confidence(self, logits: torch.Tensor, tokens: Tokens) -> npt.NDArray[np.float32]:
        """The probability of each of the tokens [L] by the logits [L, V], as the model's own loss understands them."""
        losses = LOSSES[self._loss](logits[None].cpu(), torch.as_tensor(tokens, dtype=torch.int64)[None])
        return torch.exp(-losses[0]).float().numpy()

    def describe(self) -> dict[str, Json]:
        """What /v1/models says of it."""
        found: dict[str, Json] = {"name": self.name, "ready": self.ready, "slots": self.settings.slots}
        if self._solver is None:
            return found
        solver, spec = self._solver, self._solver.task.spec
        return found | {
            "task": solver.task.name,
            "task_config": to_json(solver.task.config),
            "reasoner": solver.reasoner.name,
            "parameters": sum(solver.reasoner.num_parameters()),
            "trained_steps": solver.trained_steps,
            "symbols": list(spec.symbols),
            "shape": list(spec.shape),
            "any_length": spec.any_length and solver.reasoner.accepts(spec.length + 1),
            "max_length": self.max_length,
            "symmetric": solver.task.symmetric,
            "default_budget": str(solver.default_budget),
            "default_starts": min(solver.default_starts, self.settings.max_starts),
        }


def _written(solver: Solver, tokens: Tokens) -> Json:
    """A puzzle [L] in the first of several forms that the task reads as the same; padding behind is left away."""
    task = solver.task
    symbols = [task.spec.symbols[token] for token in tokens]
    for form in _forms(symbols, task.spec.shape):
        try:
            if np.array_equal(task.parse(form), tokens):
                return form
        except LoopwiseError:
            continue
    return symbols


def _forms(symbols: Sequence[str], shape: Sequence[int]) -> list[Json]:
    """Ways to write a puzzle."""
    width = shape[-1]
    rows = [list(symbols[at : at + width]) for at in range(0, len(symbols), width)]
    return [
        "".join(symbols),
        " ".join(symbol for symbol in symbols if symbol),
        "\n".join("".join(row) for row in rows),
        [symbol for symbol in symbols if symbol],
        rows,
    ]
