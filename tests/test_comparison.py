"""Families side by side: what makes them comparable, and the page of results."""

import json
from dataclasses import replace

import pytest

import loopwise.comparison
from loopwise.cli import main
from loopwise.comparison import CONTENDERS, Plan, compare, contender_run
from loopwise.errors import ConfigError
from loopwise.recipes import find
from loopwise.results import interval, results_page
from loopwise.runs import build

RECIPES = ("sorting-10", "rolling-sum-16", "sudoku-6x6")


@pytest.mark.parametrize("name", list(CONTENDERS))
@pytest.mark.parametrize("task", RECIPES)
def test_contenders_have_equal_parameters(task, name):
    """Every contender has as many parameters as the recipe's own model, within 5 %, on the recipe's own data."""
    run = contender_run(task, name)
    wanted = build(find(task)).reasoner.num_parameters()[0]
    assert abs(build(run).reasoner.num_parameters()[0] / wanted - 1) <= 0.05
    assert run.task_config == find(task).task_config
    assert run.training.batch_size == find(task).training.batch_size


def test_a_feed_forward_contender_is_one_pass():
    """It applies its network once, in one supervision step."""
    run = contender_run("sorting-10", "feed-forward")
    assert run.reasoner_config.cycles == 1
    assert run.halting_config.max_steps == 1
    assert run.halting == "fixed"


@pytest.fixture
def tiny(monkeypatch):
    """The recipe of sorting at a size of seconds."""
    whole = find("sorting")

    def small(name):
        assert name == "sorting-10"
        return replace(
            whole,
            task_config=replace(whole.task_config, n=4, values=5, train=40, validation=8, test=8),
            reasoner_config=replace(whole.reasoner_config, hidden_size=16, num_heads=2, width_multiple=8),
            halting_config=replace(whole.halting_config, max_steps=2),
            training=replace(whole.training, steps=8, batch_size=4),
        )

    monkeypatch.setattr(loopwise.comparison, "find", small)


@pytest.mark.usefixtures("tiny")
def test_a_comparison_measures_at_equal_steps_and_at_equal_flops(tmp_path):
    """Every run is measured after the planned steps, and after the first step at which its training FLOPs have reached
    those of TRM; what is finished is not made again.
    """
    plan = Plan(tasks=("sorting-10",), seeds=1, shares=(0.5,), rates=(1.0, 0.5))
    said = []
    records = compare(plan, tmp_path, said.append)
    assert len(records) == len(CONTENDERS)
    assert {record["contender"] for record in records} == set(CONTENDERS)
    budget = records[0]["at_steps"]["training_flops"]
    for record in records:
        steps, flops = record["at_steps"], record["at_flops"]
        assert steps["step"] == 4
        per_step = flops["training_flops"] / flops["step"]
        assert budget <= flops["training_flops"] < budget + 2 * per_step
        assert steps["training_flops"] == pytest.approx(4 * per_step, rel=0.2)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert len(times) == 3 * len(CONTENDERS)
    assert compare(plan, tmp_path, said.append) == records
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    page = results_page(records, "loopwise compare")
    for name in CONTENDERS:
        assert page.count(f"\n| {name} |") == 2
    with pytest.raises(ConfigError, match="of another plan"):
        compare(replace(plan, shares=(1.0,)), tmp_path, said.append)
    with pytest.raises(ConfigError, match="of another plan"):
        compare(replace(plan, rates=(0.25,)), tmp_path, said.append)


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_the_page(tmp_path, capsys):
    """`loopwise compare` prints the page and keeps it beside the runs."""
    out = tmp_path / "out"
    arguments = ["sorting-10", "--models", "trm,feed-forward", "--seeds", "1", "--share", "0.3", "--rates", "1"]
    assert main(["compare", *arguments, "--out", str(out)]) == 0
    page = capsys.readouterr().out
    assert page == (out / "results.md").read_text(encoding="utf-8")
    assert f"`loopwise compare {' '.join(arguments)}`" in page
    assert "| trm |" in page
    assert json.loads((out / "sorting-10" / "trm-seed-0.json").read_text())["contender"] == "trm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to compare on"),
        (["sorting-10", "--models", "trm,none"], "unknown model 'none'"),
        (["sorting-10", "--seeds", "0"], "seeds at least 1"),
        (["sorting-10", "sorting-10"], "name each task and each model once"),
        (["sorting-10", "--share", "nan"], "shares and rates must be more than 0"),
        (["sudoku-extreme-hrm"], "is a recipe for hrm; name one for trm"),
        (["sorting-10", "--share", "-1"], "shares and rates must be more than 0"),
        (["sorting-10", "--share", "1,1"], "one share for all tasks, or 1, not 2"),
        (["sorting-10", "--rates", "fast"], "no list of numbers"),
        (["sortin-10"], "did you mean 'sorting-10'"),
    ],
    ids=str,
)
def test_a_comparison_that_cannot_be_is_one_line(arguments, message, tmp_path, capsys):
    """A wrong plan is one line on the standard error, and exit code 2."""
    assert main(["compare", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_intervals_are_students():
    """Of 3 values: the mean and 4.303 standard errors to both sides, kept within 0 and 1; of 1 nothing is known."""
    mean, low, high = interval([0.5, 0.6, 0.7])
    assert [mean, low, high] == pytest.approx([0.6, 0.6 - 0.2484, 0.6 + 0.2484], abs=1e-4)
    assert interval([0.9, 1.0, 1.0])[2] == 1.0
    assert interval([0.3]) == (0.3, 0.0, 1.0)
