"""The trained models that come with loopwise: each a checkpoint folder in this package."""

from __future__ import annotations

from pathlib import Path

from loopwise.errors import CheckpointError
from loopwise.registry import suggest

__all__ = ["find", "shipped"]


def shipped() -> dict[str, Path]:
    """{name: folder} of the shipped models."""
    return {f.parent.name: f.parent for f in sorted(Path(__file__).parent.glob("*/config.json"))}


def find(name: str) -> Path | str:
    """The folder of a shipped model, unless there is a folder of that name here; any other name as it is.

    Raises CheckpointError for one that is nearly that of a shipped model.
    """
    if Path(name).exists():
        return name
    models = shipped()
    if name in models:
        return models[name]
    meant = "" if "/" in name else suggest(name, models)
    if meant:
        raise CheckpointError(f"there is no checkpoint folder {name}{meant}; `loopwise models` lists what is shipped")
    return name
