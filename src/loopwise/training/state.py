"""The training state on disk: one file a process, and a small file that says which of them count.

Each save writes new files and then, when all processes have theirs, replaces `latest.json`, which names them. So a kill
at any moment leaves either the old state or the new one, whole.
"""

from __future__ import annotations

from pathlib import Path

from loopwise.errors import CheckpointError
from loopwise.storage import read_json, read_tensors, write_json, write_tensors
from loopwise.training.trainer import Trainer
from loopwise.types import Json

__all__ = ["has_state", "load_state", "read_notes", "save_state"]

LATEST = "latest.json"


def has_state(folder: Path) -> bool:
    """Whether anything has been saved in `folder`."""
    return (folder / LATEST).exists()


def save_state(folder: Path, trainer: Trainer, notes: dict[str, Json]) -> None:
    """Save everything that the next step depends on, with `notes` of the caller's. All processes call it together."""
    accelerator = trainer.accelerator
    tensors, numbers = trainer.state()
    write_tensors(_file(folder, trainer), tensors, {"numbers": numbers, **notes})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(folder / LATEST, {"step": trainer.step, "processes": accelerator.num_processes})
        for old in folder.glob("step-*.safetensors"):
            if not old.name.startswith(f"step-{trainer.step}-"):
                old.unlink(missing_ok=True)
        for scrap in folder.glob(".step-*.new"):  # of a process that was killed while it saved
            scrap.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def load_state(folder: Path, trainer: Trainer) -> dict[str, Json]:
    """Bring the trainer to the last saved state, and return the notes. Raises CheckpointError when it does not fit."""
    latest = read_json(folder / LATEST)
    processes = trainer.accelerator.num_processes
    if latest["processes"] != processes:
        raise CheckpointError(
            f"{folder} was saved by {latest['processes']} processes, each with slots of its own; "
            f"resume with as many, not {processes}"
        )
    trainer.step = latest["step"]
    file = _file(folder, trainer)
    tensors, notes = read_tensors(file)
    try:
        trainer.load_state(tensors, notes.pop("numbers"))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} does not fit the run that is resumed ({reason})") from error
    return notes


def read_notes(folder: Path) -> dict[str, Json]:
    """The notes of the last saved state of the first process, without loading it."""
    latest = read_json(folder / LATEST)
    return read_tensors(folder / f"step-{latest['step']}-process-0.safetensors")[1]


def _file(folder: Path, trainer: Trainer) -> Path:
    return folder / f"step-{trainer.step}-process-{trainer.accelerator.process_index}.safetensors"
