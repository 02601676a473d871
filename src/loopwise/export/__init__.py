"""Models as ONNX files with the loop outside, for programs that have neither PyTorch nor loopwise.

    step     FILE.onnx           one supervision step: tokens, puzzle_ids, state_* -> new_state_*, logits, halt_logits,
                                 continue_logits
             FILE.start.onnx     tokens, puzzle_ids -> state_*, the state before the first step
    update   FOLDER/start.onnx   the same
             FOLDER/encode.onnx  tokens, puzzle_ids -> x
             FOLDER/update_0.onnx, ...   x, state_* -> new_state_*, one file for each distinct update of the recursion
             FOLDER/readout.onnx         state_* -> logits, halt_logits, continue_logits
             FOLDER/loop.json    `cycle`, the updates in order, and `num_cycles`; a step is that, then the readout

The state before the first step is a graph too and no array, because it has the shape of the puzzles at hand and the
runtimes that read ONNX do not all read .npz. Each graph carries what loop.json says, under the key "loopwise" of its
metadata. Everything is float32. Nothing is written before onnxruntime has given the same numbers as PyTorch.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import loopwise
from loopwise.checkpoint import Model
from loopwise.config import to_json
from loopwise.errors import ConfigError, StorageError
from loopwise.export.graphs import KEY, Tracer, silence
from loopwise.export.parity import compare
from loopwise.reasoners.gradients import FullBPTT
from loopwise.solving.budgets import HALT_THRESHOLD
from loopwise.solving.solver import Solver
from loopwise.storage import write_bytes
from loopwise.types import Json

__all__ = ["Exported", "Unit", "export_onnx"]

Unit: TypeAlias = Literal["step", "update"]
"""What one graph computes: a supervision step, or one update of the recursion."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Exported(NamedTuple):
    """What was written, and how near it comes to PyTorch on random puzzles."""

    files: tuple[Path, ...]
    difference: float
    """The largest absolute difference of any output after one step from the same state."""
    same_answers: float
    """The share of positions with the same answer, each of the two on its own for four steps."""
    any_length: bool
    """Whether the graphs take puzzles of other lengths than the trained one."""


def export_onnx(source: Model | Solver, path: str | Path, *, unit: Unit = "step") -> Exported:
    """Write a model as ONNX: a file for the unit `step`, a folder for `update`. The model itself is left as it is.

    A halting policy that ponders within a step (`act`) is outside the graph: a step is one step of its ponder. Raises
    ConfigError when a package is missing, the place is taken or the model does not export, ExportError when onnxruntime
    computes something else than PyTorch.
    """
    out = Path(path)
    if unit not in get_args(Unit):
        raise ConfigError(f"unknown unit {unit!r}; known: {', '.join(get_args(Unit))}")
    if unit == "step" and out.suffix != ".onnx":
        raise ConfigError(f"the name of an ONNX file ends in .onnx, unlike {out}; a folder is for the unit update")
    start = out.with_suffix(".start.onnx")
    for taken in (out, start) if unit == "step" else (out,):
        if taken.exists():
            raise ConfigError(f"{taken} exists already; remove it or choose another --out")
    model = source.model if isinstance(source, Solver) else source
    if model.reasoner.search:
        raise ConfigError(
            f"the steps of {model.reasoner.name} are a search, which is not exported; export another family"
        )
    _require_packages()
    tracer = Tracer(model)
    graphs = tracer.step() if unit == "step" else tracer.updates()
    facts = _facts(model, tracer, unit)
    for graph in graphs.values():
        entry = graph.metadata_props.add()
        entry.key, entry.value = KEY, json.dumps(facts, ensure_ascii=False)
    data = {name: graph.SerializeToString() for name, graph in graphs.items()}
    # One by one, the updates are those of the recursion, whatever the policy would do with them.
    difference, same = compare(tracer, data, model.gradient if unit == "step" else FullBPTT())
    if unit == "step":
        write_bytes(start, data["start"])
        write_bytes(out, data["step"])
        files: tuple[Path, ...] = (out, start)
    else:
        text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        files = _write_folder(out, {f"{name}.onnx": part for name, part in data.items()} | {"loop.json": text.encode()})
    return Exported(files, difference, same, tracer.any_length)


def _facts(model: Model, tracer: Tracer, unit: Unit) -> dict[str, Json]:
    """What a program needs to know to run the loop and to write puzzles as tokens."""
    spec, halting = tracer.reasoner.spec, model.halting
    loop: dict[str, Json] = {"cycle": tracer.cycle, "num_cycles": tracer.num_cycles} if unit == "update" else {}
    return {
        "loopwise": loopwise.__version__,
        "unit": unit,
        "task": model.task.name,
        "reasoner": type(tracer.reasoner).name,
        "max_steps": int(halting.config.max_steps),
        "halt_threshold": HALT_THRESHOLD,
        "halting": {"name": type(halting).name, "config": to_json(halting.config)},
        "symbols": list(spec.symbols),
        "shape": list(spec.shape),
        "any_length": tracer.any_length,
        "state": list(tracer.state),
        **loop,
    }


def _require_packages() -> None:
    with silence():
        for package in PACKAGES:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ConfigError(
                    f"the export needs the package {package}; install it with: pip install 'loopwise[onnx]'"
                ) from error


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write a folder that is there whole or not at all."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for name, data in contents.items():
            write_bytes(scratch / name, data)
        os.rename(scratch, folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder} ({error.strerror or error}); choose another --out") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return tuple(folder / name for name in contents)
