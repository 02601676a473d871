"""loopwise import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from loopwise.cli.parsing import parse, take_positional
from loopwise.errors import ConfigError
from loopwise.published.convert import Imported, ImportOptions, import_checkpoint
from loopwise.tasks.table import Table

__all__ = ["main"]

ABOUT = """Convert a checkpoint of the published HRM or TRM code: loopwise import FILE --out FOLDER [options].

FILE is a state dictionary that torch.save wrote; it is read as data, code in it does not run. Family, sizes, core and
vocabulary are read from it. The number of heads, cycles and steps is not in it: see the YAML file of the run. The
result is checked against a plain forward pass on the file's tensors before anything is written.

A model of 11 tokens and 81 cells becomes one for sudoku, any other one for a table: mazes are a text of 900 characters,
ARC grids are 30 x 30 colours with "E" below and to the right of the grid; other tokens are written as numbers.

  loopwise import step_65104 --out models/trm-sudoku
  loopwise import hrm-maze.pt --out models/hrm-maze
  loopwise import step_518071 --out models/trm-arc --L-cycles 4 --dtype bfloat16
  loopwise import small.pt --out models/small --heads 4 --registers 1 --shape 6x6
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(ImportOptions):
    """Options of loopwise import."""

    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """Folder to write the model to; new or empty."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    file, rest = take_positional(arguments)
    args = parse(Arguments, rest, command="import FILE", about=ABOUT)
    if file is None:
        raise ConfigError("say which file: loopwise import FILE --out FOLDER")
    if not args.out:
        raise ConfigError(f"say where to write the model: loopwise import {file} --out FOLDER")
    _tell(import_checkpoint(Path(file), Path(args.out), args), args.out)
    return 0


def _tell(imported: Imported, out: str) -> None:
    model, layout, options, found, _ = imported
    networks, table = model.reasoner.num_parameters()
    spec = model.task.spec
    print(
        f"{layout.family} with {layout.core} for {model.task.name}: {spec.vocab_size} tokens, {spec.length} positions, "
        f"{networks:,} parameters, {table:,} values in the puzzle table"
    )
    print("  " + ", ".join(f"{name} {value}" for name, value in options.items()))
    print(
        f"parity with a plain forward pass on the file's tensors, {found.puzzles} random puzzles, {found.steps} steps: "
        f"logits differ by {found.logits:.3g} at most, halting values by {found.values:.3g}"
    )
    more = " --task.file FILE" if imported.model.task.name == Table.name else ""
    print(f"written to {out}; it is as good as the options above are right: loopwise eval {out}{more}")
