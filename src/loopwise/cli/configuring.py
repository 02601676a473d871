"""The configuration of a run from the command line: a task or a recipe, other parts if any are named, options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from loopwise.cli.parsing import arguments_class, parse, take_option, take_positional
from loopwise.errors import ConfigError
from loopwise.recipes import find, known, with_parts
from loopwise.runs import RunConfig

__all__ = ["configure"]


def configure(
    arguments: Sequence[str], *, command: str, about: str, **more: tuple[Any, Any, str]
) -> tuple[RunConfig, Any]:
    """(the configuration, all options by name); `more` are options of the command's own: (type, default, help)."""
    name, rest = take_positional(arguments)
    if name is None and not {"-h", "--help"} & set(rest):
        raise ConfigError(f"say what to {command}: loopwise {command} TASK; known: {', '.join(known())}")
    config, rest = _choose(find(name or known()[0]), rest)
    cls = arguments_class(
        command.capitalize(),
        **more,
        task=(type(config.task_config), config.task_config, ""),
        reasoner=(type(config.reasoner_config), config.reasoner_config, ""),
        gradient=(type(config.gradient_config), config.gradient_config, ""),
        halting=(type(config.halting_config), config.halting_config, ""),
        training=(type(config.training), config.training, ""),
    )
    args = parse(cls, rest, command=f"{command} {name or 'TASK'}", about=about)
    config = dataclasses.replace(
        config,
        task_config=args.task,
        reasoner_config=args.reasoner,
        gradient_config=args.gradient,
        halting_config=args.halting,
        training=args.training,
    )
    return config, args


def _choose(config: RunConfig, arguments: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """(the configuration with the reasoner and the policies that are named, the other arguments).

    What the old and the new have in common, such as the hidden size, keeps the recipe's value.
    """
    reasoner, rest = take_option(arguments, "--reasoner")
    gradient, rest = take_option(rest, "--gradient")
    halting, rest = take_option(rest, "--halting")
    return with_parts(config, reasoner=reasoner, gradient=gradient, halting=halting), rest
