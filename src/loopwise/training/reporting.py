"""What a training run tells: a live panel in a terminal, plain lines elsewhere, a JSONL log, and trackers.

The log (log.jsonl) has one object a line: `{"kind": "train", "step": ...}` every ten steps, or oftener where steps are
slow, and `{"kind": "eval", ...}` for each evaluation on the validation split. TensorBoard, or any other tracker that
accelerate knows, gets the same numbers.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loopwise.errors import StorageError
from loopwise.storage import write_text
from loopwise.training.trainer import StepMetrics
from loopwise.types import Json

__all__ = ["Reporter", "clock"]

LOG_EVERY = 10
"""Optimizer steps between two lines of the log."""
SLOW = 10.0
"""Seconds after which a line is due all the same, where steps are slow."""
PLAIN_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
FINISHED = ("exact_accuracy", "halting_accuracy", "mean_steps")
"""Figures that only exist when a slot has halted since the last line; the last known ones are shown."""


@dataclass
class _Window:
    """Sums since the last line of the log."""

    steps: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: StepMetrics, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        for name, value in metrics._asdict().items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Reporter:
    """Collects the metrics of a run and shows them. Only the main process of several shows anything."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        total_steps: int,
        flops_per_step: float,
        ceiling: float,
        resumed_at: int = 0,
        scored_at: int = 0,
        console: Console | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.flops_per_step = flops_per_step
        self.ceiling = ceiling
        self.console = console or Console(stderr=True, highlight=False)
        self.latest: dict[str, Json] = {}
        self.validation: dict[str, Json] = {}
        self._tracking = True
        self._others: set[threading.Thread] = set()  # threads that are not the tracker's
        self._finished: dict[str, Json] = {}
        self._log = folder / "log.jsonl"
        self._window = _Window()
        self._shown = 0.0
        self._live = Live(console=self.console, auto_refresh=False, transient=False)
        if accelerator.is_main_process:
            _forget_after(self._log, resumed_at, scored_at)

    def __enter__(self) -> Reporter:
        """Start the live panel."""
        self._others = set(threading.enumerate())
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        try:
            self.accelerator.init_trackers("tensorboard")
        except Exception as error:  # each tracker has its own kinds, full disks and lost networks among them
            self._stop_tracking(error)
        if self.accelerator.is_main_process and self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last panel standing."""
        if self._live.is_started:
            self._live.update(self._panel(), refresh=True)
            self._live.stop()
        try:
            self.accelerator.end_training()
        except Exception as error:
            self._stop_tracking(error)
        threading.excepthook = self._hook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """A tracker that writes from a thread of its own may meet a full disk there."""
        if failure.thread in self._others:
            self._hook(failure)
        else:
            self._stop_tracking(failure.exc_value)

    def _stop_tracking(self, error: BaseException | None) -> None:
        if self._tracking:
            self._tracking = False
            self.say(f"the tracker has failed ({error}); the run goes on without it, log.jsonl has everything")

    def train(self, step: int, metrics: StepMetrics, seconds: float) -> None:
        """Take the metrics of an optimizer step that took `seconds`."""
        self._window.add(metrics, seconds)
        due = step % LOG_EVERY == 0 or step == self.total_steps or self._window.seconds > SLOW
        if not self.accelerator.is_main_process or not due:
            return
        self.latest = self._summary(step)
        self._finished |= {k: self.latest[k] for k in FINISHED if self.latest[k] is not None}
        self._window = _Window()
        self._write("train", self.latest)
        self._show()

    def evaluated(self, step: int, scores: dict[str, Json], best: bool) -> None:
        """Take the scores of an evaluation on the validation split."""
        if not self.accelerator.is_main_process:
            return
        last, halted = scores["by_steps"][-1], scores["when_halted"]
        self.validation = {"step": step, **last, "mean_steps": halted["mean_steps"], "best": best}
        self._write("eval", {"step": step, "best": best, **scores})
        self._show(force=True)

    def say(self, message: str) -> None:
        """Print a line above the panel."""
        if self.accelerator.is_main_process:
            self.console.print(message, soft_wrap=True)

    def _summary(self, step: int) -> dict[str, Json]:
        w = self._window
        finished = w.sums["finished"]

        def share(name: str) -> float | None:
            return w.sums[name] / finished if finished else None

        per_second = w.steps / w.seconds
        return {
            "step": step,
            "loss": w.sums["loss"] / w.steps,
            "answer_loss": w.sums["answer_loss"] / w.steps,
            "halting_loss": w.sums["halting_loss"] / w.steps,
            "hint_loss": w.sums["hint_loss"] / w.steps,
            "exact_accuracy": share("exact"),
            "token_accuracy": share("tokens"),
            "halting_accuracy": share("halting_right"),
            "mean_steps": share("steps"),
            "lr": w.sums["lr"] / w.steps,
            "puzzles_per_second": finished / w.seconds * self.accelerator.num_processes,
            "seconds_per_step": w.seconds / w.steps,
            "flops_per_second": per_second * self.flops_per_step,
            "ceiling_share": per_second * self.flops_per_step / self.ceiling,
            "eta_seconds": (self.total_steps - step) / per_second,
        }

    def _write(self, kind: str, values: dict[str, Json]) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self._log} ({error.strerror}); free some space, then --resume"
            ) from error
        if self._tracking:
            numbers = {f"{kind}/{k}": v for k, v in _flat(values) if isinstance(v, int | float) and k != "step"}
            try:
                self.accelerator.log(numbers, step=int(values["step"]))
            except Exception as error:
                self._stop_tracking(error)

    def _show(self, force: bool = False) -> None:
        if self._live.is_started:
            self._live.update(self._panel(), refresh=True)
        elif force or time.monotonic() - self._shown > PLAIN_EVERY:
            self._shown = time.monotonic()
            self.console.print(self._line(), soft_wrap=True)

    def _line(self) -> str:
        parts = [f"{name} {value}" for name, value in self._figures()]
        return "  ".join(parts)

    def _panel(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, value in self._figures():
            table.add_row(f"[dim]{name}[/dim]", f"[bold]{value}[/bold]")
        return table

    def _figures(self) -> list[tuple[str, str]]:
        now, done, seen = self.latest, self._finished, self.validation
        figures = []
        if now:
            figures = [
                ("step", f"{now['step']}/{self.total_steps}"),
                ("loss", f"{now['loss']:.4f}"),
                ("exact", _percent(done.get("exact_accuracy"))),
                (
                    "halting right",
                    f"{_percent(done.get('halting_accuracy'))} after {_number(done.get('mean_steps'))} steps",
                ),
                ("puzzles/s", f"{now['puzzles_per_second']:.1f}"),
                ("GFLOP/s", f"{now['flops_per_second'] / 1e9:.1f} ({_percent(now['ceiling_share'])} of the ceiling)"),
                ("left", clock(now["eta_seconds"])),
            ]
        if seen:
            best = ", the best so far" if seen["best"] else ""
            figures.append(("validation", f"{_percent(seen['exact_accuracy'])} exact at step {seen['step']}{best}"))
        return figures


def clock(seconds: float) -> str:
    """A duration as 1h 02m, 3m 04s or 5s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _flat(values: dict[str, Json], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                flat += _flat(entry, f"{prefix}{entry.get('steps', '')}_steps/")
        else:
            flat.append((prefix + key, value))
    return flat


def _forget_after(log: Path, step: int, scored: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and a last line that was cut off.

    It does the evaluation of its present step again, too, unless that is the last that the saved state knows of.
    """
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] < step or (entry["step"] == step and (entry["kind"] != "eval" or scored == step)):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(log, "".join(kept))
