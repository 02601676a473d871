"""Examples that were generated once are kept, as memory-mapped arrays in a folder named by a hash of what made them.

The folder is `$LOOPWISE_CACHE`, else `loopwise` in `$XDG_CACHE_HOME`, else in ~/.cache. Deleting it costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import loopwise.tasks
from loopwise.config import to_json
from loopwise.tasks.base import Task
from loopwise.types import Examples, Split

__all__ = ["cache_folder", "examples", "fingerprint"]


def cache_folder() -> Path:
    """Where generated data is kept."""
    base = os.environ.get("LOOPWISE_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopwise"


def fingerprint(data: Examples) -> str:
    """SHA-256 of the content of a data set, 16 hexadecimal digits; goes into model cards and training states."""
    digest = hashlib.sha256()
    for array in data:
        digest.update(str((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def examples(task: Task[Any], split: Split) -> Examples:
    """The examples of a split, from the cache where they are there, else from the task and then into the cache.

    Where what a file of the user's holds has changed since, they are made anew. A task that is the user's own code is
    not cached, for that may change, too. A cache that cannot be written is no error, only slower.
    """
    if not type(task).__module__.startswith("loopwise."):
        return task.examples(split)
    files = [_digest(Path(file)) for file in task.files]
    if None in files:
        return task.examples(split)  # which says what is wrong with the file, if the split needs it
    options = {name: value for name, value in to_json(task.config).items() if name not in task.config.teaching}
    key = json.dumps([_source(), task.name, options, split, files], sort_keys=True)
    folder = cache_folder() / f"{task.name}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        return Examples(*(np.load(folder / f"{field}.npy", mmap_mode="r") for field in Examples._fields))
    except (OSError, ValueError, EOFError):
        made = task.examples(split)
        _keep(made, folder)
        return made


def _digest(file: Path) -> str | None:
    """SHA-256 of what a file holds; None where it cannot be read, or is a pipe, which could be read only once.

    Its size and the time it was written would be quicker to look up, but need not change when the file does.
    """
    try:
        if file.is_file():
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        pass
    return None


@lru_cache
def _source() -> str:
    """A hash of the code of all tasks and of their data: what an older version generated is generated again."""
    digest = hashlib.sha256()
    folder = Path(loopwise.tasks.__file__).parent
    for path in sorted([*folder.glob("*.py"), *(folder / "assets").iterdir()]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _keep(made: Examples, folder: Path) -> None:
    """Write to a temporary folder and rename it, so that a half-written cache is never read."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            for field, array in zip(Examples._fields, made, strict=True):
                np.save(scratch / f"{field}.npy", array)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError:
        return
