"""The options of a trained model that a command line may change: those of its task, and of its reasoner."""

from __future__ import annotations

import dataclasses
from typing import Any

from loopwise.checkpoint import Model
from loopwise.errors import ConfigError
from loopwise.reasoners.base import Reasoner, ReasonerConfig
from loopwise.tasks.base import TaskConfig
from loopwise.types import TaskSpec

__all__ = ["changed", "option_groups"]


def option_groups(model: Model) -> dict[str, tuple[type, Any, str]]:
    """The options as `arguments_class` takes them, with the values of the model."""
    configs = {"task": model.task.config, "reasoner": model.reasoner.config}
    return {name: (type(config), config, "") for name, config in configs.items()}


def changed(model: Model, task_config: TaskConfig, reasoner_config: ReasonerConfig) -> Model:
    """The same weights for a task and a reasoner with these options.

    Raises ConfigError where they need other weights: of a task only the size can change, not the tokens.
    """
    task = type(model.task).restore(task_config, model.task.metadata())
    known, asked = model.reasoner.spec.vocab_size, task.spec.vocab_size
    if asked != known:
        raise ConfigError(f"this model knows {known} tokens, with these values there are {asked}; change only the size")
    # What is told in training makes no difference to an answer, so the weights of the hints are those that there are.
    spec = dataclasses.replace(task.spec, hints=model.reasoner.spec.hints)
    return dataclasses.replace(model, task=task, reasoner=_rebuilt(model.reasoner, reasoner_config, spec))


def _rebuilt(reasoner: Reasoner[Any], config: ReasonerConfig, spec: TaskSpec) -> Reasoner[Any]:
    """The same weights with other options, or for another size. Raises ConfigError where these need other weights."""
    if config == reasoner.config and spec.shape == reasoner.spec.shape:
        return reasoner
    rebuilt = type(reasoner)(config, spec, reasoner.dtype)
    try:
        rebuilt.load_state_dict(reasoner.state_dict())
    except RuntimeError:
        if config == reasoner.config:
            return reasoner
        fields = [f.name for f in dataclasses.fields(config)]
        names = ", ".join(name for name in fields if getattr(config, name) != getattr(reasoner.config, name))
        raise ConfigError(f"the weights do not fit with another {names}; change what needs none, or train") from None
    return rebuilt
