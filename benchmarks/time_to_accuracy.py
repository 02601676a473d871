"""How long a recipe takes to a given accuracy: minutes and FLOPs, over several seeds.

python benchmarks/time_to_accuracy.py sudoku-6x6 sudoku-6x6-adamw sudoku-6x6-muon [--target 0.95] [--seeds 3]

Exact accuracy of the averaged weights on the whole validation split, measured every `--eval-every` steps; the first
time it reaches the target ends the run. The minutes are those on the clock from the first step on, with compiling and
with the evaluations; the FLOPs are those of training alone. Recipes take turns within a seed. The test split is not
touched.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from loopwise.reasoners.costs import count_flops
from loopwise.recipes import find
from loopwise.runs import Outcome, RunConfig, build, start_run
from loopwise.runtime import keep_freed_memory

HEADER = ("recipe", "seed", "reached", "step", "minutes", "PFLOP")


def seeded(
    name: str, seed: int, target: float, eval_every: int, compiling: Literal["", "auto", "on", "off"]
) -> RunConfig:
    """The recipe with another seed, to be stopped at the target."""
    config = find(name)
    training = replace(config.training, seed=seed, stop_at=target, eval_every=eval_every)
    if compiling:
        training = replace(training, compile=compiling)
    options = replace(config.reasoner_config, **{"seed": seed})
    return replace(config, reasoner_config=options, training=training)


def petaflops(config: RunConfig, steps: int) -> float:
    """FLOPs of so many training steps, in units of 1e15."""
    model = build(config)
    flops = count_flops(model.reasoner, model.gradient, model.halting, model.task.spec.length)
    return flops.training * config.training.batch_size * steps / 1e15


def main() -> None:
    """Run every recipe with every seed, and print a table and its medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a run is given up")
    parser.add_argument("--compile", default="", choices=["", "auto", "on", "off"], help="instead of the recipe's own")
    args = parser.parse_args()
    keep_freed_memory()
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    minutes: dict[str, list[float]] = {name: [] for name in args.recipes}
    for seed in range(args.seeds):
        for name in args.recipes:
            config = seeded(name, seed, args.target, args.eval_every, args.compile)
            with tempfile.TemporaryDirectory() as folder:
                outcome: Outcome = start_run(config, Path(folder) / "run", args.limit, "none")
            reached = outcome.best >= args.target
            minutes[name].append(outcome.seconds / 60 if reached else float("inf"))
            cells = [name, str(seed), f"{100 * outcome.best:.1f} %" + ("" if reached else " (not reached)")]
            cells += [str(outcome.step), f"{outcome.seconds / 60:.2f}", f"{petaflops(config, outcome.step):.5f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    for name, times in minutes.items():
        print(f"{name}: median {statistics.median(times):.2f} minutes, {min(times):.2f} to {max(times):.2f}")


if __name__ == "__main__":
    main()
