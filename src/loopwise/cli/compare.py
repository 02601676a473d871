"""loopwise compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from loopwise.cli.parsing import parse
from loopwise.comparison import CONTENDERS, Plan, compare
from loopwise.errors import ConfigError
from loopwise.results import results_page
from loopwise.storage import write_text

__all__ = ["main"]

ABOUT = f"""Train families side by side and write a table: loopwise compare RECIPE ... [options].

Same data, same number of parameters within 5 %, measured at equal optimizer steps and at equal training FLOPs. What is
finished is kept, so the same command goes on after an interruption. The families: {", ".join(CONTENDERS)}.

  loopwise compare sorting-10 rolling-sum-16 sudoku-6x6 --out runs/compare
  loopwise compare sorting-10 --models trm,hrm --seeds 1 --share 0.1
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Options of loopwise compare."""

    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs/compare"
    """Folder of the finished runs, and of the table, results.md."""
    models: str = ",".join(CONTENDERS)
    """Families, with commas."""
    seeds: int = 3
    """Runs of each family on each task."""
    share: str = "1"
    """Optimizer steps, as a share of the recipe's: one number, or one for each recipe, with commas."""
    rates: str = "1,0.3"
    """Learning rates to choose from, as multiples of the recipe's; one alone is taken as it is."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    tasks = []
    rest = list(arguments)
    while rest and not rest[0].startswith("-"):
        tasks.append(rest.pop(0))
    args = parse(Arguments, rest, command="compare RECIPE ...", about=ABOUT)
    if not tasks:
        raise ConfigError("say what to compare on: loopwise compare RECIPE ...; `loopwise tasks` lists the recipes")
    plan = Plan(
        tasks=tuple(tasks),
        contenders=tuple(name.strip() for name in args.models.split(",") if name.strip()),
        seeds=args.seeds,
        shares=_numbers("share", args.share),
        rates=_numbers("rates", args.rates),
    )
    folder = Path(args.out)
    records = compare(plan, folder, lambda line: print(line, file=sys.stderr, flush=True))
    command = " ".join(["loopwise compare", *(a for a in arguments if a not in {args.out, "--out"})])
    page = results_page(records, command)
    write_text(folder / "results.md", page)
    print(page, end="")
    return 0


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--{option} {text!r} is no list of numbers; write them with commas, such as 1,0.3") from None
