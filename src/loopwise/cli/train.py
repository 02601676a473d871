"""loopwise train."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loopwise.cli.configuring import configure
from loopwise.cli.parsing import arguments_class, parse, parse_duration, take_option
from loopwise.errors import ConfigError
from loopwise.runs import Outcome, RunConfig, resume_run, resume_training_config, start_run
from loopwise.training.reporting import clock

__all__ = ["main"]

ABOUT = """Train a reasoner: loopwise train TASK [options], or loopwise train --resume DIR.

TASK is a task (`loopwise tasks` lists them), a recipe, `module:Class` of your own, or the config.json of a run, whose
options are taken.

  loopwise train sudoku-6x6 --out runs/six --time-limit 5m
  loopwise train sorting --task.n 24 --training.lr 5e-4
  loopwise train sorting --reasoner hrm --halting q-learning
  loopwise train sorting --reasoner looped --gradient last-updates --gradient.k 3
  loopwise train table --task.file additions.jsonl --out runs/additions
  loopwise train runs/six/config.json --training.seed 1 --out runs/six-again
  loopwise train --resume runs/six --time-limit 10m
"""

TIME_LIMIT = "stop, evaluate and save after this time, such as 90s, 10m or 1h30m; the run can be resumed"
TRACKER = "where numbers go besides log.jsonl: tensorboard, none, or any tracker that accelerate knows"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    resume, rest = take_option(arguments, "--resume")
    if resume is not None:
        folder = Path(resume)
        outcome = _resume(folder, rest)
    else:
        folder, outcome = _start(rest)
    if outcome is not None:
        _conclude(folder, outcome)
    return 0


def _start(arguments: Sequence[str]) -> tuple[Path, Outcome]:
    config, args = configure(
        arguments,
        command="train",
        about=ABOUT,
        out=(str, "", "folder for the run; default runs/TASK-DATE-TIME"),
        time_limit=(str, "", TIME_LIMIT),
        tracker=(str, "tensorboard", TRACKER),
    )
    if not args.out and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes need a common folder: name it with --out DIR")
    folder = Path(args.out or _default_folder(config))
    return folder, start_run(config, folder, _limit(args.time_limit), args.tracker)


def _resume(folder: Path, arguments: Sequence[str]) -> Outcome:
    before = resume_training_config(folder)
    cls = arguments_class(
        "Resume",
        time_limit=(str, "", TIME_LIMIT),
        tracker=(str, "tensorboard", TRACKER),
        training=(type(before), before, ""),
    )
    args = parse(cls, arguments, command="train --resume DIR", about=ABOUT)
    return resume_run(folder, args.training, _limit(args.time_limit), args.tracker)


def _limit(text: str) -> float | None:
    return parse_duration(text) if text else None


def _default_folder(config: RunConfig) -> str:
    task = config.task.replace(":", "-")
    return f"runs/{task}-{time.strftime('%Y%m%d-%H%M%S')}"


def _conclude(folder: Path, outcome: Outcome) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    best = (
        f", best {100 * outcome.best:.1f} % exact on validation at step {outcome.best_step}"
        if outcome.best_step
        else ""
    )
    console.print(f"{outcome.reason} at step {outcome.step} after {clock(outcome.seconds)}{best}")
    more: list[Any] = [] if outcome.reason == "finished" else [f"  continue  loopwise train --resume {folder}"]
    if outcome.best_step:
        more += [f"  measure   loopwise eval {folder}", f"  solve     loopwise solve {folder} PUZZLE"]
    for line in more:
        console.print(line, markup=False)
