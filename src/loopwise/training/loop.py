"""The training loop around the trainer: when to evaluate, save and stop.

It knows nothing of files or scores: what it needs of those it receives as hooks.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch

from loopwise.reasoners.base import Reasoner
from loopwise.training.reporting import Reporter
from loopwise.training.trainer import Trainer

__all__ = ["Hooks", "Progress", "StopSignals", "run"]

LONG = 10.0
"""Seconds of training that are worth a save before an evaluation, which may take as long again."""

Reason = Literal["finished", "target reached", "time limit", "interrupted"]


@dataclass
class Progress:
    """What a run has reached; part of the training state."""

    best: float = -1.0
    """Best exact accuracy on the validation split."""
    best_step: int = 0
    scored_step: int = 0
    """When the weights were last scored."""
    seconds: float = 0.0
    """Time spent training, over all the parts of a resumed run."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop needs of the world."""

    evaluate: Callable[[Reasoner[Any]], dict[str, Any]]
    """Scores of the averaged weights on the validation split, as `Scores.to_json` gives them."""
    keep_best: Callable[[dict[str, Any]], None]
    """The scores are the best so far: keep the averaged weights as the model."""
    save: Callable[[dict[str, Any] | None], None]
    """Save the training state; with scores, where it follows an evaluation, the last weights as a model too."""


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a flag, so that a step is never cut in two; a second one has its way."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Listen, where this is the main thread (elsewhere Python allows no handlers)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(number, self._before[number])


def run(
    trainer: Trainer,
    progress: Progress,
    hooks: Hooks,
    reporter: Reporter,
    signals: StopSignals,
    time_limit: float | None,
) -> Reason:
    """Train until the steps are done, the target is reached, the time is up or a signal comes; save, and say why."""
    config = trainer.config
    clock = _Clock(progress)
    evaluated = progress.scored_step == trainer.step
    reason: Reason = "finished"
    if _due(trainer) and not evaluated:  # a kill came before the scores
        evaluated = True
        exact = _evaluate(trainer, progress, hooks, reporter, clock)
        if any(_agree(trainer, (exact >= config.stop_at,))):
            return "target reached"
    while trainer.step < config.steps:
        begin = time.monotonic()
        metrics = trainer.train_step()
        reporter.train(trainer.step, metrics, time.monotonic() - begin)
        clock.tick()
        evaluated = _due(trainer)
        reached = False
        if evaluated:
            if clock.since_save > LONG:  # a signal may come while the scores are made, and a kill after it
                hooks.save(None)
            reached = _evaluate(trainer, progress, hooks, reporter, clock) >= config.stop_at
        elapsed = clock.tick()
        late = time_limit is not None and elapsed >= time_limit
        due = clock.since_save >= config.save_every
        reached, interrupted, late, due = _agree(trainer, (reached, signals.received, late, due))
        if reached or interrupted or late:
            reason = "target reached" if reached else "interrupted" if interrupted else "time limit"
            break
        if due and not evaluated:
            hooks.save(None)
        if due or evaluated:
            clock.saved()
    # A signal asks to leave at once; a time limit leaves time for the scores.
    if not evaluated and reason == "time limit":
        _evaluate(trainer, progress, hooks, reporter, clock)
    elif not evaluated:
        hooks.save(None)
    return reason


class _Clock:
    """Keeps the time of a run that may be one of several parts."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.before = progress.seconds
        self.start = self.last_save = time.monotonic()

    def tick(self) -> float:
        """Seconds since this part started; brings the progress up to date."""
        elapsed = time.monotonic() - self.start
        self.progress.seconds = self.before + elapsed
        return elapsed

    @property
    def since_save(self) -> float:
        return time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()


def _due(trainer: Trainer) -> bool:
    """Whether the weights are to be scored after this step."""
    return trainer.step > 0 and (trainer.step % trainer.config.eval_every == 0 or trainer.step == trainer.config.steps)


def _evaluate(trainer: Trainer, progress: Progress, hooks: Hooks, reporter: Reporter, clock: _Clock) -> float:
    """Score the averaged weights; keep them if they are the best; save. Returns the exact accuracy."""
    scores = hooks.evaluate(trainer.ema.reasoner)
    clock.tick()
    progress.scored_step = trainer.step
    exact = float(scores["by_steps"][-1]["exact_accuracy"])
    best = exact >= progress.best  # of equals the later, which has seen more
    if best:
        progress.best, progress.best_step = exact, trainer.step
        hooks.keep_best(scores)
    reporter.evaluated(trainer.step, scores, best)
    hooks.save(scores)
    return exact


def _agree(trainer: Trainer, flags: tuple[bool, ...]) -> tuple[bool, ...]:
    """What any process of several wants, all do."""
    if trainer.accelerator.num_processes == 1:
        return flags
    wishes = torch.tensor([float(f) for f in flags], device=trainer.accelerator.device)
    return tuple(bool(w) for w in trainer.accelerator.reduce(wishes).tolist())
