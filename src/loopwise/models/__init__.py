"""The trained models that come with loopwise: each a checkpoint folder in this package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find", "shipped"]


def shipped() -> dict[str, Path]:
    """{name: folder} of the shipped models."""
    return {f.parent.name: f.parent for f in sorted(Path(__file__).parent.glob("*/config.json"))}


def find(name: str) -> Path | str:
    """The folder of a shipped model, unless there is a folder of that name here; any other name as it is."""
    return name if Path(name).exists() else shipped().get(name, name)
