"""Files that are there whole or not at all, and that notice when a bit of them has changed.

A file is written beside its name, flushed to the disk and renamed, so that a crash or a full disk leaves the old one.
Tensors go into safetensors files whose header carries a SHA-256 of everything in them, JSON files carry theirs as a
key. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loopwise.errors import CheckpointError, StorageError
from loopwise.types import Json

__all__ = [
    "json_digest",
    "locked",
    "read_json",
    "read_tensors",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]

CHECKSUM = "sha256"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically. Raises StorageError when the disk refuses; the old file is then intact."""
    # Always the same name, so that what a killed process left is taken away by the next save of the file.
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); what was there before is intact: "
            "free some space or choose another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: dict[str, Json]) -> None:
    """Replace a JSON file atomically, with a checksum of its content as the last key."""
    write_text(path, json.dumps({**data, CHECKSUM: json_digest(data)}, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Json]:
    """Read what `write_json` wrote. Raises CheckpointError when it is missing, damaged or of another kind."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder that `loopwise train --out` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({_one_line(error)}); restore it from a copy") from error
    if not isinstance(data, dict) or CHECKSUM not in data:
        raise CheckpointError(f"{path} is not a file of loopwise; give the folder that `loopwise train --out` wrote")
    if data.pop(CHECKSUM) != json_digest(data):
        raise CheckpointError(f"{path} has been changed or damaged (its checksum is wrong); restore it from a copy")
    return data


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, Json] | None = None) -> None:
    """Replace a safetensors file atomically; `notes` is JSON that travels in its header, under the same checksum."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(notes or {}, sort_keys=True)
    write_bytes(path, save(tensors, {"notes": text, CHECKSUM: _tensor_digest(tensors, text)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Read what `write_tensors` wrote: (tensors, notes). Raises CheckpointError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder that `loopwise train --out` wrote") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({_one_line(error)}); restore it from a copy") from error
    if CHECKSUM not in header or "notes" not in header:
        raise CheckpointError(f"{path} is not a file of loopwise (no checksum in its header)")
    if header[CHECKSUM] != _tensor_digest(tensors, header["notes"]):
        raise CheckpointError(f"{path} has been changed or damaged (its checksum is wrong); restore it from a copy")
    return tensors, json.loads(header["notes"])


@contextlib.contextmanager
def locked(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Keep other programs from writing into a folder meanwhile. Raises StorageError when one does already."""
    if not wanted or fcntl is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"cannot write into {folder} ({error.strerror}); choose another folder") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StorageError(f"another run is writing into {folder}; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        os.close(handle)


def json_digest(data: dict[str, Json]) -> str:
    """SHA-256 of JSON data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _tensor_digest(tensors: dict[str, Tensor], notes: str) -> str:
    digest = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
