"""A training run, from its configuration to a folder with a trained model: builds the parts and joins them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType
from torch import Tensor

from loopwise.checkpoint import (
    CONFIG,
    WEIGHTS,
    Model,
    explained,
    read_model,
    read_parts,
    save_weights,
    write_config,
)
from loopwise.config import from_json, to_json
from loopwise.data import cache
from loopwise.data.stream import Stream
from loopwise.errors import CheckpointError, ConfigError, DataError
from loopwise.evaluation import evaluate
from loopwise.modelcard import model_card
from loopwise.models import find
from loopwise.reasoners.base import GradientConfig, GradientPolicy, Reasoner, ReasonerConfig
from loopwise.reasoners.compiling import compile_networks
from loopwise.reasoners.costs import count_flops
from loopwise.reasoners.halting import HaltingConfig, HaltingPolicy
from loopwise.registry import resolve, suggest
from loopwise.runtime import dtype_name, matmul_flops, resolve_device, resolve_dtype
from loopwise.storage import locked, read_tensors, write_text
from loopwise.tasks.base import Task, TaskConfig
from loopwise.training.config import TrainingConfig
from loopwise.training.loop import Hooks, Progress, Reason, StopSignals, run
from loopwise.training.reporting import Reporter
from loopwise.training.state import has_state, load_state, read_notes, save_state
from loopwise.training.trainer import Trainer
from loopwise.types import Examples, Json, Split

__all__ = ["Outcome", "RunConfig", "build", "recorded_config", "resume_run", "resume_training_config", "start_run"]

STATE, LAST, CARD = "training", "last", "README.md"
TRACKERS = ("none", *(kind.value for kind in LoggerType if kind is not LoggerType.ALL))
WORTH_COMPILING = 60.0
"""Seconds that a run takes at the least above which compiling, which takes up to half of that, saves time."""
BLOCK = re.compile(r"(.*\bblocks\.)(\d+)(\..*)")
"""The name of a weight of a block: what is before the number of the block, the number, and what is after."""
TRAINING_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run depends on, names and options."""

    task: str
    task_config: TaskConfig
    reasoner: str = "trm"
    reasoner_config: ReasonerConfig
    gradient: str = "last-cycle"
    gradient_config: GradientConfig = field(default_factory=GradientConfig)
    halting: str = "correctness"
    halting_config: HaltingConfig = field(default_factory=HaltingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run, or a part of it, ended."""

    reason: Reason
    step: int
    best: float
    best_step: int
    seconds: float


def build(config: RunConfig) -> Model:
    """The task, the reasoner and the policies of a run, with fresh weights."""
    task = resolve(config.task, "loopwise.tasks", Task)(config.task_config)  # type: ignore[type-abstract]
    reasoner = resolve(config.reasoner, "loopwise.reasoners", Reasoner)  # type: ignore[type-abstract]
    gradient = resolve(config.gradient, "loopwise.reasoners", GradientPolicy)  # type: ignore[type-abstract]
    halting = resolve(config.halting, "loopwise.reasoners", HaltingPolicy)  # type: ignore[type-abstract]
    dtype = resolve_dtype(config.training.dtype, resolve_device(config.training.device))
    if task.spec.hints and not reasoner.hint_weights:
        raise ConfigError(f"{reasoner.name} has no head to learn hints with; leave out --task.hints, or train another")
    _refuse_idle_evict(task, config.training)
    return Model(
        task=task,
        reasoner=reasoner(config.reasoner_config, task.spec, dtype),
        gradient=gradient(config.gradient_config),
        halting=halting(config.halting_config),
    )


def _refuse_idle_evict(task: Task[Any], training: TrainingConfig) -> None:
    if training.evict and not task.spec.hints:
        raise ConfigError(f"evict needs hints, by which to tell a wrong state, and {task.name} gives none here")


def recorded_config(file: Path) -> RunConfig:
    """The configuration that a run began with, from its config.json, to run it again. Raises CheckpointError.

    What the file names of code outside loopwise is not imported: such a task is refused, the checker of a table left
    out.
    """
    parts, data = read_parts(file, trust=False)
    (task, task_config), (reasoner, config), (gradient, policy), (halting, halts) = parts
    with explained(file):
        training = from_json(TrainingConfig, data["training"], "training")
    return RunConfig(
        task=task.name,
        task_config=task_config,
        reasoner=reasoner.name,
        reasoner_config=config,
        gradient=gradient.name,
        gradient_config=policy,
        halting=halting.name,
        halting_config=halts,
        training=training,
    )


def start_run(
    config: RunConfig, folder: Path, time_limit: float | None = None, tracker: str = "tensorboard"
) -> Outcome:
    """Train from scratch into `folder`. Raises ConfigError when a run, or anything else, is there already."""
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another --out")
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another --out")
    model = build(config)
    # What `auto` means here is written down, so that the run continues in the same format on another machine.
    training = from_json(TrainingConfig, {**to_json(config.training), "dtype": dtype_name(model.reasoner.dtype)})
    with StopSignals() as signals:
        return _Run(model, training, folder, tracker).train(signals, time_limit)


def _take_weights(reasoner: Reasoner[Any], source: str) -> None:
    """Give a reasoner the weights of a checkpoint or of a shipped model. Raises CheckpointError or ConfigError.

    The other model may have more parts: the search of a lattice has heads that its network does without. It may have
    fewer blocks: those that are more begin as copies of its own, in turn. It may not have more.
    """
    file = Path(find(source)) / WEIGHTS
    if not file.exists():
        raise CheckpointError(
            f"{source} holds no weights to start from; give the folder of a run or the name of a model"
        )
    # The tensors alone: what code the other model's task names is of no concern.
    tensors, _ = read_tensors(file)
    mine = reasoner.state_dict()
    theirs = {name: _counterpart(name, tensors) for name in mine}
    over = [name for name in tensors if name not in mine and _counterpart(name, mine) != name]
    if over:
        raise ConfigError(f"{source} has more blocks than this {reasoner.name} ({over[0]}); give it as many")
    try:
        found = {name: tensors[other] for name, other in theirs.items() if other in tensors}
        if reasoner.hint_weights in mine:
            found.setdefault(reasoner.hint_weights, mine[reasoner.hint_weights])
        reasoner.load_state_dict(found)
    except RuntimeError:
        raise ConfigError(
            f"the weights of {source} do not fit this {reasoner.name}; give it the options of that model"
        ) from None


def _counterpart(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The name of the weights that those called `name` begin with: their own, or another block's if theirs is new."""
    parts = BLOCK.fullmatch(name)
    if name in tensors or not parts:
        return name
    before, number, after = parts.groups()
    blocks = next(i for i in itertools.count() if f"{before}{i}{after}" not in tensors)
    return f"{before}{int(number) % blocks}{after}" if blocks else name


def resume_training_config(folder: Path) -> TrainingConfig:
    """The training options with which the run in `folder` would be resumed. Raises CheckpointError."""
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder} holds no run to resume; start one with --out {folder}")
    _, data = read_parts(folder / CONFIG, trust=True)
    with explained(folder / CONFIG):
        recipe = data["training"]
    if has_state(folder / STATE):
        recipe = read_notes(folder / STATE)["training"]
    elif (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} holds a model but no training state; resume the folder of its run")
    return from_json(TrainingConfig, recipe, f"{folder / CONFIG}: training")


def resume_run(
    folder: Path,
    training: TrainingConfig | None = None,
    time_limit: float | None = None,
    tracker: str = "tensorboard",
) -> Outcome:
    """Continue the run in `folder` where its last save left it, with other training options if any are given."""
    before = resume_training_config(folder)
    training = training or before
    model, _ = read_model(folder, trust=True)
    for name in ("start_from", "optimizer", "dtype", "seed", "batch_size", "starts", "threads"):
        if getattr(training, name) != getattr(before, name):
            raise ConfigError(f"{name} is fixed when a run starts, here {getattr(before, name)}; start another run")
    _refuse_idle_evict(model.task, training)
    with StopSignals() as signals:
        return _Run(model, training, folder, tracker).train(signals, time_limit)


class _Run:
    """The parts of a run, and the hooks that join them."""

    def __init__(self, model: Model, training: TrainingConfig, folder: Path, tracker: str) -> None:
        self.model = model
        self.training = training
        self.folder = folder
        self.tracker = tracker
        self.progress = Progress()
        # The user's own rules are imported before there is a folder, not at the first evaluation.
        _ = model.task.foreign_rules
        if training.start_from and not has_state(folder / STATE):
            _take_weights(model.reasoner, training.start_from)
        device = resolve_device(training.device)
        if training.threads:
            torch.set_num_threads(training.threads)
        if device.type == "mps" and training.loss == "stablemax":
            raise ConfigError("stablemax needs float64, which mps does not have; use --training.loss softmax")
        if tracker not in TRACKERS:
            raise ConfigError(f"unknown tracker {tracker!r}{suggest(tracker, TRACKERS)}; known: {', '.join(TRACKERS)}")
        trackers = None if tracker == "none" else tracker
        self.accelerator = Accelerator(cpu=device.type == "cpu", project_dir=folder, log_with=trackers)
        if self.accelerator.device.type != device.type:
            raise ConfigError(f"this process trains on {self.accelerator.device.type} already; start another")
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        if training.batch_size % (world * training.starts):
            raise ConfigError(f"batch_size {training.batch_size} cannot be shared evenly by {world} processes")
        data = self._read_data()
        self.validation = data["validation"]
        self.data = {s: {"puzzles": len(e.inputs), "sha256": cache.fingerprint(e)} for s, e in data.items()}
        flops = count_flops(model.reasoner, model.gradient, model.halting, model.task.spec.length)
        learning = flops.training if training.starts == 1 else flops.solving + flops.training // training.starts
        self.flops = flops._replace(training=learning + flops.solving * training.progressive // 2)
        stream = Stream(
            model.task,
            data["train"],
            training.seed,
            rank=rank,
            world=world,
            augment=training.augment,
            shorten=training.shorten,
        )
        self.trainer = Trainer(model.reasoner, model.gradient, model.halting, stream, training, self.accelerator)
        self.ceiling = matmul_flops(self.accelerator.device, model.reasoner.dtype) * world
        if training.compile == "auto":
            # Written down with the rest, so that a resumed run does the same.
            least = training.steps * training.batch_size * self.flops.training / self.ceiling
            self.training = replace(training, compile="on" if least > WORTH_COMPILING else "off")
        self.not_compiled = compile_networks(model.reasoner) if self.training.compile == "on" else None

    def _read_data(self) -> dict[Split, Examples]:
        """The main process makes what is missing; the others then find it in the cache."""
        with self.accelerator.main_process_first():
            data = {split: cache.examples(self.model.task, split) for split in TRAINING_SPLITS}
        for split, examples in data.items():
            if len(examples.inputs) == 0:
                raise DataError(f"the {split} split of {self.model.task.name} is empty; give more data")
        return data

    def train(self, signals: StopSignals, time_limit: float | None) -> Outcome:
        """Start or continue, and train until something stops it."""
        with locked(self.folder, self.accelerator.is_main_process):
            return self._train(signals, time_limit)

    def _train(self, signals: StopSignals, time_limit: float | None) -> Outcome:
        if has_state(self.folder / STATE):
            self._load()
        elif self.accelerator.is_main_process and not (self.folder / CONFIG).exists():
            write_config(self.folder, self.model, to_json(self.training))
        self.accelerator.wait_for_everyone()
        if not has_state(self.folder / STATE):
            self._save(None)  # so that there is a state before there are weights: weights alone are not a run
        hooks = Hooks(evaluate=self._evaluate, keep_best=self._keep_best, save=self._save)
        with self._reporter() as reporter:
            reporter.say(self._introduction())
            reason = run(self.trainer, self.progress, hooks, reporter, signals, time_limit)
        p = self.progress
        return Outcome(reason=reason, step=self.trainer.step, best=p.best, best_step=p.best_step, seconds=p.seconds)

    def _load(self) -> None:
        notes = load_state(self.folder / STATE, self.trainer)
        if notes["data"] != self.data:
            raise CheckpointError(
                "the data is not that of the run that is resumed (another hash); bring the old file back"
            )
        self.progress = Progress(**notes["progress"])

    def _save(self, scores: dict[str, Json] | None) -> None:
        notes = {"progress": asdict(self.progress), "training": to_json(self.training), "data": self.data}
        if self.accelerator.is_main_process and scores is not None:
            self._write_model(self.folder / LAST, scores, "last")
        save_state(self.folder / STATE, self.trainer, notes)

    def _keep_best(self, scores: dict[str, Json]) -> None:
        if self.accelerator.is_main_process:
            self._write_model(self.folder, scores, "best (by exact accuracy on the validation split)")

    def _write_model(self, folder: Path, scores: dict[str, Json], which: str) -> None:
        if not (folder / CONFIG).exists():
            write_config(folder, self.model, to_json(self.training))
        averaged = replace(self.model, reasoner=self.trainer.ema.reasoner)
        notes: dict[str, Json] = {
            "step": self.trainer.step,
            "seconds": self.progress.seconds,
            "flops": self.trainer.step * self.flops.training * self.training.batch_size,
            "flops_per_puzzle_step": self.flops.solving,
            "data": self.data,
            "device": f"{self.accelerator.num_processes} x {self.accelerator.device.type}",
            "scores": scores,
        }
        save_weights(folder, averaged.reasoner, notes)
        write_text(folder / CARD, model_card(averaged, notes, to_json(self.training), which))

    def _evaluate(self, reasoner: Reasoner[Any]) -> dict[str, Json]:
        return evaluate(replace(self.model, reasoner=reasoner), self.validation).to_json()

    def _reporter(self) -> Reporter:
        return Reporter(
            self.folder,
            self.accelerator,
            total_steps=self.training.steps,
            flops_per_step=self.flops.training * self.training.batch_size,
            ceiling=self.ceiling,
            resumed_at=self.trainer.step,
            scored_at=self.progress.scored_step,
        )

    def _introduction(self) -> str:
        networks, table = self.model.reasoner.num_parameters()
        start = f"resuming at step {self.trainer.step}" if self.trainer.step else "training"
        return (
            f"{start}: {self.model.reasoner.name} on {self.model.task.name}, {networks:,} parameters "
            f"(+ {table:,} in the puzzle table), {self.data['train']['puzzles']:,} puzzles, "
            f"{self.training.batch_size} slots, "
            f"{self.flops.training * self.training.batch_size / 1e9:.1f} GFLOP a step, "
            f"{self.accelerator.device.type} {dtype_name(self.model.reasoner.dtype)}" + self._compilation()
        )

    def _compilation(self) -> str:
        if self.training.compile == "off":
            return ""
        return (
            f", not compiled ({self.not_compiled})" if self.not_compiled else ", compiled (the first step takes longer)"
        )
