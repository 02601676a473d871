"""loopwise data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from loopwise.cli.parsing import arguments_class, parse, take_positional
from loopwise.data import cache
from loopwise.data.fetch import SOURCES, fetch
from loopwise.errors import ConfigError, StorageError
from loopwise.recipes import find, known
from loopwise.registry import resolve, suggest
from loopwise.storage import write_text
from loopwise.tasks.base import Task
from loopwise.types import IGNORE_LABEL, SPLITS

__all__ = ["main"]

ABOUT = f"""Look at data, write it to files, or fetch a benchmark: loopwise data inspect|build TASK, or fetch NAME.

`inspect` also tells what training and test files have in common. `build` writes inputs, labels and puzzle ids of each
split as .npy arrays. `fetch` gets one of {", ".join(SOURCES)} from its public hub and checks its checksum.

  loopwise data inspect sudoku --task.box 2x3
  loopwise data inspect sudoku --task.train-file train.csv --task.test-file test.csv
  loopwise data inspect table --task.file additions.jsonl
  loopwise data build sorting --task.n 24 --out data/sorting
  loopwise data fetch sudoku-extreme --out data
"""

ACTIONS = ("inspect", "build", "fetch")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    action, rest = take_positional(arguments)
    name, rest = take_positional(rest)
    out = (str, "data", "folder to write to")
    if action is None and {"-h", "--help"} & set(rest):
        parse(arguments_class("Data", out=out), rest, command="data", about=ABOUT)
    if action not in ACTIONS:
        said = f"unknown action {action!r}{suggest(action, ACTIONS)}" if action else "say what to do with which data"
        raise ConfigError(f"{said}: loopwise data inspect|build TASK, or loopwise data fetch NAME")
    if name is None and not {"-h", "--help"} & set(rest):
        raise ConfigError(f"say which: loopwise data {action} NAME")
    if action == "fetch":
        args = parse(arguments_class("Fetch", out=out), rest, command="data fetch NAME", about=ABOUT)
        for file in fetch(name or "", Path(args.out)):
            print(file)
        return 0
    config = find(name or known()[0])
    cls = arguments_class("Data", out=out, task=(type(config.task_config), config.task_config, ""))
    args = parse(cls, rest, command=f"data {action} {name}", about=ABOUT)
    task = resolve(config.task, "loopwise.tasks", Task)(args.task)  # type: ignore[type-abstract]
    return _inspect(task) if action == "inspect" else _build(task, Path(args.out))


def _inspect(task: Task[Any]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    splits = {split: cache.examples(task, split) for split in SPLITS}
    spec = task.spec
    console.print(task.summary(), markup=False)
    shown = spec.symbols if len(spec.symbols) <= 40 else [*spec.symbols[:40], "..."]
    console.print(f"shape {spec.shape}, {spec.vocab_size} tokens: {' '.join(shown)}", markup=False)
    for split, data in splits.items():
        console.print(f"{split:10} {len(data.inputs):>8,} puzzles  sha256 {cache.fingerprint(data)}")
    for data in [d for d in splits.values() if len(d.inputs)][:1]:
        console.print("\nthe first puzzle, and its answer")
        console.print(task.render(data.inputs[0]))
        console.print(task.render(np.where(data.labels[0] < 0, data.inputs[0], data.labels[0]), data.inputs[0]))
    return 0


def _build(task: Task[Any], out: Path) -> int:
    spec = task.spec
    for split in SPLITS:
        data = cache.examples(task, split)
        try:
            (out / split).mkdir(parents=True, exist_ok=True)
            for field, array in zip(data._fields, data, strict=True):
                np.save(out / split / f"{field}.npy", array)
        except OSError as error:
            raise StorageError(
                f"cannot write {out} ({error.strerror}); free some space or choose another --out"
            ) from error
        print(f"{out / split}: {len(data.inputs):,} puzzles")
    facts = {"task": task.name, "shape": spec.shape, "vocab_size": spec.vocab_size, "symbols": list(spec.symbols)}
    write_text(out / "dataset.json", json.dumps({**facts, "ignore_label": IGNORE_LABEL, "pad": 0}, indent=1) + "\n")
    return 0
