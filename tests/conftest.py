"""What several test files share: a cache of their own, and two small trained models."""

import dataclasses
from pathlib import Path

import pytest

from loopwise.runs import RunConfig, start_run
from terminal import Terminal


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Generated data goes to a folder of this test session, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LOOPWISE_CACHE", str(folder))
        yield folder


@pytest.fixture
def terminal(capsys, tmp_path, monkeypatch):
    """A terminal in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Terminal(capsys, tmp_path, monkeypatch)


def small_run(task: str, task_options: dict, reasoner_options: dict, training_options: dict) -> RunConfig:
    """A run of seconds."""
    from loopwise.recipes import find

    run = find(task)
    reasoner = {"hidden_size": 32, "num_heads": 2, "H_cycles": 1, "L_cycles": 2, "registers": 1, "width_multiple": 8}
    training = {"lr": 1e-2, "warmup_steps": 5, "weight_decay": 0.0, "ema": 0.9, "dtype": "float32", "device": "cpu"}
    return dataclasses.replace(
        run,
        task_config=dataclasses.replace(run.task_config, **task_options),
        reasoner_config=dataclasses.replace(run.reasoner_config, **reasoner | reasoner_options),
        halting_config=dataclasses.replace(run.halting_config, max_steps=4),
        training=dataclasses.replace(run.training, **training | training_options),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache_folder) -> Path:
    """A run that has learned most of 4x4 Sudoku; it takes this one size of board."""
    folder = tmp_path_factory.mktemp("runs") / "sudoku"
    start_run(
        small_run(
            "sudoku",
            {"box": "2x2", "train": 200, "validation": 40, "test": 40},
            {"core": "mlp", "positions": "none"},
            {"steps": 80, "batch_size": 32, "eval_every": 40},
        ),
        folder,
        tracker="none",
    )
    return folder


@pytest.fixture(scope="session")
def sorter(tmp_path_factory, cache_folder) -> Path:
    """A run on sorting rows of six, hardly trained; it takes rows of any length."""
    folder = tmp_path_factory.mktemp("runs") / "sorting"
    start_run(
        small_run(
            "sorting",
            {"n": 6, "train": 200, "validation": 20, "test": 40},
            {"core": "attention", "positions": "rotary"},
            {"steps": 10, "batch_size": 8, "eval_every": 10},
        ),
        folder,
        tracker="none",
    )
    return folder
