"""Deep supervision in carry space: one optimizer step is one supervision step of every slot.

A slot keeps its puzzle and its detached state from one optimizer step to the next until it halts; then it takes a fresh
puzzle. So a batch mixes puzzles that have just been met with puzzles that have been thought about for fifteen steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from loopwise.data.stream import Stream
from loopwise.errors import TrainingError
from loopwise.reasoners.base import GradientPolicy, Reasoner, State
from loopwise.reasoners.carry import Carry, disturb, empty_carry, refill
from loopwise.reasoners.halting import HaltingPolicy, Judged
from loopwise.runtime import generator
from loopwise.training.config import TrainingConfig
from loopwise.training.ema import MovingAverage
from loopwise.training.losses import answer_loss, rightness, row_losses
from loopwise.training.optimizers import AdamATan2, SparseSignSGD, learning_rate
from loopwise.types import Batch, Json, Prediction

__all__ = ["StepMetrics", "Trainer"]


class StepMetrics(NamedTuple):
    """What one optimizer step showed. Accuracies are over the slots that halted in it, as published; with several
    starts of a puzzle, over those that learned.
    """

    loss: float  # of the answer, the reasoner's own, and the weighted one of halting, per slot
    answer_loss: float
    halting_loss: float
    hint_loss: float
    finished: int  # slots that halted
    exact: int  # of these, with an answer that is right
    halting_right: int  # of these, with a halting logit that says so
    tokens: float  # sum over the finished of the share of asked positions that are right
    steps: int  # sum over the finished of the steps they had
    lr: float


class _Learning(NamedTuple):
    """The slots that learn in a step, and what they are asked for, each [B, L]."""

    slots: Carry  # all of them, or one of the starts of each puzzle
    known: Tensor  # of the answer
    hints: Tensor | None
    advanced: State | None  # of all slots after the step, where only some learn


class Trainer:
    """Owns the slots, the optimizers, the moving average and the randomness of one process."""

    def __init__(
        self,
        reasoner: Reasoner[Any],
        gradient: GradientPolicy[Any],
        halting: HaltingPolicy[Any],
        stream: Stream,
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.gradient = gradient
        self.halting = halting
        self.stream = stream
        self.reasoner = reasoner.to(accelerator.device).train()
        self.ema = MovingAverage(self.reasoner)
        self.optimizers = list(_optimizers(self.reasoner, config))
        self.step = 0
        self.slots = config.batch_size // accelerator.num_processes
        self.rng = generator("cpu", config.seed, accelerator.process_index)  # whose state fits any device
        self.carry = self._free_slots()

    def _free_slots(self) -> Carry:
        row = torch.zeros(self.slots, self.reasoner.spec.length, dtype=torch.int64, device=self.accelerator.device)
        return empty_carry(self.reasoner, Batch(row, row.clone(), row[:, 0].clone()))

    def train_step(self) -> StepMetrics:
        """One supervision step of every slot, one optimizer step.

        Raises TrainingError, before any weight is touched, when the loss is not a finite number.
        """
        self.carry = self._start_step()
        slots, known, hints, advanced = self._learning()
        state, prediction, ponder = self.halting.step(self.reasoner, slots.state, slots.batch, self.gradient)
        answer, right, follows = answer_loss(self.config.loss, prediction.logits, known)
        hint, correct = torch.zeros_like(answer), follows
        if hints is not None:
            right, correct = rightness(prediction.logits, slots.batch.labels)
            hint, _, told = answer_loss(self.config.loss, prediction.hint_logits, hints)
            follows = follows & told if self.config.hint_weight else follows
        halting = self.halting.loss(
            Judged(
                prediction=prediction,
                ponder=ponder,
                correct=correct,
                steps=slots.steps + 1,
                following=lambda: self._following(state, slots.batch),
                training_step=self.step,
            )
        )
        loss = answer + prediction.own_loss.sum() + self.halting.config.weight * halting
        loss = loss + self.config.hint_weight * hint
        (loss / (self.config.batch_size // self.config.starts)).backward()
        self._sum_gradients()
        self._guard(loss)
        lr = self._update()
        learned = self._advance(slots, state, prediction)
        if self.config.evict:
            learned = learned._replace(halted=learned.halted | ~follows)
        self.carry = learned if advanced is None else self._all_starts(advanced, learned)
        return self._metrics(learned, prediction, right, correct, (loss, answer, halting, hint), lr)

    @torch.no_grad()
    def _learning(self) -> _Learning:
        """All slots; of several starts of a puzzle the one whose answer the step brings nearest to right."""
        known, hints = self._asked()
        if self.config.starts == 1:
            return _Learning(self.carry, known, hints, None)
        state, prediction, _ = self.halting.step(self.reasoner, self.carry.state, self.carry.batch, self.gradient)
        losses = row_losses(self.config.loss, prediction.logits, known).view(-1, self.config.starts)
        rows = torch.arange(len(losses), device=losses.device) * self.config.starts + losses.argmin(-1)
        return _Learning(_rows(self.carry, rows), known[rows], None if hints is None else hints[rows], state)

    def _all_starts(self, state: State, learned: Carry) -> Carry:
        """The slots after a race: all have advanced, and halt with the one of their puzzle that learned."""
        halted = learned.halted.repeat_interleave(self.config.starts)
        return Carry(state, self.carry.steps + 1, halted, self.carry.batch)

    def _asked(self) -> tuple[Tensor, Tensor | None]:
        """What the puzzles are asked for at this step, each [B, L]: of the answer, and the hints if there are any."""
        batch, task = self.carry.batch, self.stream.task
        if not task.spec.hints:
            return batch.labels, None
        rows = batch.inputs.cpu().numpy(), batch.labels.cpu().numpy(), (self.carry.steps + 1).tolist()
        known = np.stack([task.known(puzzle, labels, steps) for puzzle, labels, steps in zip(*rows, strict=True)])
        hints = np.stack([task.hints(puzzle, steps) for puzzle, _, steps in zip(*rows, strict=True)])
        told = torch.as_tensor(np.stack([known, hints]), dtype=torch.int64, device=batch.labels.device)
        return told[0], told[1]

    @torch.no_grad()
    def _start_step(self) -> Carry:
        """The slots with a fresh puzzle where one has halted, with noise in the states, and as far ahead as drawn."""
        fresh = self.carry.halted
        carry = refill(self.reasoner, self.carry, self._incoming(), fresh)
        state = carry.state
        if self.config.random_init:
            state = disturb(state, self.config.random_init, self.rng, instead=fresh)
        if self.config.noise:
            state = disturb(state, self.config.noise, self.rng)
        if self.config.progressive:
            ahead = int(torch.randint(self.config.progressive + 1, (), generator=self.rng))
            for _ in range(ahead):
                state = self.halting.step(self.reasoner, state, carry.batch, self.gradient).state
            carry = carry._replace(steps=carry.steps + ahead)
        return carry._replace(state=state)

    @torch.no_grad()
    def _following(self, state: State, batch: Batch) -> Prediction:
        """What the next step would predict, from the state that this one came to."""
        return self.halting.step(self.reasoner, state, batch, self.gradient).prediction

    def _incoming(self) -> Batch:
        """A fresh puzzle for each free slot, or for so many as `starts`; the other rows are whatever stands there."""
        free = self.carry.halted.nonzero().squeeze(-1)
        rows = self.stream.take(len(free) // self.config.starts)
        batch = Batch(*(column.clone() for column in self.carry.batch))
        for column, new in zip(batch, rows, strict=True):
            each = np.repeat(new, self.config.starts, axis=0)
            column[free] = torch.as_tensor(each, dtype=torch.int64, device=column.device)
        return batch

    def _guard(self, loss: Tensor) -> None:
        """Stop before a loss or a gradient that is no finite number can touch the weights."""
        gradients = [p.grad for p in self.reasoner.parameters() if p.grad is not None]
        dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        total = torch.stack(torch._foreach_norm(dense)).sum() + self.accelerator.reduce(loss.detach())
        if not torch.isfinite(total).item():
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            raise TrainingError(
                f"the loss ({loss.item():.4g}) or its gradient is no finite number at step {self.step + 1}; the last "
                "saved state is kept: resume from it with a lower --training.lr, or train with --training.dtype float32"
            )

    def _update(self) -> float:
        """One optimizer step with the gradient of all processes; returns the learning rate."""
        self.step += 1
        c = self.config
        if c.clip:
            table = self.reasoner.puzzle_table()
            torch.nn.utils.clip_grad_norm_([p for p in self.reasoner.parameters() if p is not table], c.clip)
        scale = learning_rate(self.step, 1.0, c.warmup_steps, c.steps, c.lr_end)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak"]
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(c.ema if self.step > c.ema_from else 0.0)
        return scale * c.lr

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes; one call for the dense ones, one for the rows of the table."""
        if self.accelerator.num_processes == 1:
            return
        table = self.reasoner.puzzle_table()
        dense = [p.grad for p in self.reasoner.parameters() if p is not table and p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in dense]))
        parts = flat.split([g.numel() for g in dense])
        torch._foreach_copy_(dense, [part.view_as(g) for part, g in zip(parts, dense, strict=True)])
        if table is not None and table.grad is not None:
            ids = self.accelerator.gather(table.grad._indices()[0])
            rows = self.accelerator.gather(table.grad._values())
            table.grad = torch.sparse_coo_tensor(ids.unsqueeze(0), rows, table.shape)

    def _advance(self, slots: Carry, state: State, prediction: Prediction) -> Carry:
        """The slots after their step, with those halted whose policy says so."""
        steps = slots.steps + 1
        with torch.no_grad():
            least = self.halting.explore(len(steps), self.rng).to(steps.device)
            halted = self.halting.halt(prediction, steps, least) | (self.config.progressive > 0)
        return Carry(state, steps, halted, slots.batch)

    @torch.no_grad()
    def _metrics(
        self,
        learned: Carry,
        prediction: Prediction,
        right: Tensor,
        correct: Tensor,
        losses: tuple[Tensor, ...],
        lr: float,
    ) -> StepMetrics:
        halted = learned.halted
        asked = (learned.batch.labels >= 0).sum(-1).clamp(min=1)
        tokens = (right.sum(-1) / asked)[halted].sum()
        said = (prediction.halt_logits >= 0) == correct
        columns = [t.float() / len(halted) for t in losses]
        columns += [t.float() for t in (halted.sum(), correct[halted].sum(), said[halted].sum(), tokens)]
        columns += [learned.steps[halted].sum().float()]
        loss, answer, halting, hint, finished, exact, halting_right, token_share, steps = torch.stack(columns).tolist()
        return StepMetrics(
            loss, answer, halting, hint, int(finished), int(exact), int(halting_right), token_share, int(steps), lr
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Everything that the next step depends on, as tensors and as JSON."""
        tensors = {f"model.{name}": t for name, t in self.reasoner.state_dict().items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        tensors |= dict(_carry_tensors(self.carry))
        tensors["rng"] = self.rng.get_state()
        numbers: dict[str, Json] = {"step": self.step, "stream": self.stream.state_dict()}
        for i, optimizer in enumerate(self.optimizers):
            for key, entry in optimizer.state_dict()["state"].items():
                for name, value in entry.items():
                    target = tensors if isinstance(value, Tensor) else numbers
                    target[f"optimizer.{i}.{key}.{name}"] = value
        return tensors, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Json]) -> None:
        """Continue from what `state` returned. Raises KeyError or RuntimeError when it does not fit."""
        self.reasoner.load_state_dict(_under("model.", tensors))
        self.ema.load_state_dict(_under("ema.", tensors))
        for i, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            saved["state"] = _optimizer_state(f"optimizer.{i}.", {**numbers, **tensors})
            optimizer.load_state_dict(saved)
        free = self._free_slots()
        columns = {name: tensors[name].to(t.device) for name, t in _carry_tensors(free)}
        for name, tensor in _carry_tensors(free):
            if columns[name].shape != tensor.shape:
                raise RuntimeError(f"{name} is {list(columns[name].shape)}, this run has {list(tensor.shape)}")
        self.carry = Carry(
            state=type(free.state)(*(columns[f"carry.state.{i}"] for i in range(len(free.state)))),
            steps=columns["carry.steps"],
            halted=columns["carry.halted"],
            batch=Batch(*(columns[f"carry.batch.{i}"] for i in range(len(free.batch)))),
        )
        self.rng.set_state(tensors["rng"])
        self.stream.load_state_dict(numbers["stream"])
        self.step = numbers["step"]


def _rows(slots: Carry, rows: Tensor) -> Carry:
    """Some of the slots, by their numbers."""
    state = type(slots.state)(*(t[rows] for t in slots.state))
    return Carry(state, slots.steps[rows], slots.halted[rows], Batch(*(t[rows] for t in slots.batch)))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _carry_tensors(carry: Carry) -> Iterator[tuple[str, Tensor]]:
    # Copies: tensors of a state may share memory, which a file cannot hold.
    yield from ((f"carry.state.{i}", t.clone()) for i, t in enumerate(carry.state))
    yield from ((f"carry.batch.{i}", t) for i, t in enumerate(carry.batch))
    yield from (("carry.steps", carry.steps), ("carry.halted", carry.halted))


def _optimizer_state(prefix: str, entries: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in entries.items():
        if name.startswith(prefix):
            key, _, field = name[len(prefix) :].partition(".")
            state.setdefault(int(key), {})[field] = value
    return state


def _optimizers(reasoner: Reasoner[Any], config: TrainingConfig) -> Iterator[Optimizer]:
    """The optimizers of the networks and of the puzzle table, each group with its peak learning rate."""
    table = reasoner.puzzle_table()
    dense = [p for p in reasoner.parameters() if p is not table]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        inside = {id(p): p for network in reasoner.networks() for p in network.parameters() if p.dim() == 2}
        dense = [p for p in dense if id(p) not in inside]
        yield _with_peak(
            torch.optim.Muon(list(inside.values()), lr=config.muon_lr, weight_decay=config.weight_decay), config.muon_lr
        )
    if config.optimizer == "adam-atan2":
        yield _with_peak(AdamATan2(dense, config.lr, betas, config.weight_decay), config.lr)
    else:
        adamw = torch.optim.AdamW(dense, config.lr, betas, weight_decay=config.weight_decay, foreach=True)
        yield _with_peak(adamw, config.lr)
    if table is not None:
        yield _with_peak(SparseSignSGD([table], config.puzzle_lr, config.puzzle_weight_decay), config.puzzle_lr)


def _with_peak(optimizer: Optimizer, peak: float) -> Optimizer:
    for group in optimizer.param_groups:
        group["peak"] = peak
    return optimizer
