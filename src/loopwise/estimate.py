"""What a run will cost, before it is started: FLOPs and bytes of its steps, memory, and time on this machine.

One training step and one solving step are run with the configuration's own shapes on one and on two puzzles, and
counted: FLOPs of matrix products, bytes that all other kernels read and write, calls of kernels, bytes alive. All of
these grow with the batch in a straight line, so two points tell them for any batch. The time is the sum of three terms,
each with its measured ceiling:

    seconds = FLOPs / (FLOP/s)  +  bytes / (bytes/s)  +  calls x seconds of a call

It is that of the plain path; fusing kernels (`--training.compile`) takes most of the second term and some of the third
away. What data decide (when slots halt, how long a search takes) is that of fresh weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from loopwise.data.stream import Stream
from loopwise.reasoners.costs import Meter, counting
from loopwise.runs import RunConfig, build
from loopwise.runtime import Ceilings
from loopwise.tasks.base import Task
from loopwise.training.trainer import Trainer
from loopwise.types import Batch, Examples

__all__ = ["Cost", "Estimate", "estimate"]


class Cost(NamedTuple):
    """What one step of a batch needs."""

    flops: float  # of matrix products and attention
    traffic: float  # bytes read and written by all other kernels
    calls: float  # of kernels
    memory: float  # most bytes alive at a time, beside the weights

    def seconds(self, ceilings: Ceilings) -> tuple[float, float, float]:
        """The three terms of the time: matrix products, traffic, calls."""
        return self.flops / ceilings.flops, self.traffic / ceilings.traffic, self.calls * ceilings.call


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The costs of a run."""

    parameters: int
    puzzle_parameters: int
    training: Cost
    """One optimizer step: a supervision step of every slot, forward and backward, and the update of the weights."""
    solving: Cost
    """One supervision step of as many puzzles."""
    weights: float
    """Bytes of weights, their average, gradients and the optimizer's moments."""
    steps: int

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole run, evaluations left out."""
        return self.steps * self.training.flops


def estimate(config: RunConfig) -> Estimate:
    """Count the steps of a run. Nothing is trained, read or generated, and no weight is kept."""
    batch = config.training.batch_size
    least = config.training.starts
    few, more = _Counted(config, least), _Counted(config, 2 * least)
    costs = [
        Cost(*(_line(least, a, 2 * least, b, batch) for a, b in zip(*pair, strict=True)))
        for pair in zip(few.counts(), more.counts(), strict=True)
    ]
    # With one or two puzzles the gradients outweigh what the puzzles need.
    fewer, many = _Counted(config, 4 * least), _Counted(config, 8 * least)
    peaks = [_line(4 * least, a, 8 * least, b, batch) for a, b in zip(fewer.peaks(), many.peaks(), strict=True)]
    training, solving = (cost._replace(memory=peak) for cost, peak in zip(costs, peaks, strict=True))
    ahead = config.training.progressive / 2  # steps without gradient, on average
    training = training._replace(
        flops=training.flops + ahead * solving.flops,
        traffic=training.traffic + ahead * solving.traffic,
        calls=training.calls + ahead * solving.calls,
    )
    own, table = few.model.reasoner.num_parameters()
    return Estimate(
        parameters=own,
        puzzle_parameters=table,
        training=training,
        solving=solving,
        weights=few.weights(),
        steps=config.training.steps,
    )


def _line(x: int, at_x: float, y: int, at_y: float, batch: int) -> float:
    """The value at `batch` of the straight line through two points."""
    return at_x + (at_y - at_x) * (batch - x) / (y - x)


class _Counted:
    """A run of a few puzzles, to be counted."""

    def __init__(self, config: RunConfig, batch: int) -> None:
        training = replace(config.training, batch_size=batch, progressive=0)  # whose number of steps is drawn
        self.model = model = build(replace(config, training=training))
        accelerator = Accelerator(cpu=training.device == "cpu")
        blank = _Blank(model.task)
        self.trainer = Trainer(model.reasoner, model.gradient, model.halting, blank, training, accelerator)
        tokens = torch.zeros(batch, model.task.spec.length, dtype=torch.int64, device=accelerator.device)
        self.puzzles = Batch(tokens, tokens, tokens[:, 0])
        self.state = model.reasoner.init_state(*tokens.shape)

    @torch.no_grad()
    def solve(self) -> None:
        """A solving step."""
        self.model.step(self.state, self.puzzles)

    def counts(self) -> list[Cost]:
        """The costs, but for the memory, of a training step and of a solving step."""
        self.trainer.train_step()  # the first makes the optimizer's moments
        found = []
        for step in (self.trainer.train_step, self.solve):
            # Counted apart: for the FLOPs, attention is taken apart into products, and calls and traffic are others.
            with counting() as counter:
                step()
            with Meter() as meter:
                step()
            found.append(Cost(counter.get_total_flops(), meter.traffic, meter.calls, memory=0.0))
        return found

    def peaks(self) -> list[float]:
        """Most bytes alive in a training step, the optimizer's left out, and in a solving step."""
        self.trainer.optimizers = []
        found = []
        for step in (self.trainer.train_step, self.solve):
            with Meter() as meter:
                step()
            found.append(float(meter.peak))
        return found

    def weights(self) -> float:
        """Bytes of the weights, their average, their gradients and the moments, once a step has been made."""
        states = [entry for optimizer in self.trainer.optimizers for entry in optimizer.state.values()]
        moments = [value for entry in states for value in entry.values() if isinstance(value, Tensor)]
        return float(3 * sum(map(_bytes, self.model.reasoner.parameters())) + sum(map(_bytes, moments)))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Blank(Stream):
    """A stream of empty puzzles, without data."""

    def __init__(self, task: Task[Any]) -> None:
        self.task = task

    def take(self, count: int) -> Examples:
        """`count` rows of zeros."""
        rows = np.zeros((count, self.task.spec.length), dtype=np.int32)
        return Examples(rows, rows, rows[:, 0])
