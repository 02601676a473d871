"""Families side by side: the same data, the same number of parameters, and the same steps or the same training FLOPs.

A contender is a reasoner under the policies of its paper. Its hidden size is chosen so that it has as many parameters
as the recipe's own model, within 5 %. It trains at a constant rate, and its averaged weights are measured twice on the
test split: after the given number of optimizer steps, and after as many training FLOPs as the recipe's own model needs
for these steps. The rate is chosen for each contender among a few, by its accuracy on the validation split in a run of
its own of half as many steps. Every finished run is a JSON file, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from loopwise.checkpoint import Model
from loopwise.config import to_json
from loopwise.data import cache
from loopwise.data.stream import Stream
from loopwise.errors import ConfigError
from loopwise.evaluation import evaluate
from loopwise.reasoners.costs import counting
from loopwise.recipes import find, with_parts
from loopwise.runs import RunConfig, build
from loopwise.storage import json_digest, read_json, write_json
from loopwise.training.trainer import Trainer
from loopwise.types import Batch, Examples, Json

__all__ = ["CONTENDERS", "Contender", "Plan", "compare", "contender_run"]

TOLERANCE = 0.05
COUNT_EVERY = 50
"""Optimizer steps between two that are counted; what a search for a fixed point costs changes as it is trained."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A family, as it enters a comparison."""

    reasoner: str
    one_step: bool = False
    """Whether it answers in one supervision step, as in its paper, and not in the loop's many."""
    halting: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reasoner that make it comparable: as many blocks as the recipe's own, and as many updates."""
    gradient_options: dict[str, Any] = field(default_factory=dict)


CONTENDERS: dict[str, Contender] = {
    "trm": Contender(reasoner="trm"),
    "hrm": Contender(reasoner="hrm", options={"H_layers": 1, "L_layers": 1}),
    "looped": Contender(reasoner="looped", options={"cycles": 6}),
    "feed-forward": Contender(reasoner="looped", one_step=True, halting="fixed", options={"cycles": 1}),
    "rnn": Contender(reasoner="rnn", options={"cycles": 2}),
    "deq": Contender(
        reasoner="deq", one_step=True, halting="fixed", gradient_options={"tolerance": 1e-2, "max_cycles": 12}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare."""

    tasks: tuple[str, ...]
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    shares: tuple[float, ...] = (1.0,)
    """Optimizer steps of the first measurement, as a share of the recipe's, for all tasks or for each. Those of trm fix
    the FLOPs of the second.
    """
    seeds: int = 3
    rates: tuple[float, ...] = (1.0, 0.3)
    """Learning rates to choose from, as multiples of the recipe's."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in self.contenders:
            if name not in CONTENDERS:
                raise ConfigError(f"unknown model {name!r}; known: {', '.join(CONTENDERS)}")
        if not self.tasks or not self.contenders:
            raise ConfigError("name at least one task, and at least one contender")
        if len(set(self.tasks)) < len(self.tasks) or len(set(self.contenders)) < len(self.contenders):
            raise ConfigError("name each task and each model once")
        for task in self.tasks:
            if find(task).reasoner != "trm":
                raise ConfigError(f"{task} is a recipe for {find(task).reasoner}; name one for trm")
        if len(self.shares) not in {1, len(self.tasks)}:
            raise ConfigError(f"give one share for all tasks, or {len(self.tasks)}, not {len(self.shares)}")
        if not all(0 < number < math.inf for number in (*self.shares, *self.rates)) or self.seeds < 1 or not self.rates:
            raise ConfigError("shares and rates must be more than 0, and seeds at least 1")


def contender_run(task: str, name: str) -> RunConfig:
    """The run of a contender on a recipe's task, with as many parameters as the recipe's own model, within 5 %.

    Raises ConfigError where no hidden size gives so many.
    """
    recipe, contender = find(task), CONTENDERS[name]
    run = with_parts(recipe, reasoner=contender.reasoner, halting=contender.halting)
    run = replace(
        run,
        reasoner_config=replace(run.reasoner_config, **contender.options),
        gradient_config=replace(run.gradient_config, **contender.gradient_options),
    )
    if contender.one_step:
        run = replace(run, halting_config=replace(run.halting_config, max_steps=1))
    training = replace(
        run.training, lr_end=1.0, ema=max(run.training.ema, 0.99), stop_at=1.1, device="cpu", dtype="float32"
    )
    return replace(_fit(run, _parameters(recipe)), training=training)


def _parameters(run: RunConfig) -> int:
    return build(run).reasoner.num_parameters()[0]


def _fit(run: RunConfig, wanted: int) -> RunConfig:
    """The run with the hidden size whose number of parameters is nearest to `wanted`."""
    step = 2 * getattr(run.reasoner_config, "num_heads", 1)

    def sized(size: int) -> RunConfig:
        return replace(run, reasoner_config=replace(run.reasoner_config, **{"hidden_size": size}))

    if abs(_parameters(run) / wanted - 1) <= TOLERANCE:
        return run
    size = step
    while _parameters(sized(size)) < wanted:
        size += step
    best = min((sized(s) for s in (size - step, size) if s), key=lambda r: abs(_parameters(r) / wanted - 1))
    if abs(_parameters(best) / wanted - 1) > TOLERANCE:
        raise ConfigError(f"no hidden size gives {run.reasoner} {wanted:,} parameters within {TOLERANCE:.0%}")
    return best


def compare(plan: Plan, folder: Path, say: Callable[[str], None]) -> list[dict[str, Json]]:
    """Make all runs that `folder` does not hold yet, seed after seed, and return the records of all."""
    records = []
    for i, task in enumerate(plan.tasks):
        steps = max(2, round(plan.shares[i % len(plan.shares)] * find(task).training.steps))
        runs = {name: contender_run(task, name) for name in dict.fromkeys(("trm", *plan.contenders))}
        places = {name: _Place(folder / task, task, name, steps, say) for name in runs}
        rates = {name: _choose_rate(places[name], run, plan.rates) for name, run in runs.items()}
        budget = 0.0
        for seed in range(plan.seeds):
            # The recipe's own family comes first: what its steps cost is what the others may spend.
            for name, run in runs.items():
                record = _measured(places[name], _seeded(run, seed, rates[name]), budget)
                budget = budget or record["at_steps"]["training_flops"]
                if name in plan.contenders:
                    records.append(record)
    return records


@dataclass(frozen=True)
class _Place:
    """Where the runs of a contender on a task are kept, and how long they are."""

    folder: Path
    task: str
    contender: str
    steps: int
    say: Callable[[str], None]

    def identity(self, run: RunConfig) -> dict[str, Json]:
        """What tells a run from others: its steps, and a digest of all its options."""
        configs = (run.task_config, run.reasoner_config, run.gradient_config, run.halting_config, run.training)
        names = [run.task, run.reasoner, run.gradient, run.halting]
        return {"steps": self.steps, "options": json_digest({"names": names, "configs": [*map(to_json, configs)]})}

    def read(self, file: Path, run: RunConfig) -> dict[str, Json]:
        """A finished run. Raises ConfigError where it is of another plan."""
        record: dict[str, Json] = read_json(file)
        if any(record.get(key) != value for key, value in self.identity(run).items()):
            raise ConfigError(f"{file} is of another plan, with other steps or options; choose another --out")
        return record


def _seeded(run: RunConfig, seed: int, rate: float) -> RunConfig:
    training = replace(run.training, seed=seed, lr=run.training.lr * rate)
    return replace(run, reasoner_config=replace(run.reasoner_config, **{"seed": seed}), training=training)


def _choose_rate(place: _Place, run: RunConfig, rates: tuple[float, ...]) -> float:
    """The rate with the best accuracy on the validation split, each tried in a run with a seed of its own."""
    if len(rates) == 1:
        return rates[0]
    scores = {}
    for rate in rates:
        trial = _seeded(run, 1000, rate)
        file = place.folder / f"{place.contender}-rate-{rate:g}.json"
        if not file.exists():
            arena = _Arena(trial)
            arena.train(place.steps // 2, 0.0)
            write_json(file, {**place.identity(trial), **arena.scores("validation")})
        record = place.read(file, trial)
        scores[rate] = (record["exact"], record["tokens"])
        place.say(f"{place.task} {place.contender}: rate {rate:g}, validation {100 * record['exact']:.1f} %")
    return max(rates, key=lambda rate: scores[rate])


def _measured(place: _Place, run: RunConfig, budget: float) -> dict[str, Json]:
    """The record of a run, made now where there is none yet; `budget` 0 means what the steps cost."""
    file = place.folder / f"{place.contender}-seed-{run.training.seed}.json"
    if not file.exists():
        arena = _Arena(run)
        # Whichever comes first is measured first; training goes on to the other.
        arena.train(place.steps, budget)
        first = "at_steps" if arena.trainer.step >= place.steps else "at_flops"
        points = {first: arena.point()}
        met = arena.trainer.step
        if first == "at_flops":
            arena.train(place.steps, 0.0)
        elif budget:
            arena.train(None, budget)
        second = "at_flops" if first == "at_steps" else "at_steps"
        points[second] = points[first] if arena.trainer.step == met else arena.point()
        write_json(
            file,
            {
                "task": place.task,
                "contender": place.contender,
                "parameters": arena.model.reasoner.num_parameters()[0],
                "hidden_size": getattr(run.reasoner_config, "hidden_size", None),
                "lr": run.training.lr,
                "seed": run.training.seed,
                **place.identity(run),
                **points,
            },
        )
    record = place.read(file, run)
    exact = [100 * record[point]["exact"] for point in ("at_steps", "at_flops")]
    place.say(
        f"{place.task} {place.contender}, seed {record['seed']}: "
        f"{exact[0]:.1f} % at equal steps, {exact[1]:.1f} % at equal FLOPs"
    )
    return record


class _Arena:
    """One run in the making."""

    def __init__(self, run: RunConfig) -> None:
        if run.training.threads:
            torch.set_num_threads(run.training.threads)
        self.model = build(run)
        self.flops = 0.0
        accelerator = Accelerator(cpu=True)
        training = run.training
        stream = Stream(
            self.model.task, cache.examples(self.model.task, "train"), training.seed,
            augment=training.augment, shorten=training.shorten,
        )  # fmt: skip
        m = self.model
        self.trainer = Trainer(m.reasoner, m.gradient, m.halting, stream, training, accelerator)
        self.step_flops = 0.0

    def train(self, steps: int | None, flops: float) -> None:
        """Train until a step number or an amount of training FLOPs is reached, whichever is given and comes first."""
        while (steps is None or self.trainer.step < steps) and not 0 < flops <= self.flops:
            if self.trainer.step % COUNT_EVERY == 0:
                with counting() as counter:
                    self.trainer.train_step()
                self.step_flops = float(counter.get_total_flops())
            else:
                self.trainer.train_step()
            self.flops += self.step_flops

    def averaged(self) -> Model:
        """The model with the averaged weights."""
        return replace(self.model, reasoner=self.trainer.ema.reasoner)

    def scores(self, split: Any) -> dict[str, Json]:
        """Exact accuracy and halting on a split."""
        model = self.averaged()
        data = cache.examples(model.task, split)
        result = evaluate(model, data)
        puzzles = result.puzzles
        return {
            "exact": result.exact_accuracy,
            "tokens": result.token_accuracy,
            "exact_first_step": result.exact[0] / puzzles,
            "halted_exact": result.halted_exact / puzzles,
            "halted_steps": result.halted_steps,
            "flops_per_step": _solving_flops(model, data),
            "puzzles": puzzles,
        }

    def point(self) -> dict[str, Json]:
        """The scores on the test split, and what they have cost so far."""
        return {"step": self.trainer.step, "training_flops": self.flops, **self.scores("test")}


@torch.no_grad()
def _solving_flops(model: Model, data: Examples, puzzles: int = 64) -> float:
    """FLOPs of the first supervision step of a puzzle, the mean over a batch of real ones with these weights."""
    rows = data.rows(slice(puzzles))
    inputs, labels, ids = (torch.tensor(np.array(column), dtype=torch.int64) for column in rows)
    batch = Batch(inputs, labels, ids)
    with counting() as counter:
        model.step(model.reasoner.init_state(*inputs.shape), batch)
    return float(counter.get_total_flops() / len(inputs))
