"""When a run compiles its networks, and what happens where nothing can be compiled."""

import dataclasses
import json

import pytest
import torch

import loopwise
from loopwise import runs
from loopwise.checkpoint import CONFIG
from loopwise.reasoners import compiling
from loopwise.reasoners.compiling import compile_networks
from loopwise.recipes import find
from loopwise.runs import build, resume_run, start_run
from loopwise.runtime import compile_trouble

CPU = torch.device("cpu")


def tiny(**training):
    """A run of a few small steps."""
    config = find("sorting-10")
    options = {"steps": 2, "batch_size": 4, "eval_every": 2, "device": "cpu", "dtype": "float32", "threads": 1}
    return dataclasses.replace(
        config,
        task_config=dataclasses.replace(config.task_config, train=50, validation=8, test=8),
        reasoner_config=dataclasses.replace(config.reasoner_config, hidden_size=16),
        training=dataclasses.replace(config.training, **{**options, **training}),
    )


def recorded(folder):
    """What config.json says of compiling."""
    return json.loads((folder / CONFIG).read_text())["training"]["compile"]


@pytest.fixture
def compiles(monkeypatch):
    """Notes which networks are asked to compile themselves, without doing it."""
    asked = []
    monkeypatch.setattr(compiling, "compile_trouble", lambda device: None)

    def note(network):
        asked.append(network)

    monkeypatch.setattr(torch.nn.Module, "compile", note)
    return asked


def test_a_short_run_is_not_compiled(tmp_path, compiles):
    """`auto` compiles nothing where it would take longer than it saves, and that is written down."""
    start_run(tiny(), tmp_path / "run", tracker="none")
    assert not compiles
    assert recorded(tmp_path / "run") == "off"


def test_a_long_run_is_compiled_and_so_is_its_sequel(tmp_path, compiles, monkeypatch):
    """`auto` compiles each network where the run is long; resumed, it does so again without asking how long it is."""
    monkeypatch.setattr(runs, "WORTH_COMPILING", 0.0)
    start_run(tiny(), tmp_path / "run", tracker="none")
    assert len(compiles) == 1
    assert recorded(tmp_path / "run") == "on"
    monkeypatch.setattr(runs, "WORTH_COMPILING", 1e9)
    resume_run(tmp_path / "run", tracker="none")
    assert len(compiles) == 2


def test_where_nothing_compiles_the_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    """A missing compiler costs speed only: one remark with the reason, and the same training."""
    monkeypatch.setattr(compiling, "compile_trouble", lambda device: "no compiler")
    outcome = start_run(tiny(compile="on"), tmp_path / "run", tracker="none")
    assert outcome.step == 2
    assert "not compiled (no compiler)" in capsys.readouterr().err


def test_a_compiled_solver_gives_the_same_answers():
    """Compiled or not, a shipped model solves a puzzle alike, and a step costs the same FLOPs."""
    if compile_trouble(CPU):
        pytest.skip("nothing compiles here")
    plain, compiled = (loopwise.load("sudoku-6x6", slots=16, device="cpu", compile=fuse) for fuse in (False, True))
    one, other = (solver.solve(["4.....2...6....5..1.3...........2.4."], 16)[0] for solver in (plain, compiled))
    assert one.answer == other.answer
    assert one.verified
    assert other.verified
    assert plain.step_flops(36) == compiled.step_flops(36) > 0


def test_a_compiler_that_fails_is_told_in_a_line(monkeypatch):
    """Whatever a compiler raises becomes one short line."""

    def refuse(*_, **__):
        raise OSError("cc1plus:\n not found")

    monkeypatch.setattr(torch, "compile", refuse)
    assert compile_trouble(CPU) == "OSError: cc1plus: not found"
    assert compile_networks(build(tiny()).reasoner) == "OSError: cc1plus: not found"
