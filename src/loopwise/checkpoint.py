"""A trained model is a folder that says what it is: config.json, model.safetensors, README.md.

    config.json         the task and what it needs to read puzzles, the reasoner, their options, the recipe
    model.safetensors   the weights (of the moving average) and, in the header, step, scores and a checksum
    README.md           the model card: protocol, data, scores with their intervals, cost
    last/               the same three for the last weights, where the folder holds the best by validation
    training/           what `--resume` needs

config.json is written once, when a run starts; the weights name its checksum, so the two cannot be mixed up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import loopwise
from loopwise.config import from_json, to_json
from loopwise.errors import CheckpointError, ConfigError, LoopwiseError
from loopwise.reasoners.base import GradientConfig, GradientPolicy, Reasoner, ReasonerConfig, State
from loopwise.reasoners.halting import Advance, HaltingConfig, HaltingPolicy
from loopwise.registry import resolve
from loopwise.runtime import DTYPES, dtype_name
from loopwise.storage import json_digest, read_json, read_tensors, write_json, write_tensors
from loopwise.tasks.base import Task, TaskConfig
from loopwise.types import Batch, Json

__all__ = [
    "CONFIG",
    "FORMAT",
    "WEIGHTS",
    "Model",
    "Parts",
    "explained",
    "load_model",
    "read_model",
    "read_parts",
    "save_weights",
    "write_config",
]

FORMAT = "loopwise-1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class Parts(NamedTuple):
    """What a model is made of, each part as its class and its options."""

    task: tuple[type[Task[Any]], TaskConfig]
    reasoner: tuple[type[Reasoner[Any]], ReasonerConfig]
    gradient: tuple[type[GradientPolicy[Any]], GradientConfig]
    halting: tuple[type[HaltingPolicy[Any]], HaltingConfig]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A task and a reasoner for it, with the policies it was trained by."""

    task: Task[Any]
    reasoner: Reasoner[Any]
    gradient: GradientPolicy[Any]
    halting: HaltingPolicy[Any]
    guess: int = 0
    """Steps after which it guesses in solving (`Starts.guess`) unless told otherwise; 0: never."""

    def __post_init__(self) -> None:
        """Refuse guesses that cannot be made."""
        if type(self.guess) is not int or self.guess < 0:
            raise ConfigError(f"guess is a whole number from 0, not {self.guess!r}")
        if self.guess and (self.reasoner.search or not self.task.spec.guessable):
            raise ConfigError(f"{self.reasoner.name} on {self.task.name} cannot guess; leave guess at 0")

    def step(self, state: State, batch: Batch) -> Advance:
        """One supervision step."""
        return self.halting.step(self.reasoner, state, batch, self.gradient)


def write_config(folder: Path, model: Model, training: dict[str, Json]) -> None:
    """Write config.json of a model. `training` is the recipe, as JSON."""
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "loopwise": loopwise.__version__,
            "task": {**_plugin(model.task), "metadata": model.task.metadata()},
            "reasoner": {**_plugin(model.reasoner), "dtype": dtype_name(model.reasoner.dtype)},
            "gradient": _plugin(model.gradient),
            "halting": _plugin(model.halting),
            "solving": {"guess": model.guess},
            "training": training,
        },
    )


def save_weights(folder: Path, reasoner: Reasoner[Any], notes: dict[str, Json]) -> None:
    """Write model.safetensors beside the folder's config.json; `notes` (step, scores, cost) go into its header."""
    write_tensors(folder / WEIGHTS, reasoner.state_dict(), {**notes, "config": _config_id(folder)})


def read_parts(file: Path, *, trust: bool) -> tuple[Parts, dict[str, Json]]:
    """What a config.json names, nothing of it built: (the parts, the whole file as JSON).

    It may name code outside loopwise: a class by its dotted path, the checker of a table. Only with `trust` is it
    imported; without, a class is refused and a checker left out. Raises CheckpointError when the file is missing,
    damaged, or of another program or version.
    """
    data = read_json(file)
    if data.get("format") != FORMAT:
        raise CheckpointError(f"{file} has the format {data.get('format')!r}, this version reads {FORMAT!r}")
    with explained(file):
        names = [str(data[part]["name"]) for part in Parts._fields]
        foreign = [name for name in names if ":" in name]
        if foreign and not trust:
            raise CheckpointError(
                f"{file} names code outside loopwise, {foreign[0]}; if you trust it, load it with trust, "
                "or train it by its name"
            )
        task = resolve(names[0], "loopwise.tasks", Task)  # type: ignore[type-abstract]
        reasoner = resolve(names[1], "loopwise.reasoners", Reasoner)  # type: ignore[type-abstract]
        gradient = resolve(names[2], "loopwise.reasoners", GradientPolicy)  # type: ignore[type-abstract]
        halting = resolve(names[3], "loopwise.reasoners", HaltingPolicy)  # type: ignore[type-abstract]
        task_config = from_json(task.Config, data["task"]["config"], "task")
        parts = Parts(
            task=(task, task_config if trust else task.without_code(task_config)),
            reasoner=(reasoner, from_json(reasoner.Config, data["reasoner"]["config"], "reasoner")),
            # The first format had no options of gradient policies.
            gradient=(gradient, from_json(gradient.Config, data["gradient"].get("config", {}), "gradient")),
            halting=(halting, from_json(halting.Config, data["halting"]["config"], "halting")),
        )
        return parts, data


def read_model(folder: Path, *, trust: bool) -> tuple[Model, dict[str, Json]]:
    """Build the model that config.json describes, without its weights: (model, the recipe as JSON).

    For `trust` and for what is raised see `read_parts`.
    """
    file = folder / CONFIG
    parts, data = read_parts(file, trust=trust)
    with explained(file):
        (task_class, task_config), (reasoner, config), (gradient, policy), (halting, halts) = parts
        task = task_class.restore(task_config, data["task"]["metadata"])
        model = Model(
            task=task,
            reasoner=reasoner(config, task.spec, DTYPES[data["reasoner"]["dtype"]]),
            gradient=gradient(policy),
            halting=halting(halts),
            guess=data.get("solving", {"guess": 0})["guess"],  # the first format had none
        )
        return model, data["training"]


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn whatever a config.json that does not fit makes its reader raise into a CheckpointError."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{file} does not fit this version of loopwise: {error}") from error
    except LoopwiseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{file} is malformed ({type(error).__name__}: {error})") from error


def load_model(folder: Path, *, trust: bool = False) -> tuple[Model, dict[str, Json]]:
    """Read a checkpoint folder: (model with its weights, ready to solve; the notes of the weights).

    For `trust` see `read_model`. Raises CheckpointError.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint folder {folder}; give the folder that `loopwise train --out` wrote, or the name "
            "of a shipped model (`loopwise models`)"
        )
    model, _ = read_model(folder, trust=trust)
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder} holds no weights yet: the run was stopped before its first evaluation; resume it"
        )
    tensors, notes = read_tensors(folder / WEIGHTS)
    if notes.get("config") != _config_id(folder):
        raise CheckpointError(
            f"{folder / WEIGHTS} belongs to another {CONFIG}; keep the files of a checkpoint together"
        )
    try:
        model.reasoner.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: {' '.join(str(error).split())[:200]}"
        ) from error
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise CheckpointError(
            f"{folder / WEIGHTS} holds weights that are not finite numbers; use an earlier checkpoint"
        )
    model.reasoner.eval()
    return model, notes


def _config_id(folder: Path) -> str:
    return json_digest(read_json(folder / CONFIG))


def _plugin(part: Any) -> dict[str, Json]:
    return {"name": _name(part), "config": to_json(part.config)}


def _name(part: Any) -> str:
    """The name under which `resolve` finds the class again: its own, or its dotted path outside loopwise."""
    cls = type(part)
    return str(cls.name) if cls.__module__.startswith("loopwise.") else f"{cls.__module__}:{cls.__qualname__}"
