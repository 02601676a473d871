"""Tables and files of what answers under budgets were worth, for `loopwise eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loopwise.evaluation import Answers, Curve, wilson
from loopwise.plots import draw_curve
from loopwise.storage import write_json, write_text
from loopwise.types import Json

__all__ = ["MEASURES", "PROTOCOL", "Rows", "answer_rows", "curve_json", "curve_rows", "write_curve"]

MEASURES = (
    "Exact: every asked position as the label has it. Verified: the rules accept the answer, the label's or another."
)

PROTOCOL = (
    f"{MEASURES} In brackets: 95 % intervals (Wilson). Steps and FLOPs: mean of a puzzle, all its starts together. One "
    "start is the single pass, several are not, and a search, by guesses or that of the lattice, never is."
)


class Rows(NamedTuple):
    """A table."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def answer_rows(answers: Sequence[Answers], flops: int) -> Rows:
    """The table of numbers of starts under one budget; a step costs so many FLOPs."""
    rows, notes = [], []
    for each in answers:
        label = "1 (single)" if each.starts == 1 and not each.guess else str(each.starts)
        rows.append(_row(label, each.exact, each.verified, each.puzzles, each.steps, flops))
        stops = ", ".join(f"{name} {count:,}" for name, count in each.stopped_by.items())
        pace = "" if each.seconds is None else f"; {each.seconds:.3g} s a puzzle (median)"
        notes.append(f"{label}: {stops}{pace}")
    every = answers[0].guess
    guessing = f", a guess every {f'{every} steps' if every > 1 else 'step'}" if every else ""
    return Rows(f"budget {answers[0].budget}{guessing}", _header("starts"), rows, f"Stopped by - {'. '.join(notes)}.")


def curve_rows(curve: Curve) -> list[Rows]:
    """The tables of a curve."""
    fixed, flops = curve.fixed, curve.flops_per_step
    verified = fixed.verified or (None,) * len(fixed.steps)
    labels = [f"{n} (trained)" if n == curve.trained_steps else str(n) for n in fixed.steps]
    columns = zip(labels, fixed.exact, verified, fixed.steps, strict=True)
    rows = [_row(label, exact, good, fixed.puzzles, steps, flops) for label, exact, good, steps in columns]
    tables = [Rows("single pass, after so many steps", _header("steps"), rows)]
    if curve.until_verified:
        stopped = zip(labels, curve.until_verified, strict=True)
        rows = [_row(label, each.exact, each.verified, each.puzzles, each.steps, flops) for label, each in stopped]
        tables.append(Rows("single pass, stopped when verified, after so many steps at most", _header("steps"), rows))
    several = answer_rows(curve.starts, flops)
    return [*tables, several._replace(title=f"several starts, {several.title}")]


def curve_json(curve: Curve) -> dict[str, Json]:
    """All numbers of a curve."""
    return {
        **curve.fixed.to_json(),
        "until_verified": [answers.to_json() for answers in curve.until_verified],
        "starts": [answers.to_json() for answers in curve.starts],
    }


def write_curve(folder: Path, curve: Curve, record: dict[str, Json], title: str) -> None:
    """Write curve.json, curve.md and curve.png into a folder."""
    write_json(folder / "curve.json", record)
    parts = [f"# {title}", "![Accuracy against steps, starts and FLOPs](curve.png)"]
    for table in curve_rows(curve):
        lines = (table.header, ("---",) * len(table.header), *table.rows)
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        parts += [table.note] * bool(table.note)
    parts.append(f"{PROTOCOL} Data sha256 {record['data_sha256']}.")
    write_text(folder / "curve.md", "\n\n".join(parts) + "\n")
    draw_curve(curve, folder / "curve.png", title)


def _header(first: str) -> tuple[str, ...]:
    return first, "exact, %", "verified, %", "mean steps", "FLOPs"


def _row(label: str, exact: int, verified: int | None, puzzles: int, steps: float, flops: int) -> tuple[str, ...]:
    shares = [_share(exact, puzzles), "-" if verified is None else _share(verified, puzzles)]
    return label, *shares, f"{steps:.2f}".removesuffix(".00"), f"{flops * steps:.3g}"


def _share(count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
