"""A lane: a fixed number of slots for puzzles of one length, who sits in them, and one step of all of them.

The slot count is fixed and idle slots are computed along, because rounding depends on the batch size and recursion
amplifies it: at equal slots a row gets the same answer, whoever its neighbours are and wherever it sits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loopwise.checkpoint import Model
from loopwise.errors import SolvingError
from loopwise.reasoners.base import Reasoner, State
from loopwise.solving.budgets import Budget, Progress
from loopwise.solving.guessing import Guesses
from loopwise.solving.noise import Noise, add_noise
from loopwise.types import Batch, Prediction, Tokens

__all__ = ["CANCELLED", "Lane", "Pass", "computed_rows", "read_prediction"]

CANCELLED = "cancelled"


@dataclass(eq=False, slots=True, kw_only=True)
class Pass:
    """One pass of a puzzle through the slots: what is asked, how far it is, and what came of it."""

    tokens: Tokens
    """The puzzle [L], as the network sees it but for a guess."""
    budget: Budget
    progress: Progress
    arrival: float
    """When it came, by the engine's clock."""
    number: int
    """Place in the order of submission."""
    noise: Noise | None
    guesses: Guesses | None
    key: Any
    """What the submitter knows it by."""
    needs_residual: bool
    has_deadline: bool
    step_flops: float
    """What a step costs, where the budget asks."""
    watch: Callable[[Progress, Tensor], None] | None = None
    """Is shown every step: how far the pass is, and the logits [L, V] of its answer. Must keep neither; is shown no
    more where it raises.
    """
    most_steps: float = math.inf
    """It is cancelled after so many steps, where its budget has not stopped it until then."""
    slot: int | None = None
    """Where it is; None while it waits and when it has ended."""
    stopped_by: str = ""
    """What ended it: the name of the budget, `error` or `cancelled`; empty while it is on its way."""
    error: SolvingError | None = None
    """Why it has no answer."""


class Lane:
    """Slots for puzzles of `length` positions. All is computed under inference_mode."""

    def __init__(self, model: Model, slots: int, length: int, device: torch.device) -> None:
        self.model = model
        self.passes: list[Pass | None] = [None] * slots
        self.active = 0
        rows = computed_rows(slots, model.reasoner)
        inputs = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.batch = Batch.unlabelled(inputs)
        self.state: State = model.reasoner.init_state(rows, length)
        self.answers: Tokens = np.full((rows, length), -1, dtype=np.int32)
        self.unchanged = np.zeros(rows, dtype=np.int64)

    def admit(self, passes: Sequence[Pass]) -> None:
        """Put passes into free slots, of which there are enough."""
        if not passes:
            return
        free = [slot for slot, owner in enumerate(self.passes) if owner is None][: len(passes)]
        for slot, work in zip(free, passes, strict=True):
            self.passes[slot], work.slot = work, slot
        self.active += len(passes)
        self._reset(free, np.stack([work.tokens for work in passes]), [work.noise for work in passes])

    def release(self, work: Pass) -> None:
        """Free the slot of a pass."""
        assert work.slot is not None
        self.passes[work.slot], work.slot = None, None
        self.active -= 1

    def advance(self, clock: Callable[[], float]) -> list[Pass]:
        """One supervision step of every slot. Returns the passes that it ended; they have left their slots."""
        seated = [(slot, work) for slot, work in enumerate(self.passes) if work]
        pushed = [(slot, work.noise, work.progress.steps + 1) for slot, work in seated if work.noise]
        before = add_noise(self.state, pushed)
        self.state, prediction, _ = self.model.step(before, self.batch)
        answers, probabilities, finite = read_prediction(prediction)
        self.unchanged = np.where((answers == self.answers).all(1), self.unchanged + 1, 0)
        self.answers = answers
        residuals = _residuals(self.state, before) if any(work.needs_residual for _, work in seated) else None
        now = clock()
        ended = []
        for slot, work in seated:
            progress = work.progress
            progress.advance(answers[slot], float(probabilities[slot]), int(self.unchanged[slot]), now - work.arrival)
            progress.flops = progress.steps * work.step_flops
            if residuals is not None:
                progress.residual = float(residuals[slot])
            if work.watch is not None and finite[slot]:
                _show(work, prediction.logits[slot])
            if not finite[slot]:
                work.error = SolvingError(
                    f"the network's numbers are not finite after step {progress.steps}; "
                    "the weights are damaged, or there is too much noise"
                )
                work.stopped_by = "error"
            else:
                work.stopped_by = work.budget.stop(progress)
                if not work.stopped_by and progress.steps >= work.most_steps:
                    work.stopped_by = CANCELLED
            if work.stopped_by:
                progress.answer = answers[slot].copy()  # what is kept shall not keep the answers of all slots
                self.release(work)
                ended.append(work)
        self._clear([slot for slot, _ in seated if not finite[slot]])
        self._guess([(slot, work) for slot, work in seated if not work.stopped_by], prediction.logits)
        return ended

    def _guess(self, seated: Sequence[tuple[int, Pass]], logits: Tensor) -> None:
        """Write a guess into the puzzles of those passes whose turn it is, by the logits [B, L, V] of all slots."""
        # An answer that the rules accept is kept.
        due = [(slot, work) for slot, work in seated if work.guesses and _due(work.guesses, work.progress)]
        if not due:
            return
        rows = torch.tensor([slot for slot, _ in due], device=logits.device)
        seen = []
        for scores, (_, work) in zip(logits[rows].float().cpu().numpy(), due, strict=True):
            assert work.guesses
            guessed = work.guesses.guess(work.tokens, scores, self.model.reasoner.spec, work.progress.steps)
            work.progress.seen = guessed
            seen.append(guessed)
        self._put(rows, np.stack(seen))

    def _clear(self, slots: list[int]) -> None:
        """Put an empty puzzle into idle slots: a search would go on for a row that is not finite."""
        if slots:
            self._reset(slots, np.zeros((len(slots), self.answers.shape[1]), np.int32), [None] * len(slots))

    def _reset(self, slots: list[int], tokens: Tokens, noises: Sequence[Noise | None]) -> None:
        """Put puzzles [n, L] with fresh states into n slots."""
        device = self.batch.inputs.device
        rows = torch.tensor(slots, device=device)
        fresh = self.model.reasoner.init_state(*tokens.shape)
        fresh = add_noise(fresh, [(i, noise, 0) for i, noise in enumerate(noises) if noise])
        # Copies, since a reasoner may hand out a state that shares memory with other tensors.
        self.state = type(fresh)(*(old.index_copy(0, rows, new) for old, new in zip(self.state, fresh, strict=True)))
        self._put(rows, tokens)
        self.answers[slots] = -1  # no answer, so that the first one counts as a change

    def _put(self, rows: Tensor, tokens: Tokens) -> None:
        """Let the network see puzzles [n, L] in n slots."""
        inputs = torch.as_tensor(tokens, dtype=torch.int64).to(rows.device)
        self.batch = self.batch._replace(inputs=self.batch.inputs.index_copy(0, rows, inputs))


def _due(guesses: Guesses, progress: Progress) -> bool:
    return progress.steps % guesses.every == 0 and progress.verified is not True


def _show(work: Pass, logits: Tensor) -> None:
    """Show a step to who watches. Who fails is shown no more: it may be a user's task, and others are in the slots."""
    assert work.watch is not None
    try:
        work.watch(work.progress, logits)
    except Exception as error:
        work.watch = None
        logging.getLogger("loopwise").warning("a puzzle is no longer watched: %s", error or type(error).__name__)


def computed_rows(slots: int, reasoner: Reasoner[Any]) -> int:
    """How many rows are computed for so many slots, so that no row is rounded by its place."""
    multiple = reasoner.round_rows
    return slots if slots == 1 else -(-slots // multiple) * multiple


def read_prediction(prediction: Prediction) -> tuple[Tokens, npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The proposed answers [B, L], the halting probabilities [B] and which rows are finite [B], as arrays."""
    answers = prediction.logits.argmax(-1).cpu().numpy().astype(np.int32)
    finite = (prediction.logits.sum((1, 2), dtype=torch.float32) + prediction.halt_logits).isfinite()
    return answers, torch.sigmoid(prediction.halt_logits).cpu().numpy(), finite.cpu().numpy()


def _residuals(new: State, old: State) -> npt.NDArray[Any]:
    """|new - old| / |new| of each row over all tensors of the state: [B]."""
    pairs = [(a.float(), b.float()) for a, b in zip(new, old, strict=True) if a.is_floating_point()]
    change = torch.stack([(a - b).reshape(len(a), -1).norm(dim=1) for a, b in pairs]).norm(dim=0)
    size = torch.stack([a.reshape(len(a), -1).norm(dim=1) for a, _ in pairs]).norm(dim=0)
    residuals: npt.NDArray[Any] = (change / (size + torch.finfo(size.dtype).tiny)).cpu().numpy()
    return residuals
