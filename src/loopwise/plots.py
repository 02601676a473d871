"""Pictures of what a model does; matplotlib, from the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopwise.errors import ConfigError
from loopwise.solving.budgets import HALT_THRESHOLD
from loopwise.solving.solver import Step

__all__ = ["draw_trace"]

FORMATS = (".png", ".svg", ".pdf")
SHORT = 40
"""Up to so many steps a tick for each."""


def draw_trace(steps: Sequence[Step], file: Path, title: str) -> None:
    """Draw one puzzle's trace: the residual of every update, how the answer changed, and the halting probability.

    Raises ConfigError for a format that is not known, or where matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"a plot is one of {', '.join(FORMATS)}, not {file.name!r}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'loopwise[plot]'") from None
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    residuals, changes, halting = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    _draw_residuals(residuals, steps)
    numbers = range(1, len(steps) + 1)
    changes.bar(numbers[1:], [step.changed or 0 for step in steps[1:]], width=0.6, color="tab:orange")
    changes.set_ylabel("positions of the\nanswer changed")
    changes.yaxis.get_major_locator().set_params(integer=True)
    halting.plot(numbers, [step.halt_probability for step in steps], marker="o", color="tab:green")
    halting.axhline(HALT_THRESHOLD, color="tab:gray", linestyle="--", linewidth=1, label=f"halts at {HALT_THRESHOLD}")
    halting.set_ylim(-0.03, 1.03)
    halting.set_ylabel("halting\nprobability")
    halting.set_xlabel("supervision step")
    halting.legend(loc="lower right")
    if len(steps) <= SHORT:
        halting.set_xticks(numbers)
    halting.set_xlim(0, len(steps) + 0.4)
    for axes in (residuals, changes, halting):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _draw_residuals(axes: Any, steps: Sequence[Step]) -> None:
    """A point an update, spread over its step; a colour for each kind of update."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for number, step in enumerate(steps):
        for i, change in enumerate(step.updates, 1):
            xs, ys = points.setdefault(change.update, ([], []))
            xs.append(number + i / len(step.updates))
            ys.append(max(change.residual, 1e-12))  # a logarithmic axis has no zero
    for name, (xs, ys) in points.items():
        axes.plot(xs, ys, marker=".", linewidth=0.8, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("residual of every update\n|new - old| / |new|")
    axes.legend(loc="upper right")
