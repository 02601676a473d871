"""Solving: the same loop as training, with budgets in place of a loss."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from loopwise.checkpoint import CONFIG, WEIGHTS, Model, load_model, save_weights, write_config
from loopwise.errors import CheckpointError, ConfigError, LoopwiseError, PuzzleError
from loopwise.reasoners.compiling import compile_networks
from loopwise.reasoners.costs import count_flops
from loopwise.runtime import resolve_device, solving_dtype
from loopwise.solving.budget_text import BudgetLike, as_budget
from loopwise.solving.budgets import Budget, Steps
from loopwise.solving.checking import Checker
from loopwise.solving.engine import Engine
from loopwise.solving.lane import Lane, computed_rows, read_prediction
from loopwise.solving.service import Answer, Service
from loopwise.solving.solution import Glimpse, Request, Solution
from loopwise.solving.starts import Starts
from loopwise.solving.usual import fitting, usual_budget, usual_starts
from loopwise.solving.watching import Change, Watched
from loopwise.tasks.base import Task
from loopwise.types import Batch, Json, Prediction, Tokens

__all__ = ["NOT_YET", "WINDOW", "Budgets", "Solver", "Step"]

WINDOW = 16
"""How many slot-fulls of a stream may be on their way; bounds the memory. More than one where puzzles have several
lengths, which need slots of their own, or where the answer that comes next takes long.
"""

NOT_YET: Final = object()
"""Stands in a stream for a puzzle that is not there yet: those on their way take a step, then it is asked again.
Where none is on its way, the stream should wait itself.
"""

Budgets: TypeAlias = BudgetLike | Iterable[BudgetLike] | None
"""One budget for all puzzles, or one for each; None is the usual one."""


class Step(NamedTuple):
    """What one supervision step did, and the answer that it proposes."""

    answer: Json  # in the form of the puzzle
    tokens: Tokens  # [L]
    halt_probability: float
    changed: int | None  # positions where it differs from the answer proposed before; None for the first
    updates: tuple[Change, ...]  # the residual of every update of the state, in order


class Solver:
    """A trained model, ready to solve. `loopwise.load(path)` makes one."""

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 64,
        device: str = "auto",
        dtype: str = "trained",
        max_waiting: int = 1024,
        compile: bool = False,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, not {slots}")
        if max_waiting < 0:
            raise ConfigError(f"max_waiting must be at least 0, not {max_waiting}")
        self.task = model.task
        self.slots = slots
        self.max_waiting = max_waiting
        self.device = resolve_device(device)
        self.reasoner = model.reasoner.to(self.device).eval()
        self.reasoner.dtype = solving_dtype(dtype, self.reasoner.dtype)
        trouble = compile_networks(self.reasoner) if compile else None
        if trouble:
            logging.getLogger("loopwise").warning("not compiled: %s", trouble)
        elif compile:  # now, so that no puzzle's time pays for it
            with torch.inference_mode():
                Lane(model, slots, self.reasoner.spec.length, self.device).advance(time.monotonic)
        self.model = model
        self.trained_steps = int(model.halting.config.max_steps)
        usual = usual_starts(model)
        self.default_budget, self.default_starts = usual_budget(model, usual), usual.count
        self.checker = Checker(model.task)
        self.step_flops = cache(partial(_step_flops, model))
        """FLOPs of a supervision step of a puzzle of that length."""
        self._lock = threading.Lock()
        self._service: Service | None = None
        self._end_service: Callable[[], object] = lambda: None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        slots: int = 64,
        device: str = "auto",
        dtype: str = "trained",
        max_waiting: int = 1024,
        compile: bool = False,
        trust: bool = False,
    ) -> Solver:
        """Load a checkpoint folder, or a model repository of the Hugging Face hub by `owner/name`.

        `dtype` is the number format of activations: as trained, float32, or bfloat16, which some processors take half
        the time for. `compile` fuses the network's kernels, half a minute that pays for thousands of puzzles.
        With `trust`, code outside loopwise that the checkpoint names (a task class, a table's checker) is imported.
        """
        model, _ = load_model(_locate(str(name)), trust=trust)
        return cls(model, slots=slots, device=device, dtype=dtype, max_waiting=max_waiting, compile=compile)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder that `from_pretrained` reads."""
        write_config(Path(folder), self.model, {})
        save_weights(Path(folder), self.reasoner, {})

    def solve(
        self, puzzles: Sequence[Json], budget: Budgets = None, *, starts: int | Starts | None = None
    ) -> list[Solution]:
        """Solve puzzles; the answers come in their order.

        A puzzle is what the task reads, a string, a list or a grid, or its tokens as an int32 array [L]. For the
        arguments see `stream`. Raises the first puzzle's error, naming the puzzle; `stream` goes on instead.
        """
        if isinstance(puzzles, str):
            raise PuzzleError("a list of puzzles is expected; put the one puzzle into a list")
        if isinstance(budget, Sequence) and not isinstance(budget, str) and len(budget) != len(puzzles):
            raise ConfigError(f"there are {len(budget)} budgets for {len(puzzles)} puzzles; give one for each")
        solutions = []
        for i, result in enumerate(self.stream(puzzles, budget, starts=starts)):
            if isinstance(result, LoopwiseError):
                raise type(result)(f"puzzle {i + 1}: {result}" if len(puzzles) > 1 else str(result))
            solutions.append(result)
        return solutions

    def stream(
        self, puzzles: Iterable[Json], budget: Budgets = None, *, starts: int | Starts | None = None
    ) -> Iterator[Solution | LoopwiseError]:
        """Solve a stream of any length in constant memory, in order.

        A puzzle that cannot be read or gets no answer gives its error in its place; a PuzzleError among the puzzles
        comes out as it is, NOT_YET gives nothing. Puzzles are read between two steps, as many as find a slot, and at
        most WINDOW slot-fulls ahead of the answer that comes next.

        `budget` says when a puzzle stops: a number of steps (more than in training are allowed), a text such as
        `halted|steps=64`, a `Budget`, or as many of these as there are puzzles. By default it stops when the model
        halts, after as many steps as in training at most. With several `starts` the best of as many passes is chosen.
        A search stops when the rules accept, after 1,000 steps at most, and has 8 starts unless told otherwise. With
        `Starts(guess=n)` any model searches, if its task has symbols that can be guessed; some models usually do.
        """
        kept: dict[int, Solution | LoopwiseError] = {}
        following = 0
        for index, result in self._run(puzzles, budget, starts, lambda: len(kept)):
            kept[index] = result
            while following in kept:
                yield kept.pop(following)
                following += 1

    def as_completed(
        self, puzzles: Iterable[Json], budget: Budgets = None, *, starts: int | Starts | None = None
    ) -> Iterator[tuple[int, Solution | LoopwiseError]]:
        """As `stream`, but each comes as soon as it is there: (place of the puzzle from 0, solution or error)."""
        return self._run(puzzles, budget, starts, lambda: 0)

    async def submit(
        self, puzzle: Json, budget: BudgetLike | None = None, *, starts: int | Starts | None = None
    ) -> Solution:
        """Solve one puzzle beside those that other tasks submit; a thread that the first call starts does the work.

        Cancelling the task frees the slot. Raises PuzzleError or SolvingError where there is no answer, and
        QueueFullError where `max_waiting` puzzles wait already.
        """
        return await asyncio.wrap_future(self.begin(puzzle, budget, starts=starts))

    def begin(
        self,
        puzzle: Json,
        budget: BudgetLike | None = None,
        *,
        starts: int | Starts | None = None,
        watch: Callable[[Glimpse], None] | None = None,
    ) -> Answer:
        """As `submit`, for callers without an event loop: the answer is a future, and cancelling it frees the slot.

        `watch` is shown every step of every start, in the thread that steps: it must be quick, and where it
        raises, that start is shown no more.
        """
        tokens = self.read(puzzle)
        chosen = self.starts(starts)
        arguments = (
            tokens,
            partial(_write, self.task, puzzle),
            usual_budget(self.model, chosen) if budget is None else as_budget(budget),
            chosen,
            self.checker,
        )
        service = self._running()
        arrival = service.engine.clock()
        return service.submit(
            lambda future: Request(service.engine, *arguments, key=future, arrival=arrival, watch=watch)
        )

    def starts(self, starts: int | Starts | None) -> Starts:
        """The starts that a puzzle gets, from what the caller says of them: a number of them guess as the model usually
        does. Raises ConfigError.
        """
        return fitting(self.model, starts) if isinstance(starts, Starts) else usual_starts(self.model, starts)

    @property
    def load(self) -> tuple[int, int, int]:
        """Of what was submitted: (passes in slots, passes that wait for one, slots that are computed now)."""
        service = self._service
        return (0, 0, 0) if service is None else service.load

    def close(self) -> None:
        """End the thread of `submit`, where there is one; puzzles on their way get a SolvingError."""
        with self._lock:
            self._end_service()
            self._service = None

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @torch.inference_mode()
    def trace(self, puzzle: Json, *, max_steps: int | None = None) -> list[Step]:
        """What each of `max_steps` steps does, not stopping when the model would: the proposed answer and how many of
        its positions changed, the halting probability, and the residual of every update of the state.
        """
        tokens = self.read(puzzle)
        # All rows alike, so that no search or ponder goes on for another's sake.
        rows = computed_rows(self.slots, self.reasoner)
        inputs = torch.as_tensor(tokens, dtype=torch.int64).to(self.device).repeat(rows, 1)
        batch = Batch.unlabelled(inputs)
        state = self.reasoner.init_state(*inputs.shape)
        watched = Watched(self.model.gradient)
        model = replace(self.model, gradient=watched)
        steps: list[Step] = []
        for _ in range(self._limit(max_steps)):
            state, prediction, _ = model.step(state, batch)
            answers, probabilities, _ = read_prediction(prediction)
            answer = answers[0]
            changed = int((answer != steps[-1].tokens).sum()) if steps else None
            written = _write(self.task, puzzle, answer)
            steps.append(Step(written, answer, float(probabilities[0]), changed, watched.take()))
        return steps

    @torch.no_grad()
    def predictions(self, tokens: Any, puzzle_ids: Any = None, steps: int | None = None) -> list[Prediction]:
        """The raw prediction of each supervision step: logits [B, L, V], halting logits [B], to study a model with.

        `tokens` [B, L] and `puzzle_ids` [B] (default: 0, the blank identity) are tensors, arrays or lists of whole
        numbers; `steps` is as many as in training unless given. The B puzzles are one batch, whatever the slots.
        Raises PuzzleError.
        """
        spec = self.reasoner.spec
        inputs = _whole_numbers("tokens", tokens, 2, spec.vocab_size).to(self.device)
        ids = (
            inputs[:, 0] * 0 if puzzle_ids is None else _whole_numbers("puzzle_ids", puzzle_ids, 1, spec.num_puzzle_ids)
        )
        if ids.shape != inputs.shape[:1]:
            raise PuzzleError(f"there are {len(ids)} puzzle_ids for {len(inputs)} puzzles; give one for each")
        self._check_length(inputs.shape[1])
        batch = Batch.unlabelled(inputs, ids.to(self.device))
        state = self.reasoner.init_state(*inputs.shape)
        found = []
        for _ in range(self._limit(steps)):
            state, prediction, _ = self.model.step(state, batch)
            found.append(prediction)
        return found

    def engine(self) -> Engine:
        """Slots of their own, for those who want to take the steps themselves."""
        return Engine(self.model, slots=self.slots, device=self.device, step_flops=self.step_flops)

    def read(self, puzzle: Json) -> Tokens:
        """The tokens [L] of a puzzle. Raises PuzzleError, in one line, when the task or the model cannot take it."""
        if isinstance(puzzle, PuzzleError):
            raise puzzle
        if isinstance(puzzle, np.ndarray):
            vocab_size = self.reasoner.spec.vocab_size
            whole = puzzle.dtype.kind in "iu"
            if puzzle.ndim != 1 or not whole or not ((puzzle >= 0) & (puzzle < vocab_size)).all():
                raise PuzzleError(f"tokens are an array [L] of whole numbers below {vocab_size}")
            tokens = puzzle.astype(np.int32)
        else:
            tokens = self.task.parse(puzzle)
        self._check_length(len(tokens))
        return tokens

    def _check_length(self, length: int) -> None:
        if not self.reasoner.accepts(length):
            raise PuzzleError(
                f"this model takes puzzles of {self.reasoner.spec.length} positions, not {length}; "
                "train one with attention and rotary positions for any length"
            )

    def _limit(self, max_steps: int | None) -> int:
        return int(Steps(self.trained_steps if max_steps is None else max_steps).limit)

    def _run(
        self, puzzles: Iterable[Json], budget: Budgets, starts: int | Starts | None, held: Callable[[], int]
    ) -> Iterator[tuple[int, Solution | LoopwiseError]]:
        """Put puzzles through an engine of their own; `held` tells how many results the caller has not passed on."""
        engine = self.engine()
        chosen = self.starts(starts)
        budgets = self._budgets(usual_budget(self.model, chosen) if budget is None else budget)
        source, numbers, end = iter(puzzles), count(), object()
        pending: dict[int, Request] = {}
        more = True
        while more or pending:
            while more and engine.hungry and len(pending) + held() < self.slots * WINDOW:
                puzzle = next(source, end)
                if puzzle is NOT_YET or puzzle is end:
                    more = puzzle is NOT_YET
                    break
                index, own = next(numbers), next(budgets)
                try:
                    tokens = self.read(puzzle)
                except PuzzleError as error:
                    yield index, error
                    continue
                write = partial(_write, self.task, puzzle)
                pending[index] = Request(engine, tokens, write, own, chosen, self.checker, key=index)
            for work in engine.step():
                if pending[work.key].ended(work):
                    yield work.key, pending.pop(work.key).result()

    def _budgets(self, budget: BudgetLike | Iterable[BudgetLike]) -> Iterator[Budget]:
        """The budget of each puzzle."""
        if isinstance(budget, str | Budget) or not isinstance(budget, Iterable):
            yield from repeat(as_budget(budget))
        else:
            yield from map(as_budget, budget)
            raise ConfigError("there are more puzzles than budgets; give one for each")

    def _running(self) -> Service:
        """The service of `submit`, started where there is none."""
        with self._lock:
            if self._service is None or self._service.closed:
                self._end_service()
                self._service = Service(self.engine(), self.slots + self.max_waiting)
                # Also when nobody holds the solver any more, and when the program ends.
                self._end_service = weakref.finalize(self, self._service.close)
            return self._service


def _step_flops(model: Model, length: int) -> int:
    return count_flops(model.reasoner, model.gradient, model.halting, length).solving


def _write(task: Task[Any], puzzle: Json, answer: Tokens) -> Json:
    """An answer [L] in the form of the puzzle."""
    return answer if isinstance(puzzle, np.ndarray) else task.format(answer, puzzle)


def _whole_numbers(name: str, values: Any, dims: int, below: int) -> Tensor:
    """`values` as an int64 tensor of so many axes, all from 0 to below `below`. Raises PuzzleError."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PuzzleError(f"{name} cannot be read as an array ({error})") from None
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.dim() != dims or tensor.numel() == 0 or not whole or tensor.min() < 0 or tensor.max() >= below:
        axes = "[B, L]" if dims == 2 else "[B]"
        raise PuzzleError(f"{name} are whole numbers {axes} from 0 to {below - 1}")
    return tensor.to(torch.int64)


def _locate(name: str) -> Path:
    path = Path(name)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub client raises many kinds, network errors among them
        raise CheckpointError(
            f"there is no folder {name}, and it cannot be fetched from the hub ({type(error).__name__})"
        ) from error
