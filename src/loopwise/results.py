"""The page of a comparison: tables in Markdown, from the records of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loopwise.types import Json

__all__ = ["interval", "results_page"]

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""

POINTS = {"at_steps": "equal optimizer steps", "at_flops": "equal training FLOPs"}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of a share that was measured with several seeds: Student's 95 % interval, within 0 to 1."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, 0.0, 1.0
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
    t = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    return mean, max(0.0, mean - t * spread), min(1.0, mean + t * spread)


PROTOCOL = """All contenders of a task see the same data and have the same number of parameters within 5 % (the hidden
size D is chosen for it). Each trains at a constant rate, the better of those tried on the validation split in a run
with a seed of its own and half as many steps; nothing else was tuned for any of them, and batch, optimizer and the
other options are those that were once chosen for TRM. The averaged weights are measured on the test split, which
chose nothing, at two points of one run: after equal optimizer steps, and after equal training FLOPs (those of TRM's
steps).

*Exact*: every asked position right after the trained number of supervision steps; the mean over the seeds with
Student's 95 % interval, then each seed. *First step*: the same after one supervision step. *Halted*: the answer at
which the model stops by itself (halting probability above 0.95, at most the trained steps), and the mean of these
steps. *MFLOPs a solved puzzle*: what the halted answers cost in all, over the number that were exactly right. DEQ and
feed-forward answer in one supervision step, as in their papers."""


def results_page(records: Sequence[dict[str, Json]], command: str) -> str:
    """The tables of all tasks in `records`, with the protocol above them."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    lines = ["# Families side by side", "", f"Made by `{command}`.", "", PROTOCOL]
    for task in tasks:
        of_task = [record for record in records if record["task"] == task]
        for point, title in POINTS.items():
            puzzles = of_task[0][point]["puzzles"]
            lines += ["", f"## {task}: {title} ({puzzles:,} test puzzles)", "", *_table(of_task, point)]
    return "\n".join(lines) + "\n"


def _table(records: Sequence[dict[str, Json]], point: str) -> list[str]:
    rows = [
        "| model | parameters | D | rate | steps | training TFLOPs | exact, % [95 %] | seeds | first step, % "
        "| halted, % | halts at | MFLOPs a step | MFLOPs a solved puzzle |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["contender"] for record in records):
        runs = [record for record in records if record["contender"] == name]
        at = [run[point] for run in runs]
        mean, low, high = interval([a["exact"] for a in at])
        solved = sum(a["halted_exact"] for a in at)
        cost = sum(a["flops_per_step"] * a["halted_steps"] for a in at) / solved / 1e6 if solved else None
        cells = [
            name,
            f"{runs[0]['parameters']:,}",
            str(runs[0]["hidden_size"]),
            f"{runs[0]['lr']:g}",
            f"{_mean(at, 'step'):,.0f}",
            f"{_mean(at, 'training_flops') / 1e12:.2f}",
            f"**{100 * mean:.1f}** [{100 * low:.1f}, {100 * high:.1f}]" if len(at) > 1 else f"**{100 * mean:.1f}**",
            ", ".join(f"{100 * a['exact']:.1f}" for a in at),
            f"{100 * _mean(at, 'exact_first_step'):.1f}",
            f"{100 * _mean(at, 'halted_exact'):.1f}",
            f"{_mean(at, 'halted_steps'):.1f}",
            f"{_mean(at, 'flops_per_step') / 1e6:.1f}",
            "none solved" if cost is None else f"{cost:,.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _mean(points: Sequence[dict[str, Json]], key: str) -> float:
    return float(sum(point[key] for point in points) / len(points))
