"""loopwise export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

import loopwise
from loopwise.cli.parsing import parse, take_positional
from loopwise.errors import ConfigError
from loopwise.export import Unit, export_onnx

__all__ = ["main"]

ABOUT = """Write a model as ONNX, for programs without PyTorch: loopwise export CHECKPOINT --out FILE.onnx.

The graph is one supervision step and the loop over steps is yours; docs/export.md has it in twenty lines of numpy. What
onnxruntime computes is compared with PyTorch before anything is written. Needs pip install 'loopwise[onnx]'.

  loopwise export sorting --out sorting.onnx
  loopwise export runs/six --out six.onnx --json
  loopwise export runs/six --out six_parts --unit update
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Options of loopwise export."""

    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The file to write, or the folder for --unit update; it must not exist yet."""
    unit: Unit = "step"
    """What a graph computes: a supervision step, or (several small graphs) an update of the inner loop."""
    json: bool = False
    """Write what was done as JSON."""
    trust: bool = False
    """Import code of yours that the checkpoint names, such as a reasoner of your own."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    checkpoint, rest = take_positional(arguments)
    args = parse(Arguments, rest, command="export CHECKPOINT", about=ABOUT)
    if checkpoint is None:
        raise ConfigError("say which model: loopwise export CHECKPOINT; `loopwise models` lists the shipped ones")
    if not args.out:
        raise ConfigError(f"say where: loopwise export {checkpoint} --out FILE.onnx")
    solver = loopwise.load(checkpoint, device="cpu", trust=args.trust)
    done = export_onnx(solver, args.out, unit=args.unit)
    if args.json:
        print(json.dumps({**done._asdict(), "files": [str(file) for file in done.files]}))
        return 0
    for file in done.files:
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    lengths = "any length" if done.any_length else f"{solver.reasoner.spec.length} positions"
    print(
        f"puzzles of {lengths}, any number of them; on random ones onnxruntime and PyTorch differ by at most "
        f"{done.difference:.1e} after a step and give {100 * done.same_answers:.2f} % of the same answers after four"
    )
    return 0
