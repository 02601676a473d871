"""Scores with their protocol: exact accuracy after every step or under a budget, with 95 % intervals.

Exact: every asked position is as the label has it. Verified: the task's rules accept the answer, which where a puzzle
has several right ones may be another than the label. "When halted" is the answer that a user gets who lets the model
stop by itself, at the solver's own threshold, within the same number of steps; a search (`Reasoner.search`) stops when
the rules accept its answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from loopwise.checkpoint import Model
from loopwise.errors import ConfigError, LoopwiseError
from loopwise.solving.budgets import HALT_THRESHOLD, Budget, Steps, Verified
from loopwise.solving.checking import Checker
from loopwise.solving.lane import computed_rows
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.types import IGNORE_LABEL, Batch, Examples, Json, Tokens

__all__ = [
    "Answers",
    "Curve",
    "Outcome",
    "Scores",
    "default_steps",
    "evaluate",
    "evaluate_answers",
    "evaluate_curve",
    "wilson",
]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Counts and accuracies of an evaluation."""

    puzzles: int
    steps: tuple[int, ...]
    """The numbers of steps that the next three are told for."""
    exact: tuple[int, ...]
    """Puzzles solved exactly after so many steps."""
    tokens: tuple[float, ...]
    """Mean share of right positions after so many steps."""
    verified: tuple[int, ...] | None
    """Answers that the rules accept after so many steps; None where the rules could decide none."""
    halted_exact: int
    """Puzzles solved exactly by the answer at which the model stopped by itself, within the last number of steps."""
    halted_verified: int | None
    """Those of these answers that the rules accept; None where the rules could decide none."""
    halted_steps: float
    """Mean steps at which it stopped."""

    @property
    def exact_accuracy(self) -> float:
        """Exact accuracy after the largest number of steps."""
        return self.exact[-1] / self.puzzles

    @property
    def token_accuracy(self) -> float:
        """Share of right positions after the largest number of steps."""
        return self.tokens[-1]

    def to_json(self) -> dict[str, Json]:
        """All numbers, with the 95 % intervals of the exact accuracies."""
        return {
            "puzzles": self.puzzles,
            "by_steps": [
                {
                    "steps": steps,
                    **_shares(self.exact[i], None if self.verified is None else self.verified[i], self.puzzles),
                    "token_accuracy": self.tokens[i],
                }
                for i, steps in enumerate(self.steps)
            ],
            "when_halted": {
                **_shares(self.halted_exact, self.halted_verified, self.puzzles),
                "mean_steps": self.halted_steps,
            },
        }


class Outcome(NamedTuple):
    """What came of one puzzle that was solved under a budget."""

    exact: bool
    verified: bool | None  # what the rules say; None where they decide nothing
    steps: int  # of all starts together
    seconds: float | None  # from the puzzle's arrival at the slots; None where there is no answer
    stopped_by: str  # `error` where there is no answer
    tokens: Tokens | None  # the answer [L]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Counts of what came of puzzles that were solved under a budget."""

    puzzles: int
    budget: str
    starts: int
    """Passes that each puzzle got; with one it is the single pass, if it does not guess."""
    guess: int
    """Steps after which they guess; 0: never."""
    exact: int
    """Puzzles whose answer is exactly right."""
    verified: int | None
    """Puzzles whose answer the rules accept; None where the rules could decide none."""
    steps: float
    """Mean steps of a puzzle, of all its starts together."""
    seconds: float | None
    """Median seconds from a puzzle's arrival at the slots to its answer; None where there is no answer."""
    stopped_by: dict[str, int]
    """What stopped the answers, `error` for those that there are none of."""

    def to_json(self) -> dict[str, Json]:
        """All numbers, with 95 % intervals."""
        return {
            "budget": self.budget,
            "starts": self.starts,
            "guess": self.guess,
            **_shares(self.exact, self.verified, self.puzzles),
            "mean_steps": self.steps,
            "median_seconds": self.seconds,
            "stopped_by": self.stopped_by,
        }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy against steps and starts."""

    trained_steps: int
    flops_per_step: int
    fixed: Scores
    """The single pass after fixed numbers of steps."""
    until_verified: tuple[Answers, ...]
    """The single pass with as many steps at most, stopped when the rules accept; empty where these decide nothing."""
    starts: tuple[Answers, ...]
    """Numbers of starts under one budget; the first is the single pass."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's method (1927), which stays sensible near 0 and 1."""
    if trials == 0:
        return 0.0, 1.0
    z, share = 1.959963984540054, successes / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = (middle - spread) / scale if successes > 0 else 0.0  # exact at the ends, where rounding is not
    high = (middle + spread) / scale if successes < trials else 1.0
    return low, high


def _shares(exact: int, verified: int | None, puzzles: int) -> dict[str, Json]:
    """The shares of exact and of verified answers, with 95 % intervals."""
    return {
        "exact_accuracy": exact / puzzles,
        "interval_95": list(wilson(exact, puzzles)),
        "verified": None if verified is None else verified / puzzles,
        "verified_interval_95": None if verified is None else list(wilson(verified, puzzles)),
    }


def default_steps(limit: int) -> tuple[int, ...]:
    """The powers of two below the number of steps in training, and that number."""
    return (*(2**k for k in range(limit.bit_length()) if 2**k < limit), limit)


def evaluate(model: Model, examples: Examples, steps: Sequence[int] | None = None, slots: int = 256) -> Scores:
    """Run every example for the largest of `steps` (default: `default_steps`) and score the answer after each of them.

    The labels are not shown to the model. Raises ConfigError when there is nothing to evaluate.
    """
    wanted = tuple(sorted(set(steps or default_steps(int(model.halting.config.max_steps)))))
    if len(examples.inputs) == 0:
        raise ConfigError("there is nothing to evaluate: the split is empty; choose another with --split")
    if wanted[0] < 1:
        raise ConfigError(f"numbers of steps must be at least 1, not {wanted[0]}")
    if not model.reasoner.accepts(examples.inputs.shape[1]):
        raise ConfigError(
            f"this model takes puzzles of {model.reasoner.spec.length} positions, not {examples.inputs.shape[1]}; "
            "train one with attention and rotary positions for any length"
        )
    slots = min(slots, len(examples.inputs))
    checker = Checker(model.task)
    parts = [
        _evaluate_rows(model, checker, examples.rows(slice(i, i + slots)), wanted, slots)
        for i in range(0, len(examples.inputs), slots)
    ]
    columns = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}
    decided = bool(columns["decided"].any())
    return Scores(
        puzzles=len(examples.inputs),
        steps=wanted,
        exact=tuple(int(n) for n in columns["exact"].sum(-1)),
        tokens=tuple(float(n) for n in columns["tokens"].mean(-1)),
        verified=tuple(int(n) for n in columns["verified"].sum(-1)) if decided else None,
        halted_exact=int(columns["halted_exact"].sum()),
        halted_verified=int(columns["halted_verified"].sum()) if decided else None,
        halted_steps=float(columns["halted_steps"].mean()),
    )


def evaluate_answers(
    solver: Solver,
    examples: Examples,
    budget: Budget,
    starts: Starts,
    tell: Callable[[Outcome], object] = lambda outcome: None,
) -> Answers:
    """Solve every example as a user would, and score the answers. `tell` is told of each, in order."""
    outcomes: list[Outcome] = []
    results = solver.stream(_puzzles(examples), budget, starts=starts)
    for labels, result in zip(examples.labels, results, strict=True):
        if isinstance(result, LoopwiseError):
            outcome = Outcome(False, None, 0, None, "error", None)
        else:
            exact = bool(((result.tokens == labels) | (labels == IGNORE_LABEL)).all())
            outcome = Outcome(
                exact, result.verified, result.total_steps, result.seconds, result.stopped_by, result.tokens
            )
        tell(outcome)
        outcomes.append(outcome._replace(tokens=None))  # so that memory does not grow by the answers
    if not outcomes:
        raise ConfigError("there is nothing to evaluate: the split is empty; choose another with --split")
    exacts, verdicts, steps, seconds, stopped_by, _ = zip(*outcomes, strict=True)
    return Answers(
        puzzles=len(outcomes),
        budget=str(budget),
        starts=starts.count,
        guess=starts.guess,
        exact=sum(exacts),
        verified=verdicts.count(True) if set(verdicts) - {None} else None,
        steps=sum(steps) / len(steps),
        seconds=median(known) if (known := [each for each in seconds if each is not None]) else None,
        stopped_by=dict(Counter(stopped_by).most_common()),
    )


def evaluate_curve(
    solver: Solver,
    examples: Examples,
    steps: Sequence[int],
    starts: Sequence[Starts],
    budget: Budget,
    tell: Callable[[Outcome], object] = lambda outcome: None,
) -> Curve:
    """Score a solver after each of `steps`, and with each of `starts` under the budget. `tell` as above."""
    fixed = evaluate(solver.model, examples, steps, solver.slots)
    stopping = [Verified() | Steps(limit) for limit in fixed.steps] if fixed.verified is not None else []
    single = Starts()
    return Curve(
        trained_steps=solver.trained_steps,
        flops_per_step=solver.step_flops(examples.inputs.shape[1]),
        fixed=fixed,
        until_verified=tuple(evaluate_answers(solver, examples, stop, single, tell) for stop in stopping),
        starts=tuple(evaluate_answers(solver, examples, budget, each, tell) for each in starts),
    )


def _puzzles(examples: Examples) -> Iterator[Tokens]:
    return (np.array(row, np.int32) for row in examples.inputs)


@torch.inference_mode()
def _evaluate_rows(
    model: Model, checker: Checker, rows: Examples, wanted: tuple[int, ...], slots: int
) -> dict[str, Any]:
    """Columns [..., n] for the n puzzles of a batch; the batch is padded to the rows that a solver computes."""
    count = len(rows.inputs)
    device = next(model.reasoner.parameters()).device
    rows_computed = computed_rows(slots, model.reasoner)
    padded = [np.concatenate([column, np.repeat(column[:1], rows_computed - count, axis=0)]) for column in rows]
    inputs, _, puzzle_ids = (torch.as_tensor(np.array(c), dtype=torch.int64, device=device) for c in padded)
    batch = Batch.unlabelled(inputs, puzzle_ids)
    labels = np.asarray(rows.labels)
    asked = labels != IGNORE_LABEL
    state = model.reasoner.init_state(*inputs.shape)
    columns: dict[str, list[Any]] = {"exact": [], "tokens": [], "verified": [], "decided": []}
    stopped = np.zeros(count, dtype=np.int64)  # at which step, 0: not yet
    stopped_exact, stopped_verified = np.zeros((2, count), dtype=bool)
    accepted, decided = np.zeros((2, count), dtype=bool)
    answers, search = labels, model.reasoner.search
    for step in range(1, wanted[-1] + 1):
        state, prediction, _ = model.step(state, batch)
        proposed = prediction.logits[:count].argmax(-1).cpu().numpy().astype(np.int32)
        over = accepted & search  # a search ends when the rules accept its answer
        answers = np.where(over[:, None], answers, proposed)
        right = (answers == labels) | ~asked
        exact = right.all(-1)
        confident = (torch.sigmoid(prediction.halt_logits) > HALT_THRESHOLD)[:count].cpu().numpy()
        stops = (confident & (not search) | (step == wanted[-1])) & (stopped == 0)
        for i in np.flatnonzero(~over) if search or step in wanted else np.flatnonzero(stops):
            verdict = checker(rows.inputs[i], answers[i])
            accepted[i], decided[i] = verdict is True, verdict is not None
        if search:
            stops |= accepted & (stopped == 0)
        stopped[stops], stopped_exact[stops], stopped_verified[stops] = step, exact[stops], accepted[stops]
        if step in wanted:
            columns["exact"].append(exact)
            columns["tokens"].append((right & asked).sum(-1) / np.maximum(asked.sum(-1), 1))
            columns["verified"].append(accepted.copy())
            columns["decided"].append(decided.copy())
    return {key: np.array(value) for key, value in columns.items()} | {
        "halted_exact": stopped_exact,
        "halted_verified": stopped_verified,
        "halted_steps": stopped,
    }
