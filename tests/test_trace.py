"""Watching a model: the trace of a puzzle, its plot, and the raw predictions."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch

import loopwise
from loopwise.checkpoint import Model
from loopwise.cli import main
from loopwise.errors import ConfigError, PuzzleError
from loopwise.plots import draw_trace
from loopwise.reasoners.base import GradientPolicy, Reasoner, detach
from loopwise.reasoners.deq import DEQ, DEQConfig
from loopwise.reasoners.fixed_point import relative_residual
from loopwise.reasoners.gradients import FixedPointConfig, FullBPTT, Implicit
from loopwise.reasoners.halting import AdaptiveComputationTime, Correctness
from loopwise.reasoners.looped import Looped, LoopedConfig
from loopwise.registry import discover
from loopwise.solving.solver import Solver
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.types import Batch

TASK = Sorting(SortingConfig(n=6, values=5))
PUZZLE = "3 1 4 1 0 2"
PACKAGE = "loopwise.reasoners"
SIZES = {"hidden_size": 16, "num_heads": 2, "width_multiple": 8, "registers": 1}


def solver_of(reasoner_class, gradient):
    names = reasoner_class.Config.__dataclass_fields__
    config = reasoner_class.Config(**{name: value for name, value in SIZES.items() if name in names})
    reasoner = reasoner_class(config, TASK.spec)
    return Solver(Model(task=TASK, reasoner=reasoner, gradient=gradient, halting=Correctness()), slots=2)


@pytest.mark.parametrize("gradient", list(discover(PACKAGE, GradientPolicy)))
@pytest.mark.parametrize("name", list(discover(PACKAGE, Reasoner)))
def test_a_trace_has_the_residual_of_every_update(name, gradient):
    """For every family under every policy: each step has at least a residual for each update of the schedule, all are
    finite, and watching changes no answer.
    """
    policy = discover(PACKAGE, GradientPolicy)[gradient]()
    solver = solver_of(discover(PACKAGE, Reasoner)[name], policy)
    steps = solver.trace(PUZZLE, max_steps=2)
    tokens = torch.as_tensor(solver.read(PUZZLE)).expand(2, -1)
    recursion = solver.reasoner.recursion(solver.reasoner.encode(Batch(tokens.long(), tokens, tokens[:, 0].long() * 0)))
    searches = hasattr(policy.config, "max_cycles")
    least = len(recursion.cycle) * (1 if searches else recursion.num_cycles)
    if solver.reasoner.search:  # which takes its recursion so many times in a step
        least *= solver.reasoner.config.cycles
    for step, prediction in zip(steps, solver.predictions(tokens, steps=2), strict=True):
        assert len(step.updates) >= least if searches else len(step.updates) == least
        assert all(np.isfinite(change.residual) for change in step.updates)
        assert np.array_equal(step.tokens, prediction.logits[0].argmax(-1).numpy())
        assert step.halt_probability == pytest.approx(torch.sigmoid(prediction.halt_logits[0]).item())


def test_residuals_are_those_of_the_states(sorter):
    """A residual is |new - old| / |new| of the tensor that the update wrote, for the traced puzzle alone."""
    solver = loopwise.load(sorter, slots=2)
    steps = solver.trace(PUZZLE, max_steps=3)
    tokens = torch.as_tensor(solver.read(PUZZLE)).long().unsqueeze(0)
    batch = Batch(tokens, tokens, tokens[:, 0] * 0)
    state = solver.reasoner.init_state(1, 6)
    with torch.no_grad():
        for step in steps:
            recursion = solver.reasoner.recursion(solver.reasoner.encode(batch))
            expected = []
            for update in recursion.cycle * recursion.num_cycles:
                new = update(state)
                written = "z" if update.__name__ == "think" else "y"
                residual = relative_residual(getattr(new, written), getattr(state, written)).item()
                expected.append((update.__name__, pytest.approx(residual, rel=1e-4)))
                state = detach(new)
            assert list(step.updates) == expected


@pytest.mark.parametrize("slots", [1, 5])
def test_a_trace_shows_the_work_on_its_own_puzzle(slots):
    """A ponder ends for the traced puzzle when its own halting says so, however many slots there are."""
    reasoner = Looped(LoopedConfig(**SIZES, cycles=2), TASK.spec)
    with torch.no_grad():
        reasoner.halt.weight.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
        reasoner.halt.bias.fill_(-0.5)
    model = Model(task=TASK, reasoner=reasoner, gradient=FullBPTT(), halting=AdaptiveComputationTime())
    solver = Solver(model, slots=slots)
    tokens = torch.as_tensor(solver.read(PUZZLE)).long().unsqueeze(0)
    alone = model.step(reasoner.init_state(1, 6), Batch(tokens, tokens, tokens[:, 0] * 0))
    steps = solver.trace(PUZZLE, max_steps=1)
    assert len(steps[0].updates) == 2 * int(alone.ponder.item())


def test_changed_counts_positions_of_the_answer(trained):
    """`changed` is None at first, then the number of positions in which two proposals in a row differ."""
    solver = loopwise.load(trained, slots=1)
    steps = solver.trace("1..4" + "." * 12, max_steps=4)
    assert steps[0].changed is None
    for before, after in itertools.pairwise(steps):
        assert after.changed == int((before.tokens != after.tokens).sum())


def test_the_residual_of_an_equilibrium_falls_below_the_tolerance():
    """A DEQ whose update contracts: the trace shows the search go down to the tolerance, then one update more."""
    torch.manual_seed(0)
    config = DEQConfig(hidden_size=16, num_heads=2, width_multiple=8, registers=1, num_layers=1)
    reasoner = DEQ(config, TASK.spec)
    with torch.no_grad():
        for parameter in reasoner.f.parameters():
            parameter.mul_(0.1)
    gradient = Implicit(FixedPointConfig(tolerance=1e-3, max_cycles=300, solver="plain"))
    solver = Solver(Model(task=TASK, reasoner=reasoner, gradient=gradient, halting=Correctness()), slots=1)
    residuals = [change.residual for change in solver.trace(PUZZLE, max_steps=1)[0].updates]
    assert residuals[0] > 1e-2
    assert residuals[-1] <= 1e-3
    assert len(residuals) < 300


def test_predictions_are_those_of_the_loop(sorter):
    """`predictions` gives logits [B, L, V] and halting logits [B] for each step, equal to the reasoner's own."""
    solver = loopwise.load(sorter)
    tokens = torch.randint(1, solver.task.spec.vocab_size, (5, 9), generator=torch.Generator().manual_seed(0))
    found = solver.predictions(tokens, steps=3)
    state = solver.reasoner.init_state(5, 9)
    for prediction in found:
        state, expected, _ = solver.model.step(state, Batch(tokens, tokens, tokens[:, 0] * 0))
        assert prediction.logits.shape == (5, 9, solver.task.spec.vocab_size)
        assert all(torch.equal(a, b) for a, b in zip(prediction, expected, strict=True))
        assert not prediction.logits.requires_grad
    assert len(solver.predictions(tokens)) == solver.trained_steps
    for same in (tokens.numpy(), tokens.tolist(), tokens.int()):
        assert torch.equal(solver.predictions(same, [0] * 5, 1)[0].logits, found[0].logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2, 3],), "tokens are whole numbers"),
        (([[1, 2, 99]],), "tokens are whole numbers"),
        (([[-1, 2, 3]],), "tokens are whole numbers"),
        (([[1.5, 2, 3]],), "tokens are whole numbers"),
        (("abc",), "tokens cannot be read"),
        (([[1, 2], [3]],), "tokens cannot be read"),
        (([[]],), "tokens are whole numbers"),
        (([[1, 2, 3]], [7]), "puzzle_ids are whole numbers"),
        (([[1, 2, 3]], [0, 0]), "2 puzzle_ids for 1 puzzles"),
    ],
    ids=str,
)
def test_predictions_refuse_what_is_no_puzzle(sorter, arguments, message):
    """Tokens and identities that the model cannot take raise PuzzleError in one line."""
    with pytest.raises(PuzzleError, match=message):
        loopwise.load(sorter).predictions(*arguments)


def test_predictions_refuse_lengths_and_steps(trained):
    """A length that the model is not built for is a PuzzleError, no steps at all a ConfigError."""
    solver = loopwise.load(trained)
    with pytest.raises(PuzzleError, match="16 positions, not 3"):
        solver.predictions([[1, 1, 1]])
    with pytest.raises(ConfigError, match="at least 1"):
        solver.predictions([[1] * 16], steps=0)


def test_the_command_line_draws_and_writes(trained, tmp_path, capsys):
    """`loopwise trace` prints a table, or JSON records with every residual, and draws a picture of some size."""
    picture = tmp_path / "new" / "trace.png"
    assert main(["trace", str(trained), "--sample", "0", "--max-steps", "3", "--plot", str(picture)]) == 0
    assert "of think" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
    assert main(["trace", str(trained), "1..4" + "." * 12, "--max-steps", "3", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    solver = loopwise.load(trained, slots=1)
    for record, step in zip(records, solver.trace("1..4" + "." * 12, max_steps=3), strict=True):
        assert record["answer"] == step.answer
        assert [change["residual"] for change in record["updates"]] == [change.residual for change in step.updates]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which model"),
        (["{model}"], "give one of: a puzzle, or --sample"),
        (["{model}", "1..4", "--sample", "0"], "give one of: a puzzle, or --sample"),
        (["{model}", "--sample", "0", "--max-steps", "-1"], "at least 1"),
        (["{model}", "--sample", "0", "--plot", "a.gif"], "a plot is one of .png"),
        (["{model}", "--sample", "99999"], "is not there"),
        (["{model}", "1..4"], "has 16; write every cell"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_refuses_in_one_line(trained, capsys, arguments, message):
    """What cannot be traced is one line on the standard error, and exit code 2."""
    assert main(["trace", *(a.format(model=trained) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_matplotlib_a_plot_is_one_line(trained, monkeypatch, tmp_path):
    """Where matplotlib is missing, the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    steps = loopwise.load(trained, slots=1).trace("1..4" + "." * 12, max_steps=1)
    with pytest.raises(ConfigError, match=r"pip install 'loopwise\[plot\]'"):
        draw_trace(steps, tmp_path / "a.png", "title")
