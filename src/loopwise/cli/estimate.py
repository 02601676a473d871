"""loopwise estimate."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Column, Table

from loopwise.cli.configuring import configure
from loopwise.estimate import Cost, Estimate, estimate
from loopwise.runtime import Ceilings, dtype_name, measure_ceilings, resolve_device, resolve_dtype
from loopwise.training.reporting import clock
from loopwise.types import Json

__all__ = ["main"]

ROWS = (
    "GFLOP of matrix products",
    "GB moved by other kernels",
    "calls of kernels",
    "MiB alive at the most",
    "seconds, at least",
    "  of these matrix products",
    "  memory traffic",
    "  calls",
)

ABOUT = """Say what a run will cost before it is started: loopwise estimate TASK [the options of loopwise train].

Counts a training step and a solving step with the run's own shapes, measures what this machine can do, and adds up:
matrix products, memory traffic, calls. That is what the plain path takes at least: real shapes reach 70 to 90 % of the
ceilings, evaluations come on top, and compiling takes some of the traffic away (docs/performance.md).

  loopwise estimate sudoku-6x6
  loopwise estimate sudoku-extreme-mlp --training.batch-size 64
  loopwise estimate sorting --reasoner hrm --json
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    config, args = configure(
        arguments, command="estimate", about=ABOUT, json=(bool, False, "write the numbers as JSON")
    )
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    device = resolve_device(config.training.device)
    dtype = resolve_dtype(config.training.dtype, device)
    costs = estimate(config)
    ceilings = measure_ceilings(device, dtype)
    if args.json:
        print(json.dumps(_record(costs, ceilings)))
        return 0
    console = Console(highlight=False)
    console.print(
        f"{config.reasoner} on {config.task}, {costs.parameters:,} parameters "
        f"(+ {costs.puzzle_parameters:,} in the puzzle table), {config.training.batch_size} slots, "
        f"{device.type} {dtype_name(dtype)}, {torch.get_num_threads()} threads",
        soft_wrap=True,
    )
    table = Table("one step of all slots", *(Column(name, justify="right") for name in ("training", "solving")))
    for name, *cells in zip(ROWS, *(_column(cost, ceilings) for cost in (costs.training, costs.solving)), strict=True):
        table.add_row(name, *cells)
    console.print(table)
    seconds = costs.steps * sum(costs.training.seconds(ceilings))
    console.print(
        f"this machine: {ceilings.flops / 1e9:.0f} GFLOP/s, {ceilings.traffic / 1e9:.1f} GB/s, "
        f"{ceilings.call * 1e6:.1f} us a call (measured now)"
    )
    console.print(
        f"the run: {costs.steps:,} steps, {costs.total_flops / 1e15:.4g} PFLOP, at least {clock(seconds)}; "
        f"memory {(costs.training.memory + costs.weights) / 2**20:.0f} MiB beside the program itself",
        soft_wrap=True,
    )
    return 0


def _column(cost: Cost, ceilings: Ceilings) -> list[str]:
    terms = cost.seconds(ceilings)
    shares = [f"{100 * term / sum(terms):.0f} %" for term in terms]
    numbers = [f"{cost.flops / 1e9:,.2f}", f"{cost.traffic / 1e9:,.2f}", f"{cost.calls:,.0f}"]
    return [*numbers, f"{cost.memory / 2**20:,.0f}", f"{sum(terms):.3g}", *shares]


def _record(costs: Estimate, ceilings: Ceilings) -> dict[str, Json]:
    def of(cost: Cost) -> dict[str, Json]:
        return {**cost._asdict(), "seconds": sum(cost.seconds(ceilings))}

    return {
        "parameters": costs.parameters,
        "puzzle_parameters": costs.puzzle_parameters,
        "steps": costs.steps,
        "training_step": of(costs.training),
        "solving_step": of(costs.solving),
        "weights_bytes": costs.weights,
        "total_flops": costs.total_flops,
        "total_seconds": costs.steps * sum(costs.training.seconds(ceilings)),
        "ceilings": ceilings._asdict(),
    }
