"""What each gradient policy costs, and how far its gradient is from the whole one.

python benchmarks/gradients.py [--quick] [--markdown FILE] [--train-steps N] [--tasks ...] [--reasoners ...]

For TRM and HRM on sorting and on 6x6 Sudoku, with fresh weights, after the first steps of the recipe's own training,
and with the weights that come with loopwise where there are any. All numbers are of one supervision step of one batch
of training puzzles, forward and backward, that have had `--thought` steps before it; loss and halting are the recipe's.

    cosine     of the gradient to that of full-bptt, over all parameters but the puzzle table; mean +- deviation over
               the batches. 1 is the same direction, 0 no relation
    in core    the same over the recursive networks alone: the heads' gradient is exact under any truncation
    norm       of the gradient, relative to that of full-bptt, over all parameters
    FLOPs      of forward and backward (torch's counter), relative to full-bptt
    kept       MiB of tensors alive between forward and backward, whoever holds them (autograd's own hook for saved
               tensors does not see what `checkpointed` holds)
    peak       most MiB of tensors alive in forward and backward; not the memory of the process, which also holds
               weights, allocator and interpreter
    residual   |F(z) - z| / |F(z)| of the state that the policy came to, F being one cycle: how far it is from a fixed
               point; mean over the puzzles

`phantom` and `implicit` (default options) search for a fixed point, so that their forward pass, and their loss, is
another: where the residual stays large there was none to be found, and the cosine says little.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from loopwise import models
from loopwise.checkpoint import Model, load_model
from loopwise.data import cache
from loopwise.data.stream import Stream
from loopwise.reasoners.base import GradientPolicy, State, detach
from loopwise.reasoners.costs import Meter, counting
from loopwise.reasoners.fixed_point import relative_residual
from loopwise.reasoners.gradients import (
    Checkpointed,
    FullBPTT,
    Implicit,
    LastCycle,
    LastUpdates,
    LastUpdatesConfig,
    Phantom,
)
from loopwise.reasoners.halting import Judged
from loopwise.recipes import find, with_parts
from loopwise.runs import RunConfig, build
from loopwise.training.losses import Loss, answer_loss
from loopwise.training.trainer import Trainer
from loopwise.types import Batch

POLICIES: dict[str, GradientPolicy[Any]] = {
    "last-updates, k = 1": LastUpdates(LastUpdatesConfig(k=1)),
    "last-updates, k = 2": LastUpdates(LastUpdatesConfig(k=2)),
    "last-cycle": LastCycle(),
    "full-bptt": FullBPTT(),
    "checkpointed": Checkpointed(),
    "phantom": Phantom(),
    "implicit": Implicit(),
}
HEADER = ("policy", "cosine", "in core", "norm", "FLOPs", "kept", "peak", "residual")
MIB = 2**20


class Case(NamedTuple):
    """A model with the batches to measure it on."""

    title: str
    model: Model
    loss: Loss
    batches: list[Batch]
    thought: int


class Gradient(NamedTuple):
    """The gradient of a step as one vector, its part in the recursive networks, and the state of the step."""

    whole: Tensor
    core: Tensor
    state: State


class Start(NamedTuple):
    """What a step of a batch begins with, the same for all policies."""

    batch: Batch
    state: State
    following: Callable[[], Any]


def configuration(task: str, reasoner: str, hidden: int, layers: int) -> RunConfig:
    """The recipe of the task with the reasoner at the given size."""
    config = with_parts(find(task), reasoner=reasoner)
    sizes = {"hidden_size": hidden, "num_layers": layers, "H_layers": layers, "L_layers": layers}
    names = {field.name for field in dataclasses.fields(config.reasoner_config)}
    options = {name: size for name, size in sizes.items() if name in names}
    training = dataclasses.replace(config.training, device="cpu", dtype="float32")
    return dataclasses.replace(
        config, reasoner_config=dataclasses.replace(config.reasoner_config, **options), training=training
    )


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Every model in turn."""
    for task in args.tasks:
        for name in args.reasoners:
            config = configuration(task, name, args.hidden, args.layers)
            model = build(config)
            data = cache.examples(model.task, "train")
            loss = config.training.loss
            stream = Stream(model.task, data, 1)
            batches = [
                Batch(*(torch.as_tensor(column, dtype=torch.int64) for column in stream.take(args.batch)))
                for _ in range(args.batches)
            ]
            networks, _ = model.reasoner.num_parameters()
            title = f"{name} on {task}, {networks:,} parameters"
            yield Case(f"{title}, fresh weights", model, loss, batches, args.thought)
            if args.train_steps:
                feed = Stream(model.task, data, config.training.seed)
                parts = (model.reasoner, model.gradient, model.halting, feed, config.training)
                trainer = Trainer(*parts, Accelerator(cpu=True))
                losses = [trainer.train_step().answer_loss for _ in range(args.train_steps)]
                told = f"after {args.train_steps} steps (answer loss {losses[0]:.2f} -> {losses[-1]:.2f})"
                yield Case(f"{title}, {told}", model, loss, batches, args.thought)
            if (name, args.hidden, args.layers) == ("trm", 64, 2):
                shipped, notes = load_model(models.shipped()[task])
                told = f"the weights that come with loopwise ({notes['step']:,} steps)"
                yield Case(f"{title}, {told}", shipped, loss, batches, args.thought)


@torch.no_grad()
def begin(case: Case, batch: Batch) -> Start:
    """Think about a batch for `thought` steps; look one step further than the one that is measured."""
    reasoner, policy = case.model.reasoner, FullBPTT()
    state = reasoner.init_state(*batch.inputs.shape)
    for _ in range(case.thought):
        state, _ = reasoner(state, batch, policy)
    after, _ = reasoner(state, batch, policy)
    following = reasoner(after, batch, policy)[1]
    return Start(batch, state, lambda: following)


def loss_of(case: Case, start: Start, policy: GradientPolicy[Any]) -> tuple[Tensor, State]:
    """The loss of a step as the trainer has it, and the state behind the step."""
    state, prediction = case.model.reasoner(start.state, start.batch, policy)
    answer, _, correct = answer_loss(case.loss, prediction.logits, start.batch.labels)
    steps = torch.full_like(start.batch.puzzle_ids, case.thought + 1)
    halting = case.model.halting
    judged = Judged(prediction, torch.ones_like(prediction.halt_logits), correct, steps, start.following, 0)
    return (answer + halting.config.weight * halting.loss(judged)) / len(steps), state


def gradient_of(case: Case, start: Start, policy: GradientPolicy[Any]) -> Gradient:
    """Forward and backward."""
    reasoner = case.model.reasoner
    leaves = [p for p in reasoner.parameters() if p is not reasoner.puzzle_table()]
    inside = {id(p) for network in reasoner.networks() for p in network.parameters()}
    loss, state = loss_of(case, start, policy)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    parts = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(leaves, found, strict=True)]
    core = [part for part, p in zip(parts, leaves, strict=True) if id(p) in inside]
    return Gradient(torch.cat(parts), torch.cat(core), state)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors, in float64."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def flops_of(case: Case, start: Start, policy: GradientPolicy[Any]) -> int:
    """Of forward and backward; torch's counter knows attention in its plain form only."""
    with counting() as counter:
        gradient_of(case, start, policy)
    return int(counter.get_total_flops())


def memory_of(case: Case, start: Start, policy: GradientPolicy[Any]) -> tuple[int, int]:
    """(bytes of tensors between the passes, most bytes in both)."""
    with Meter() as memory:
        loss, state = loss_of(case, start, policy)
        kept = memory.alive
        parameters = [p for p in case.model.reasoner.parameters() if p is not case.model.reasoner.puzzle_table()]
        torch.autograd.grad(loss, parameters, allow_unused=True)
    del state
    return kept, memory.peak


@torch.no_grad()
def residual_of(case: Case, batch: Batch, state: State) -> float:
    """How far a state is from a fixed point of one cycle."""
    reasoner = case.model.reasoner
    after = detach(state)
    for update in reasoner.recursion(reasoner.encode(batch)).cycle:
        after = update(after)
    new, old = (torch.cat([tensor.flatten(1) for tensor in s], dim=1) for s in (after, state))
    return relative_residual(new, old).mean().item()


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def measure(case: Case) -> list[tuple[str, ...]]:
    """One row of the table for each policy."""
    starts = [begin(case, batch) for batch in case.batches]
    whole = [gradient_of(case, start, FullBPTT()) for start in starts]
    flops = flops_of(case, starts[0], FullBPTT())
    rows: list[tuple[str, ...]] = []
    for name, policy in POLICIES.items():
        found = [gradient_of(case, start, policy) for start in starts]
        pairs = list(zip(found, whole, strict=True))
        kept, peak = memory_of(case, starts[0], policy)
        residuals = [residual_of(case, start.batch, g.state) for start, g in zip(starts, found, strict=True)]
        rows.append(
            (
                name,
                spread([cosine(a.whole, b.whole) for a, b in pairs]),
                spread([cosine(a.core, b.core) for a, b in pairs]),
                spread([(a.whole.norm() / b.whole.norm()).item() for a, b in pairs]),
                f"{flops_of(case, starts[0], policy) / flops:.2f}",
                f"{kept / MIB:.1f}",
                f"{peak / MIB:.1f}",
                f"{statistics.mean(residuals):.1e}",
            )
        )
    return rows


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, in columns that can be read as they stand."""
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    rule = tuple("-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    lines = []
    for row in (HEADER, rule, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Bias and cost of the gradient policies.")
    parser.add_argument("--tasks", nargs="+", default=["sorting", "sudoku-6x6"], help="recipes")
    parser.add_argument("--reasoners", nargs="+", default=["trm", "hrm"])
    parser.add_argument("--hidden", type=int, default=64, help="hidden size")
    parser.add_argument("--layers", type=int, default=2, help="blocks of each network")
    parser.add_argument("--batch", type=int, default=16, help="puzzles of a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches to average over")
    parser.add_argument("--thought", type=int, default=1, help="supervision steps before the measured one")
    parser.add_argument("--train-steps", type=int, default=200, help="0 leaves out the trained models")
    parser.add_argument("--quick", action="store_true", help="few steps and small batches: to see that it runs")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.batches, args.train_steps = 8, 2, 10
    torch.set_num_threads(1)
    begun = time.process_time()
    parts = []
    for case in cases(args):
        part = f"### {case.title}\n\n{table(measure(case))}\n"
        parts.append(part)
        print(part, flush=True)
    told = f"{args.batches} batches of {args.batch}, after {args.thought} steps of thought, torch {torch.__version__}"
    parts.append(f"{told}, {time.process_time() - begun:.0f} s of one core.\n")
    print(parts[-1])
    if args.markdown:
        args.markdown.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
