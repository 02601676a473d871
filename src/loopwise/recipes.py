"""Named runs: functions that return a full configuration. `loopwise train NAME` runs one.

A recipe that has the name of a task is what `loopwise train TASK` does; a task without one gets `small`. Every option
can be changed on the command line. What each recipe is expected to reach, and where that was measured, is in its
docstring.
"""

from __future__ import annotations

import inspect
import sys

from loopwise.errors import ConfigError
from loopwise.reasoners.trm import TRMConfig
from loopwise.registry import discover, resolve, suggest
from loopwise.runs import RunConfig
from loopwise.tasks.base import Task, TaskConfig
from loopwise.tasks.sudoku import SudokuConfig
from loopwise.training.config import TrainingConfig

__all__ = ["find", "recipe_notes", "recipes", "small"]


def small(task: str, config: TaskConfig) -> RunConfig:
    """TRM at a size that a laptop trains in minutes: attention, so that puzzles of any shape can be tried."""
    return RunConfig(
        task=task,
        task_config=config,
        reasoner_config=TRMConfig(hidden_size=96, num_heads=4, H_cycles=2, L_cycles=2, registers=4, width_multiple=16),
        training=TrainingConfig(
            steps=3000,
            batch_size=128,
            lr=1e-3,
            lr_end=0.1,
            warmup_steps=100,
            weight_decay=0.1,
            loss="softmax",
            puzzle_lr=1e-3,
            ema=0.99,
            eval_every=250,
            stop_at=1.0,
        ),
    )


def sudoku_6x6() -> RunConfig:
    """The demo: a TRM of 90,000 weights learns 6x6 Sudoku from minimal puzzles in a few minutes on two cores."""
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(box="2x3"),
        reasoner_config=TRMConfig(
            hidden_size=64,
            core="mlp",
            positions="none",
            H_cycles=2,
            L_cycles=2,
            registers=0,
            halting_reads="mean",
            width_multiple=16,
        ),
        training=TrainingConfig(
            steps=2500,
            batch_size=64,
            lr=5e-3,
            lr_end=0.0,
            warmup_steps=50,
            weight_decay=0.0,
            loss="softmax",
            ema=0.98,
            eval_every=250,
        ),
    )


def sudoku() -> RunConfig:
    """9x9 Sudoku at a size for two cores; what half an hour of it reaches is in records/."""
    return RunConfig(
        task="sudoku",
        task_config=SudokuConfig(),
        reasoner_config=TRMConfig(
            hidden_size=96,
            core="mlp",
            positions="none",
            H_cycles=1,
            L_cycles=2,
            registers=0,
            halting_reads="mean",
            width_multiple=16,
        ),
        training=TrainingConfig(
            steps=4000,
            batch_size=64,
            lr=3e-3,
            lr_end=0.0,
            warmup_steps=100,
            weight_decay=0.1,
            loss="softmax",
            ema=0.99,
            eval_every=500,
        ),
    )


def sudoku_extreme_mlp() -> RunConfig:
    """TRM-MLP on 9x9 Sudoku as published: 5.0 million parameters; 87.4 % on Sudoku-Extreme (paper)."""
    return _published(TRMConfig(core="mlp", positions="none"))


def sudoku_extreme_attention() -> RunConfig:
    """TRM with attention on 9x9 Sudoku as published: 6.8 million parameters; 74.7 % on Sudoku-Extreme (paper)."""
    return _published(TRMConfig())


def _published(reasoner: TRMConfig) -> RunConfig:
    training = TrainingConfig(weight_decay=1.0, puzzle_lr=1e-4, puzzle_weight_decay=1.0, eval_every=5000)
    return RunConfig(task="sudoku", task_config=SudokuConfig(), reasoner_config=reasoner, training=training)


def recipes() -> dict[str, RunConfig]:
    """Every recipe by name: the functions of this module that take nothing and return a configuration."""
    found = {}
    for name, function in inspect.getmembers(sys.modules[__name__], inspect.isfunction):
        signature = inspect.signature(function)
        if signature.return_annotation == "RunConfig" and not signature.parameters:
            found[name.replace("_", "-")] = function()
    return found


def recipe_notes() -> dict[str, str]:
    """What each recipe is, in a sentence."""
    module = sys.modules[__name__]
    docs = {name: inspect.getdoc(getattr(module, name.replace("-", "_"))) or "" for name in recipes()}
    return {name: doc.split("\n\n")[0].replace("\n", " ") for name, doc in docs.items()}


def find(name: str) -> RunConfig:
    """The recipe called `name`, or the small preset for the task of that name. Raises ConfigError."""
    known = recipes()
    if name in known:
        return known[name]
    tasks = discover("loopwise.tasks", Task)  # type: ignore[type-abstract]
    if ":" not in name and name not in tasks:
        names = sorted({*known, *tasks})
        raise ConfigError(f"unknown task or recipe {name!r}{suggest(name, names)}; known: {', '.join(names)}")
    return small(name, resolve(name, "loopwise.tasks", Task).Config())  # type: ignore[type-abstract]
