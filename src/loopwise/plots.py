"""Pictures of what a model does; matplotlib, from the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluation import Answers, Curve, wilson
from loopwise.solving.budgets import HALT_THRESHOLD
from loopwise.solving.solver import Step

__all__ = ["draw_curve", "draw_trace", "require_matplotlib"]

FORMATS = (".png", ".svg", ".pdf")
SHORT = 40
"""Up to so many steps a tick for each."""


def draw_trace(steps: Sequence[Step], file: Path, title: str) -> None:
    """Draw one puzzle's trace: the residual of every update, how the answer changed, and the halting probability.

    Raises ConfigError for a format that is not known, or where matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"a plot is one of {', '.join(FORMATS)}, not {file.name!r}")
    figure = _figure(9, 8)
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
    _save(figure, title, file)


def draw_curve(curve: Curve, file: Path, title: str) -> None:
    """Draw accuracy against steps, starts and FLOPs, with 95 % intervals. Raises ConfigError without matplotlib."""
    figure = _figure(13, 4.6)
    by_steps, by_starts, by_flops = figure.subplots(1, 3, sharey=True)
    fixed, flops = curve.fixed, curve.flops_per_step
    steps = [flops * n for n in fixed.steps]
    single = {"label": "single pass", "marker": "o", "color": "tab:blue"}
    stopped = {"label": "single pass, stopped when verified", "marker": "s", "color": "tab:orange"}
    several = {"label": f"several starts, {curve.starts[0].budget}", "marker": "^", "color": "tab:green"}
    for axes, places in ((by_steps, fixed.steps), (by_flops, steps)):
        _draw_shares(axes, places, fixed.exact, fixed.puzzles, single)
        if fixed.verified is not None:
            _draw_verified(axes, places, fixed.verified, fixed.puzzles, single)
    if curve.until_verified:
        _draw_answers(by_steps, fixed.steps, curve.until_verified, stopped)
        _draw_answers(by_flops, [flops * each.steps for each in curve.until_verified], curve.until_verified, stopped)
    _draw_answers(by_starts, [each.starts for each in curve.starts], curve.starts, several)
    _draw_answers(by_flops, [flops * each.steps for each in curve.starts], curve.starts, several)
    by_steps.axvline(curve.trained_steps, color="tab:gray", linestyle="--", linewidth=1, label="steps in training")
    labels = ("supervision steps (at most)", "starts; 1 is the single pass", "FLOPs a puzzle")
    for axes, label in zip((by_steps, by_starts, by_flops), labels, strict=True):
        axes.set_xscale("log", base=10 if axes is by_flops else 2)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    for axes in (by_steps, by_starts):
        axes.xaxis.set_major_formatter("{x:g}")
    by_steps.set_ylabel(f"exact (dotted: verified), % of {fixed.puzzles:,} puzzles")
    by_flops.legend(loc="lower right", fontsize="small")
    _save(figure, title, file)


def require_matplotlib() -> None:
    """Raises ConfigError where there is no matplotlib, before the work whose picture is wanted."""
    _figure(1, 1)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'loopwise[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, title: str, file: Path) -> None:
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _draw_answers(axes: Any, places: Sequence[float], answers: Sequence[Answers], style: dict[str, str]) -> None:
    verified = [each.verified for each in answers if each.verified is not None]
    _draw_shares(axes, places, [each.exact for each in answers], answers[0].puzzles, style)
    if len(verified) == len(answers):
        _draw_verified(axes, places, verified, answers[0].puzzles, style)


def _draw_shares(
    axes: Any, places: Sequence[float], counts: Sequence[int], puzzles: int, style: dict[str, str]
) -> None:
    """Counts of puzzles in percent, with Wilson's 95 % intervals."""
    shares = [count / puzzles for count in counts]
    intervals = [wilson(count, puzzles) for count in counts]
    below = [100 * (share - low) for share, (low, _) in zip(shares, intervals, strict=True)]
    above = [100 * (high - share) for share, (_, high) in zip(shares, intervals, strict=True)]
    axes.errorbar(places, [100 * share for share in shares], yerr=[below, above], capsize=3, **style)


def _draw_verified(
    axes: Any, places: Sequence[float], counts: Sequence[int], puzzles: int, style: dict[str, str]
) -> None:
    """Counts of puzzles in percent; seen only where they are not those of the exact answers."""
    axes.plot(places, [100 * count / puzzles for count in counts], linestyle=":", color=style["color"])


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
