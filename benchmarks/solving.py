"""What the slot engine is worth: the same weights, puzzles and machine, under four ways to serve them.

python benchmarks/solving.py [--model sudoku-6x6] [--quick] [--markdown FILE] [--json FILE]

    a    static batches, always as many steps as in training: the published policy
    b    static batches that run until their slowest puzzle halts, at most as many steps as in training
    c    our engine with the budget halted|steps=TRAINED
    c'   our engine with the budget verified|halted|steps=TRAINED, which asks the task's rules after every step

TRAINED is what the checkpoint was trained with (16 for Sudoku, 8 for sorting). Batches have as many rows as the engine
has slots. Puzzles come as tokens from the test split. (a) and (b) only take the arg max of the logits; the engine's
time also holds its bookkeeping and the verification of every final answer, so the ratios are on the low side.

Throughput: every round runs all four one after the other, in another order each time. A ratio is that of the times of
one round; its interval is the 95 % bootstrap interval of the mean over the rounds (of this machine and these puzzles).
Accuracy: Wilson's 95 % interval; the difference to (a) is paired, with the 95 % bootstrap interval over the puzzles.

Latency: from the arrival of a puzzle to its answer, where puzzles arrive as a Poisson process at a share of what (a)
can do, measured before. A static server takes all that wait, up to a full batch, whenever it is free, and computes
only as many rows as there are, so that its answers depend on who else is there; the engine's do not. Every policy gets
the same arrivals. Each number is the median of several such runs, with the lowest and the highest in brackets.

Overhead: the share of the engine's time that passes outside of the model's own supervision step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import loopwise
from loopwise.checkpoint import Model
from loopwise.data import cache
from loopwise.evaluation import wilson
from loopwise.solving.budgets import HALT_THRESHOLD, Budget, Halted, Steps, Verified
from loopwise.solving.lane import read_prediction
from loopwise.solving.solver import Solver
from loopwise.types import IGNORE_LABEL, Batch, Examples, Tokens

LOADS = (0.3, 0.7, 0.95)
RESAMPLES = 10_000


class Answered(NamedTuple):
    """Answers [N, L] and the steps [N] that were computed for each puzzle."""

    tokens: Tokens
    steps: np.ndarray[Any, Any]


Policy = Callable[[Solver, Tokens], Answered]


def static_batch(solver: Solver, puzzles: Tokens, *, halting: bool) -> Answered:
    """Run one batch for as many steps as in training; with `halting` until its last puzzle has halted.

    A puzzle that halts keeps the answer of that step, and is computed along until all have.
    """
    inputs = torch.as_tensor(puzzles, dtype=torch.int64).to(solver.device)
    batch = Batch.unlabelled(inputs)
    state = solver.reasoner.init_state(*inputs.shape)
    answers = np.zeros(puzzles.shape, np.int32)
    halted = np.zeros(len(puzzles), bool)
    step = 0
    while step < solver.trained_steps and not halted.all():
        state, prediction, _ = solver.model.step(state, batch)
        step += 1
        if halting:
            now, probabilities, _ = read_prediction(prediction)
            answers[~halted] = now[~halted]
            halted |= probabilities > HALT_THRESHOLD
    if not halting:
        answers = prediction.logits.argmax(-1).cpu().numpy().astype(np.int32)
    return Answered(answers, np.full(len(puzzles), step))


@torch.inference_mode()
def static(solver: Solver, puzzles: Tokens, *, halting: bool) -> Answered:
    """All puzzles in batches of as many rows as there are slots."""
    pieces = [puzzles[i : i + solver.slots] for i in range(0, len(puzzles), solver.slots)]
    done = [static_batch(solver, piece, halting=halting) for piece in pieces]
    return Answered(np.concatenate([d.tokens for d in done]), np.concatenate([d.steps for d in done]))


def engine(solver: Solver, puzzles: Tokens, *, budget: Budget) -> Answered:
    """All puzzles through the solver."""
    solutions = solver.solve(list(puzzles), budget)
    return Answered(np.stack([s.tokens for s in solutions]), np.array([s.steps for s in solutions]))


def policies(solver: Solver) -> dict[str, Policy]:
    """The four ways, by name."""
    ours = Halted() | Steps(solver.trained_steps)
    return {
        "a": partial(static, halting=False),
        "b": partial(static, halting=True),
        "c": partial(engine, budget=ours),
        "c'": partial(engine, budget=Verified() | ours),
    }


def held_out(solver: Solver, count: int) -> tuple[Solver, Examples]:
    """The solver with its task at `count` test puzzles, and these."""
    task = solver.task
    task = type(task).restore(dataclasses.replace(task.config, test=count), task.metadata())
    data = cache.examples(task, "test")
    examples = Examples(*(np.array(column[:count]) for column in data))
    return Solver(dataclasses.replace(solver.model, task=task), slots=solver.slots, device=str(solver.device)), examples


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bootstrap(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


# ---------------------------------------------------------------- throughput


def throughput(solver: Solver, data: Examples, rounds: int) -> dict[str, Any]:
    """Times of all policies in all rounds, and what their answers are worth."""
    ways = policies(solver)
    for way in ways.values():
        way(solver, data.inputs[: 2 * solver.slots])  # the first call of anything is slow
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answered] = {}
    for number in range(rounds):
        order = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        for name in order:
            wait_for(solver.device)
            begun = time.perf_counter()
            answers[name] = ways[name](solver, data.inputs)
            wait_for(solver.device)
            seconds[name].append(time.perf_counter() - begun)
    exact = {name: right(done.tokens, data) for name, done in answers.items()}
    return {name: _told(name, seconds, answers, exact, solver.trained_steps) for name in ways}


def right(answers: Tokens, data: Examples) -> np.ndarray[Any, Any]:
    """Which answers [N, L] are exactly right: [N]."""
    return np.asarray(((answers == data.labels) | (data.labels == IGNORE_LABEL)).all(1))


def _told(name: str, seconds: Any, answers: dict[str, Answered], exact: Any, limit: int) -> dict[str, Any]:
    """All numbers of one policy."""
    puzzles, own = len(exact[name]), np.array(seconds[name])
    difference = 100.0 * (exact[name].astype(float) - exact["a"].astype(float))
    ratios = {other: np.array(seconds[other]) / own for other in "ab"}
    steps = answers[name].steps
    return {
        "puzzles_a_second": puzzles / own.mean(),
        "seconds": own.tolist(),
        "exact": exact[name].mean(),
        "exact_interval_95": wilson(int(exact[name].sum()), puzzles),
        "exact_points_over_a": difference.mean(),
        "exact_points_over_a_interval_95": bootstrap(difference),
        "mean_steps": steps.mean(),
        "at_limit": float((steps == limit).mean()),
        **{f"ratio_to_{other}": ratio.mean() for other, ratio in ratios.items()},
        **{f"ratio_to_{other}_interval_95": bootstrap(ratio) for other, ratio in ratios.items()},
    }


def throughput_table(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        "| | puzzles/s | exact, % [95 %] | points over a [95 %] | mean steps | times a [95 %] | times b [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        accuracy = within(100 * row["exact"], [100 * end for end in row["exact_interval_95"]])
        points = within(row["exact_points_over_a"], row["exact_points_over_a_interval_95"])
        ratios = (within(row[f"ratio_to_{other}"], row[f"ratio_to_{other}_interval_95"]) for other in "ab")
        cells = (name, f"{row['puzzles_a_second']:.1f}", accuracy, points, f"{row['mean_steps']:.2f}", *ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def within(value: float, ends: Sequence[float]) -> str:
    """A number with its interval."""
    return f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


# ---------------------------------------------------------------- latency


@torch.inference_mode()
def serve_static(solver: Solver, puzzles: Tokens, arrivals: np.ndarray[Any, Any], *, halting: bool) -> Any:
    """Latencies [N] of a server that takes what waits, up to a batch, whenever it is free."""
    latencies = np.zeros(len(arrivals))
    begun = time.monotonic()
    first = 0
    while first < len(arrivals):
        time.sleep(max(0.0, begun + arrivals[first] - time.monotonic()))
        arrived = int(np.searchsorted(arrivals, time.monotonic() - begun, side="right"))
        last = min(max(arrived, first + 1), first + solver.slots)
        static_batch(solver, puzzles[first:last], halting=halting)
        latencies[first:last] = time.monotonic() - begun - arrivals[first:last]
        first = last
    return latencies


def serve_engine(solver: Solver, puzzles: Tokens, arrivals: np.ndarray[Any, Any]) -> Any:
    """Latencies [N] of the engine."""
    latencies = np.zeros(len(arrivals))
    budget = Halted() | Steps(solver.trained_steps)
    slots = solver.engine()
    begun = slots.clock()
    sent = done = 0
    while done < len(arrivals):
        if sent == done:
            time.sleep(max(0.0, begun + arrivals[sent] - slots.clock()))
        now = slots.clock() - begun
        while sent < len(arrivals) and arrivals[sent] <= now:
            slots.submit(puzzles[sent], budget, arrival=begun + arrivals[sent], key=sent)
            sent += 1
        for work in slots.step():
            latencies[work.key] = slots.clock() - work.arrival
            done += 1
    return latencies


def latency(
    solver: Solver, data: Examples, capacity: float, count: int, repeats: int, fewer: Sequence[int]
) -> dict[str, Any]:
    """{load: {policy: {percentile: seconds of each repeat}}} of `count` puzzles that arrive at random.

    The engine is also tried with `fewer` slots.
    """
    servers: dict[str, Callable[..., Any]] = {
        "a": partial(serve_static, solver, halting=False),
        "b": partial(serve_static, solver, halting=True),
    }
    for slots in dict.fromkeys((solver.slots, *fewer)):
        other = Solver(solver.model, slots=slots, device=str(solver.device))
        servers[f"c, {slots} slots"] = partial(serve_engine, other)
    found: dict[str, Any] = {}
    for load in LOADS:
        runs: dict[str, list[Any]] = {name: [] for name in servers}
        for seed in range(repeats):
            rng = np.random.default_rng([seed, int(100 * load)])
            arrivals = np.cumsum(rng.exponential(1 / (load * capacity), count))
            puzzles = data.inputs[rng.integers(len(data.inputs), size=count)]
            for name, serve in servers.items():
                runs[name].append(np.quantile(serve(puzzles, arrivals), (0.5, 0.95)))
        found[str(load)] = {
            name: {"p50": [float(p[0]) for p in each], "p95": [float(p[1]) for p in each]}
            for name, each in runs.items()
        }
    return found


def latency_table(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["| load | | p50, ms | p95, ms |", "|---|---|---|---|"]
    for load, by_name in found.items():
        for name, numbers in by_name.items():
            cells = (
                f"{1000 * np.median(numbers[p]):.0f} [{1000 * min(numbers[p]):.0f}, {1000 * max(numbers[p]):.0f}]"
                for p in ("p50", "p95")
            )
            lines.append(f"| {load} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- overhead


@contextlib.contextmanager
def timed_steps(device: torch.device) -> Iterator[list[float]]:
    """Note the seconds of every supervision step of any model."""
    original, seconds = Model.step, []

    def step(self: Model, state: Any, batch: Batch) -> Any:
        wait_for(device)
        begun = time.perf_counter()
        result = original(self, state, batch)
        wait_for(device)
        seconds.append(time.perf_counter() - begun)
        return result

    Model.step = step  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Model.step = original  # type: ignore[method-assign]


def overhead(solver: Solver, data: Examples, rounds: int) -> dict[str, Any]:
    """The share of time outside of the model's step: its mean over the rounds and the interval of that."""
    found = {}
    for name in ("c", "c'"):
        shares = []
        for _ in range(rounds):
            with timed_steps(solver.device) as seconds:
                begun = time.perf_counter()
                policies(solver)[name](solver, data.inputs)
                whole = time.perf_counter() - begun
            shares.append(1 - sum(seconds) / whole)
        found[name] = {"share": float(np.mean(shares)), "interval_95": bootstrap(shares), "steps": len(seconds)}
    return found


# ---------------------------------------------------------------- all of it


def report(model: str, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure a model: everything, and the same as Markdown."""
    solver, data = held_out(loopwise.load(model, slots=args.slots, device=args.device), args.puzzles)
    speed = throughput(solver, data, args.rounds)
    outside = overhead(solver, data, max(2, args.rounds // 2))
    capacity = speed["a"]["puzzles_a_second"]
    waits = latency(solver, data, capacity, args.arrivals, args.repeats, args.fewer_slots)
    shares = {name: [100 * end for end in row["interval_95"]] for name, row in outside.items()}
    machine = f"{args.slots} slots, {torch.get_num_threads()} threads, torch {torch.__version__}, {solver.device}"
    text = [
        f"## {model}: {len(data.inputs):,} test puzzles, {args.rounds} rounds",
        throughput_table(speed),
        f"The checkpoint was trained with {solver.trained_steps} steps at most; under (c) it halts after "
        f"{speed['c']['mean_steps']:.2f} on average, {100 * speed['c']['at_limit']:.1f} % of the puzzles take all.",
        f"### Latency, {args.repeats} times {args.arrivals:,} Poisson arrivals, load 1 = {capacity:.1f} puzzles/s",
        latency_table(waits),
        "### Time outside of the model's step",
        "; ".join(f"({name}) {within(100 * row['share'], shares[name])} %" for name, row in outside.items()) + ".",
        f"{machine}, {platform.machine()}, data sha256 {cache.fingerprint(data)}.",
    ]
    record = {"model": model, "trained_steps": solver.trained_steps, "machine": machine, "options": vars(args).copy()}
    record |= {"throughput": speed, "latency": waits, "overhead": outside}
    return record, "\n\n".join(text) + "\n"


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["sudoku-6x6", "sorting"], help="checkpoints or shipped models")
    parser.add_argument("--puzzles", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--arrivals", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--fewer-slots", type=int, nargs="*", default=[16], help="for latency also these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="see that it runs: few puzzles, two rounds")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.puzzles, args.rounds, args.arrivals, args.repeats = 192, 2, 40, 1
    torch.set_num_threads(args.threads)
    texts, records = [], []
    for model in args.model:
        record, text = report(model, args)
        print(text, flush=True)
        records.append(record)
        texts.append(text)
    if args.markdown:
        args.markdown.write_text("\n".join(texts), encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(records, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
