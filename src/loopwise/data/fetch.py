"""The complete benchmark sets, from their public home, where there is a network. Checked by the hub's own checksum."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from loopwise.errors import ConfigError, DataError, StorageError
from loopwise.registry import suggest

__all__ = ["SOURCES", "fetch"]

SOURCES = {
    "sudoku-extreme": ("sapientinc/sudoku-extreme", ("train.csv", "test.csv")),
    "maze-hard": ("sapientinc/maze-30x30-hard-1k", ("train.csv", "test.csv")),
}
"""{name: (data set on the Hugging Face hub, its files)}."""


def fetch(name: str, out: Path) -> list[Path]:
    """Fetch a benchmark into `out`/name and return its files. A file that is there and right is not fetched again.

    Raises ConfigError for an unknown name, DataError where there is no network or a checksum is wrong.
    """
    if name not in SOURCES:
        raise ConfigError(f"unknown data set {name!r}{suggest(name, SOURCES)}; known: {', '.join(SOURCES)}")
    repository, files = SOURCES[name]
    return [_fetch_file(repository, file, out / name / file) for file in files]


def _fetch_file(repository: str, file: str, target: Path) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # The hub's entity tag of a large file is its SHA-256.
        wanted = get_hf_file_metadata(hf_hub_url(repository, file, repo_type="dataset")).etag
        if target.exists() and _sha256(target) == wanted:
            return target
        fetched = Path(hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # the hub client raises many kinds, those of its network library among them
        if target.exists():  # put there by hand, or fetched before; without the hub it cannot be checked
            return target
        raise DataError(
            f"{repository} cannot be fetched ({type(error).__name__}): is there a network? Without one, "
            f"put {file} into {target.parent} by hand"
        ) from error
    if wanted is not None and len(wanted) == 64 and _sha256(fetched) != wanted:
        raise DataError(f"{file} of {repository} arrived damaged (its checksum is wrong); fetch it again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched, target)
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({error.strerror}); free some space or choose another --out"
        ) from error
    return target


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
