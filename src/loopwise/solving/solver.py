"""Solving: the same loop as training, without a loss.

A fixed number of slots; one step advances all of them; a puzzle that is finished leaves at once and a waiting one takes
its slot. The slot count is fixed and idle slots are computed along, because rounding depends on the batch size and
recursion amplifies it: at equal slots a puzzle gets the same answer, whoever its neighbours are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loopwise.checkpoint import CONFIG, WEIGHTS, Model, load_model, save_weights, write_config
from loopwise.errors import CheckpointError, ConfigError, DataError, PuzzleError
from loopwise.reasoners.base import GradientPolicy
from loopwise.reasoners.carry import Carry, empty_carry, refill
from loopwise.runtime import resolve_device
from loopwise.solving.watching import Change, Watched
from loopwise.tasks.base import Task
from loopwise.types import IGNORE_LABEL, Batch, Json, Prediction, Tokens

__all__ = ["HALT_THRESHOLD", "Solution", "Solver", "Step", "verdict"]

HALT_THRESHOLD = 0.95
"""The halting probability above which a puzzle counts as solved.

Training halts at one half. For an answer that is too early: on 6x6 Sudoku, 0.5 gave 89.0 % in 2.9 steps, 0.95 gave
97.6 % in 3.5 steps, as much as all 16 (500 validation puzzles; docs/log.md).
"""

WINDOW = 16
"""How many slot-fulls of a stream are read ahead; bounds the memory, and the wait for the first answer."""


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
    """Supervision steps spent."""
    stopped_by: Literal["halted", "steps"]
    """Why it stopped: the model was satisfied, or the budget was spent."""
    halt_probability: float
    """The model's own belief, after the last step, that the answer is right."""
    seconds: float
    """From the puzzle's entry into a slot to its answer."""


class Step(NamedTuple):
    """What one supervision step did, and the answer that it proposes."""

    answer: Json  # in the form of the puzzle
    tokens: Tokens  # [L]
    halt_probability: float
    changed: int | None  # positions where it differs from the answer proposed before; None for the first
    updates: tuple[Change, ...]  # the residual of every update of the state, in order


class Solver:
    """A trained model, ready to solve. `loopwise.load(path)` makes one."""

    def __init__(self, model: Model, *, slots: int = 64, device: str = "auto") -> None:
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, not {slots}")
        self.model = model
        self.task = model.task
        self.slots = slots
        self.device = resolve_device(device)
        self.reasoner = model.reasoner.to(self.device).eval()
        self.trained_steps = int(model.halting.config.max_steps)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, slots: int = 64, device: str = "auto", trust: bool = False) -> Solver:
        """Load a checkpoint folder, or a model repository of the Hugging Face hub by `owner/name`.

        With `trust`, code outside loopwise that the checkpoint names (a task class, a table's checker) is imported.
        """
        model, _ = load_model(_locate(str(name)), trust=trust)
        return cls(model, slots=slots, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder that `from_pretrained` reads."""
        write_config(Path(folder), self.model, {})
        save_weights(Path(folder), self.reasoner, {})

    def solve(
        self,
        puzzles: Sequence[Json],
        *,
        max_steps: int | None = None,
        until_halted: bool = True,
        halt_threshold: float = HALT_THRESHOLD,
    ) -> list[Solution]:
        """Solve puzzles; the answers come in their order.

        A puzzle is what the task reads, a string, a list or a grid, or its tokens as an int32 array [L].

        Raises PuzzleError, naming the puzzle, when one of them cannot be read; `stream` goes on instead.
        """
        solutions = []
        results = self.stream(puzzles, max_steps=max_steps, until_halted=until_halted, halt_threshold=halt_threshold)
        for i, result in enumerate(results):
            if isinstance(result, PuzzleError):
                raise PuzzleError(f"puzzle {i + 1}: {result}" if len(puzzles) > 1 else str(result))
            solutions.append(result)
        return solutions

    def stream(
        self,
        puzzles: Iterable[Json],
        *,
        max_steps: int | None = None,
        until_halted: bool = True,
        halt_threshold: float = HALT_THRESHOLD,
    ) -> Iterator[Solution | PuzzleError]:
        """Solve a stream of any length in constant memory, in order. A puzzle that cannot be read gives its error.

        A PuzzleError in the place of a puzzle comes out in that place.

        `max_steps` is the most supervision steps a puzzle may take (default: as many as in training; more is allowed).
        Unless `until_halted` is off, a puzzle stops before when its halting probability is above `halt_threshold`.
        """
        limit = self._limit(max_steps)
        if not 0 <= halt_threshold <= 1:
            raise ConfigError(f"the halting threshold is a probability, not {halt_threshold}")
        threshold = halt_threshold if until_halted else 1.0  # which no probability exceeds
        source = iter(puzzles)
        # A single slot works on a puzzle at a time, for programs that wait for each answer.
        size = self.slots * WINDOW if self.slots > 1 else 1
        while window := list(islice(source, size)):
            yield from self._solve_window(window, limit, threshold)

    def trace(self, puzzle: Json, *, max_steps: int | None = None) -> list[Step]:
        """What each of `max_steps` steps does, not stopping when the model would: the proposed answer and how many of
        its positions changed, the halting probability, and the residual of every update of the state.
        """
        tokens = self.read(puzzle)
        carry = self._load([tokens] * self.slots)  # all alike, so that no search or ponder goes on for another's sake
        watched = Watched(self.model.gradient)
        steps: list[Step] = []
        for _ in range(self._limit(max_steps)):
            carry, prediction = self._advance(carry, watched)
            answers, probabilities = _read(prediction)
            answer = answers[0]
            changed = int((answer != steps[-1].tokens).sum()) if steps else None
            written = self._write(answer, puzzle)
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
        batch = Batch(inputs, torch.full_like(inputs, IGNORE_LABEL), ids.to(self.device))
        state = self.reasoner.init_state(*inputs.shape)
        found = []
        for _ in range(self._limit(steps)):
            state, prediction, _ = self.model.step(state, batch)
            found.append(prediction)
        return found

    def read(self, puzzle: Json) -> Tokens:
        """The tokens [L] of a puzzle. Raises PuzzleError, in one line, when the task or the model cannot take it."""
        if isinstance(puzzle, PuzzleError):
            raise puzzle
        if isinstance(puzzle, np.ndarray):
            tokens = np.array(puzzle, dtype=np.int32)
            if tokens.ndim != 1 or not ((tokens >= 0) & (tokens < self.task.spec.vocab_size)).all():
                raise PuzzleError(f"tokens are an array [L] of whole numbers below {self.task.spec.vocab_size}")
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
        limit = self.trained_steps if max_steps is None else max_steps
        if limit < 1:
            raise ConfigError(f"the number of steps must be at least 1, not {limit}")
        return limit

    def _write(self, tokens: Tokens, puzzle: Json) -> Json:
        return tokens if isinstance(puzzle, np.ndarray) else self.task.format(tokens, puzzle)

    def _solve_window(self, window: list[Json], limit: int, threshold: float) -> Iterator[Solution | PuzzleError]:
        """Read the puzzles, put those of equal length through the slots together, and return them in order."""
        results: dict[int, Solution | PuzzleError] = {}
        by_length: dict[int, list[tuple[int, Tokens]]] = {}
        for i, puzzle in enumerate(window):
            try:
                tokens = self.read(puzzle)
                by_length.setdefault(len(tokens), []).append((i, tokens))
            except PuzzleError as error:
                results[i] = error
        for group in by_length.values():
            for i, solution in self._run(group, limit, threshold):
                results[i] = replace(solution, answer=self._write(solution.tokens, window[i]))
        yield from (results[i] for i in range(len(window)))

    def _run(self, puzzles: list[tuple[int, Tokens]], limit: int, threshold: float) -> Iterator[tuple[int, Solution]]:
        """Put puzzles of one length through the slots; they come out as they finish."""
        waiting = deque(puzzles)
        owners: list[tuple[int, Tokens, float] | None] = [None] * self.slots
        carry = self._load([puzzles[0][1]])
        while waiting or any(owners):
            carry = self._admit(carry, owners, waiting)
            carry, prediction = self._advance(carry)
            answers, probabilities = _read(prediction)
            steps = carry.steps.tolist()
            for slot, owner in enumerate(owners):
                satisfied = bool(probabilities[slot] > threshold)
                if owner is None or not (satisfied or steps[slot] >= limit):
                    continue
                index, tokens, start = owner
                owners[slot] = None
                yield (
                    index,
                    Solution(
                        answer=None,
                        puzzle=tokens,
                        tokens=answers[slot],
                        verified=verdict(self.task, tokens, answers[slot]),
                        steps=steps[slot],
                        stopped_by="halted" if satisfied else "steps",
                        halt_probability=float(probabilities[slot]),
                        seconds=time.perf_counter() - start,
                    ),
                )

    def _admit(
        self, carry: Carry, owners: list[tuple[int, Tokens, float] | None], waiting: deque[tuple[int, Tokens]]
    ) -> Carry:
        """Give each free slot a waiting puzzle."""
        fresh = torch.zeros(self.slots, dtype=torch.bool)
        rows = carry.batch.inputs.cpu().clone()
        for slot, owner in enumerate(owners):
            if owner is None and waiting:
                index, tokens = waiting.popleft()
                owners[slot] = (index, tokens, time.perf_counter())
                rows[slot] = torch.as_tensor(tokens, dtype=torch.int64)
                fresh[slot] = True
        if not fresh.any():
            return carry
        return refill(self.reasoner, carry, self._batch(rows), fresh.to(self.device))

    def _load(self, puzzles: list[Tokens]) -> Carry:
        """Slots of one length that hold the given puzzles; the others are idle."""
        rows = torch.zeros(self.slots, len(puzzles[0]), dtype=torch.int64)
        for slot, tokens in enumerate(puzzles):
            rows[slot] = torch.as_tensor(tokens, dtype=torch.int64)
        batch = self._batch(rows)
        return refill(self.reasoner, empty_carry(self.reasoner, batch), batch, torch.ones_like(batch.puzzle_ids) > 0)

    def _batch(self, rows: Tensor) -> Batch:
        inputs = rows.to(self.device)
        return Batch(inputs, torch.full_like(inputs, IGNORE_LABEL), torch.zeros_like(inputs[:, 0]))

    @torch.inference_mode()
    def _advance(self, carry: Carry, gradient: GradientPolicy[Any] | None = None) -> tuple[Carry, Prediction]:
        model = self.model if gradient is None else replace(self.model, gradient=gradient)
        state, prediction, _ = model.step(carry.state, carry.batch)
        return Carry(state, carry.steps + 1, carry.halted, carry.batch), prediction


def verdict(task: Task[Any], puzzle: Tokens, answer: Tokens) -> bool | None:
    """What the task's rules say of an answer [L]; None, with a warning, where a checker of the user's fails."""
    try:
        return task.verify(puzzle, answer)
    except DataError as error:
        logging.getLogger("loopwise").warning("%s; counted as undecided", error)
        return None


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


def _read(prediction: Prediction) -> tuple[Tokens, Any]:
    """The proposed answers [B, L] and the halting probabilities [B] of a prediction, as arrays."""
    answers = prediction.logits.argmax(-1).cpu().numpy().astype(np.int32)
    return answers, torch.sigmoid(prediction.halt_logits).cpu().numpy()


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
