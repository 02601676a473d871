"""loopwise doctor."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence

import psutil
import torch
from rich.console import Console
from rich.table import Table

import loopwise
from loopwise.cli.parsing import arguments_class, parse
from loopwise.data.cache import cache_folder
from loopwise.runtime import compile_trouble, dtype_name, matmul_flops, resolve_device, resolve_dtype
from loopwise.types import Json

__all__ = ["main"]

ABOUT = """Say what this machine can do: versions, device, number format, compiler, memory, speed of matrix products.

  loopwise doctor
  loopwise doctor --json
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    cls = arguments_class("Doctor", json=(bool, False, "write the findings as JSON"))
    args = parse(cls, arguments, command="doctor", about=ABOUT)
    findings = _findings()
    if args.json:
        print(json.dumps(findings))
        return 0
    table = Table.grid(padding=(0, 2))
    for name, value in findings.items():
        table.add_row(f"[dim]{name}[/dim]", str(value))
    Console(highlight=False).print(table)
    return 0


def _findings() -> dict[str, Json]:
    device = resolve_device()
    ceilings = {d: matmul_flops(device, d) for d in (torch.float32, torch.bfloat16)}
    dtype = resolve_dtype("auto", device)
    trouble = compile_trouble(device)
    free, total = psutil.virtual_memory().available / 2**30, psutil.virtual_memory().total / 2**30
    findings: dict[str, Json] = {
        "loopwise": loopwise.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "accelerate", "numpy", "safetensors")},
        "device": device.type if device.type != "cuda" else f"cuda ({torch.cuda.get_device_name(device)})",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "number format": f"{dtype_name(dtype)} (--training.dtype auto)",
        **{f"ceiling {dtype_name(d)}": f"{flops / 1e9:.0f} GFLOP/s" for d, flops in ceilings.items()},
        "torch.compile": f"cannot compile ({trouble}); --training.compile has no effect" if trouble else "can compile",
        "memory": f"{free:.1f} of {total:.1f} GiB free",
        "cache": str(cache_folder()),
    }
    best = max(ceilings, key=lambda d: ceilings[d])
    if ceilings[best] > 1.2 * ceilings[dtype]:
        name = dtype_name(best)
        findings["advice"] = (
            f"matrix products are faster in {name}: train with --training.dtype {name}, solve with --dtype {name}"
        )
    return findings
