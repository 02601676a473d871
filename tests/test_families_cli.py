"""The families of reasoners and their policies on the command line: chosen, given options, resumed, refused, read."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import loopwise.reasoners
import loopwise.recipes
from loopwise.checkpoint import CONFIG, load_model, read_model, save_weights
from loopwise.cli import main
from loopwise.models import shipped
from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.gradients import LastUpdates
from loopwise.reasoners.halting import HaltingPolicy
from loopwise.registry import discover
from loopwise.solving.solver import Solver
from loopwise.storage import read_json, write_json

PACKAGE = loopwise.reasoners.__name__
REASONERS = discover(PACKAGE, Reasoner)
GRADIENTS = discover(PACKAGE, GradientPolicy)
HALTINGS = discover(PACKAGE, HaltingPolicy)

SMALL = {
    "hidden_size": 16, "num_heads": 2, "width_multiple": 8, "num_layers": 1, "H_layers": 1, "L_layers": 1,
    "cycles": 2, "num_states": 2,
}  # fmt: skip
"""Sizes of seconds, for the options that exist."""
TASK = ("--task.n", "4", "--task.train", "16", "--task.validation", "4", "--task.test", "4")
TRAINING = ("--training.batch-size", "4", "--training.eval-every", "2", "--training.device", "cpu",
            "--training.threads", "1", "--training.dtype", "float32")  # fmt: skip


def small(name):
    """The options of a small reasoner called `name`."""
    fields = {field.name for field in dataclasses.fields(REASONERS[name].Config)}
    options = {f"--reasoner.{field.replace('_', '-')}": str(value) for field, value in SMALL.items() if field in fields}
    return tuple(word for pair in options.items() for word in pair)


def train(folder, *options, name="trm", steps=2):
    """Train a small model of a reasoner in the folder by the command line; the exit code."""
    chosen = () if name == "trm" else ("--reasoner", name)
    return main(["train", "sorting", "--out", str(folder), "--tracker", "none", *TASK, *TRAINING,
                 "--training.steps", str(steps), *chosen, *small(name), *options])  # fmt: skip


def names_in(folder):
    """(reasoner, gradient policy, halting policy) of the run in a folder, by config.json."""
    data = json.loads((folder / CONFIG).read_text())
    return tuple(data[part]["name"] for part in ("reasoner", "gradient", "halting"))


def refused(capsys, folder, *arguments, task="sorting"):
    """The complaint of a command that is refused: exit code 2, one line, nothing written."""
    capsys.readouterr()
    assert main(["train", task, "--out", str(folder), *arguments]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("loopwise: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert "internal error" not in said.err
    assert not folder.exists()
    return said.err


@pytest.mark.parametrize("name", REASONERS)
def test_every_reasoner_trains_under_the_policies_of_its_paper(name, tmp_path):
    """`loopwise train sorting --reasoner X` trains, for every X that is found, and leaves a model that says what it is:
    the reasoner, the gradient and the halting policy of its paper; it loads and solves.
    """
    cls = REASONERS[name]
    assert train(tmp_path / "run", name=name) == 0
    assert names_in(tmp_path / "run") == (name, cls.default_gradient, cls.default_halting)
    model, notes = load_model(tmp_path / "run")
    assert notes["step"] == 2
    assert type(model.reasoner) is cls
    assert type(model.gradient) is GRADIENTS[cls.default_gradient]
    assert type(model.halting) is HALTINGS[cls.default_halting]
    for field, value in SMALL.items():
        assert getattr(model.reasoner.config, field, value) == value
    assert len(loopwise.load(str(tmp_path / "run"), slots=1).solve(["3 1 2 0"], 1)[0].tokens) == 4


def test_what_a_recipe_says_is_kept_where_it_still_means_something(tmp_path):
    """With another reasoner, options that it has in common with the recipe's keep the recipe's values, those that are
    its own have their defaults, and so with the policies.
    """
    assert train(tmp_path / "run", "--training.steps", "1", name="hrm") == 0
    model, _ = read_model(tmp_path / "run", trust=False)
    recipe = loopwise.recipes.find("sorting")
    assert model.reasoner.config.halting_reads == recipe.reasoner_config.halting_reads == "mean"
    assert model.reasoner.config.H_cycles == 2
    assert model.halting.config.max_steps == recipe.halting_config.max_steps == 8
    assert model.halting.config.target_every == 1
    assert model.gradient.config == LastUpdates.Config()


def test_a_gradient_policy_and_its_option_are_honoured(tmp_path):
    """`--gradient last-updates --gradient.k 3` trains by that, and no other part is changed; a run that is resumed goes
    on by it.
    """
    folder = tmp_path / "run"
    assert train(folder, "--gradient", "last-updates", "--gradient.k", "3") == 0
    config = (folder / CONFIG).read_bytes()
    assert names_in(folder) == ("trm", "last-updates", "correctness")
    assert json.loads(config)["gradient"]["config"] == {"k": 3}
    assert main(["train", "--resume", str(folder), "--tracker", "none", "--training.steps", "4"]) == 0
    assert (folder / CONFIG).read_bytes() == config
    model, notes = load_model(folder / "last")
    assert notes["step"] == 4
    assert type(model.gradient) is LastUpdates
    assert model.gradient.config.k == 3


def test_a_halting_policy_and_its_option_are_honoured(tmp_path):
    """`--halting q-learning --halting.target-every 4` trains by that, and no other part is changed; a run that is
    resumed goes on by it.
    """
    folder = tmp_path / "run"
    assert train(folder, "--halting", "q-learning", "--halting.target-every", "4", "--halting.max-steps=3") == 0
    config = (folder / CONFIG).read_bytes()
    assert names_in(folder) == ("trm", "last-cycle", "q-learning")
    assert main(["train", "--resume", str(folder), "--tracker", "none", "--training.steps", "4"]) == 0
    assert (folder / CONFIG).read_bytes() == config
    model, notes = load_model(folder / "last")
    assert notes["step"] == 4
    assert model.halting.name == "q-learning"
    assert (model.halting.config.target_every, model.halting.config.max_steps) == (4, 3)


def test_policies_take_part_in_the_training(tmp_path):
    """Runs that differ in the gradient policy, in its option, or in the halting policy alone end in other weights. The
    run without any of them is that of the reasoner's own, named, and that of the last three updates: a cycle has three.
    """
    runs = {
        "own": (),
        "named": ("--gradient", "last-cycle", "--halting=correctness"),
        "one": ("--gradient", "last-updates", "--gradient.k", "1"),
        "two": ("--gradient=last-updates", "--gradient.k=2"),
        "three": ("--gradient=last-updates", "--gradient.k=3"),
        "q": ("--halting", "q-learning"),
        "act": ("--halting", "act", "--halting.max-ponder", "2"),
    }
    weights = {}
    for run, options in runs.items():
        assert train(tmp_path / run, *options, "--halting.max-steps", "2", steps=4) == 0
        model, _ = load_model(tmp_path / run / "last")
        weights[run] = torch.cat([p.flatten() for p in model.reasoner.parameters()])
    for same in ("named", "three"):
        assert torch.equal(weights["own"], weights.pop(same))
    for a, b in ((a, b) for a in weights for b in weights if a < b):
        assert not torch.equal(weights[a], weights[b]), (a, b)


@pytest.mark.parametrize(
    ("arguments", "nearest", "wrong"),
    [
        (("--reasoner", "trm-mutli"), "trm-multi", "trm-mutli"),
        (("--reasoner=lopped",), "looped", "lopped"),
        (("--gradient", "last-cycel"), "last-cycle", "last-cycel"),
        (("--gradient=checkpoint",), "checkpointed", "checkpoint"),
        (("--halting", "q-lerning"), "q-learning", "q-lerning"),
        (("--halting=fixd",), "fixed", "fixd"),
        (("--reasoner", "hrm", "--halting", "corectness"), "correctness", "corectness"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else None,
)
def test_an_unknown_name_is_refused_with_the_nearest(arguments, nearest, wrong, capsys, tmp_path):
    """A name that is none is refused in one line that repeats it and proposes the nearest, with exit code 2."""
    said = refused(capsys, tmp_path / "run", *arguments)
    assert repr(wrong) in said
    assert f"did you mean {nearest!r}" in said


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--gradient.k", "3"), "--gradient.k"),
        (("--gradient", "full-bptt", "--gradient.k", "3"), "--gradient.k"),
        (("--gradient", "last-updates", "--gradient.solver", "plain"), "--gradient.solver"),
        (("--gradient", "implicit", "--gradient.steps", "3"), "--gradient.steps"),
        (("--halting.target-every", "4"), "--halting.target-every"),
        (("--halting", "fixed", "--halting.max-ponder", "4"), "--halting.max-ponder"),
        (("--halting", "act", "--halting.target-every", "4"), "--halting.target-every"),
        (("--reasoner.num-states", "3"), "--reasoner.num-states"),
        (("--reasoner", "rnn", "--reasoner.num-heads", "2"), "--reasoner.num-heads"),
        (("--reasoner", "hrm", "--reasoner.num-layers", "2"), "--reasoner.num-layers"),
    ],
    ids=lambda v: "".join(v) if isinstance(v, tuple) else None,
)
def test_an_option_of_another_part_is_refused(arguments, option, capsys, tmp_path):
    """An option that the chosen reasoner or policy does not have is refused in one line that names it."""
    assert option in refused(capsys, tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--gradient", "last-updates", "--gradient.k", "0"), "k"),
        (("--gradient", "implicit", "--gradient.max-cycles", "0"), "max_cycles"),
        (("--gradient", "implicit", "--gradient.solver", "newton"), "newton"),
        (("--gradient", "phantom", "--gradient.damping", "2"), "damping"),
        (("--halting", "q-learning", "--halting.target-every", "0"), "target_every"),
        (("--halting", "act", "--halting.epsilon", "1"), "epsilon"),
        (("--reasoner", "deq", "--reasoner.damping", "0"), "damping"),
        (("--reasoner", "trm-multi", "--reasoner.num-states", "-1"), "num_states"),
        (("--gradient",), "needs a value"),
        (("--halting",), "needs a value"),
        (("--halting", "--gradient", "implicit"), "needs a value"),
    ],
    ids=lambda v: "".join(v) if isinstance(v, tuple) else None,
)
def test_a_value_that_makes_no_sense_is_refused(arguments, option, capsys, tmp_path):
    """So is a value that an option of the chosen part cannot have, and a choice without a name."""
    assert option in refused(capsys, tmp_path / "run", *arguments)


def test_a_checkpoint_without_options_of_its_gradient_policy_is_read(tmp_path):
    """Before gradient policies had options, config.json had none for them: such a folder is read, with the defaults,
    predicts the same bits, and solves.
    """
    folder = tmp_path / "run"
    assert train(folder, "--gradient", "last-updates") == 0
    new, _ = load_model(folder)
    data = read_json(folder / CONFIG)
    data.pop("sha256", None)
    assert data["gradient"].pop("config") == {"k": 2}
    os.unlink(folder / CONFIG)
    write_json(folder / CONFIG, data)
    save_weights(folder, new.reasoner, {})
    assert '"gradient": {\n    "name": "last-updates"\n  }' in (folder / CONFIG).read_text()
    old, _ = load_model(folder)
    assert type(old.gradient) is LastUpdates
    assert old.gradient.config == LastUpdates.Config()
    puzzle = np.array([1, 4, 2, 3], dtype=np.int32)
    answers = [Solver(model, slots=1, device="cpu").trace(puzzle, max_steps=2) for model in (old, new)]
    assert [step.halt_probability for step in answers[0]] == [step.halt_probability for step in answers[1]]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(*answers, strict=True))


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_has_its_parts(name):
    """Each model that comes with the package loads with the policies that its config.json names."""
    data = read_json(shipped()[name] / CONFIG)
    model = loopwise.load(name).model
    for part in ("reasoner", "gradient", "halting"):
        assert getattr(model, part).name == data[part]["name"]
    assert model.gradient.config == model.gradient.Config(**data["gradient"].get("config", {}))


def test_the_config_of_a_run_is_a_recipe(tmp_path):
    """`loopwise train runs/x/config.json` takes all options of that run, parts and their options too; what else is
    said on the command line is changed. Nothing changed, it comes to the same weights.
    """
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    halting = ("--halting", "q-learning", "--halting.max-steps", "3")
    assert train(first, "--gradient", "last-updates", "--gradient.k", "3", *halting, name="looped") == 0
    again = ["train", str(first / CONFIG), "--tracker", "none", "--out"]
    assert main([*again, str(same)]) == 0
    assert (same / CONFIG).read_bytes() == (first / CONFIG).read_bytes()
    weights = [load_model(folder)[0].reasoner.state_dict() for folder in (first, same)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert main([*again, str(other), "--training.seed", "1", "--gradient", "full-bptt"]) == 0
    before, after = read_json(first / CONFIG), read_json(other / CONFIG)
    assert before["training"].pop("seed") == 0
    assert after["training"].pop("seed") == 1
    assert (before.pop("gradient")["name"], after.pop("gradient")["name"]) == ("last-updates", "full-bptt")
    assert before == after


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data["task"].update(name="somebodys:Task"), "somebodys:Task; if you trust it"),
        (lambda data: data["training"].update(steps="many"), "training.steps cannot be 'many'"),
        (lambda data: data["reasoner"]["config"].update(cycle=2), "unknown option 'cycle'"),
        (lambda data: data.pop("training"), "malformed (KeyError: 'training')"),
    ],
)
def test_a_config_that_is_no_recipe_is_refused(change, complaint, capsys, tmp_path):
    """A config.json that names code outside loopwise, or does not fit, is refused in one line, and nothing is written;
    so is one that is missing or no JSON.
    """
    assert train(tmp_path / "run", name="looped") == 0
    data = read_json(tmp_path / "run" / CONFIG)
    change(data)
    file, out = tmp_path / "changed.json", tmp_path / "out"
    write_json(file, data)
    (tmp_path / "text.json").write_text("{")
    reasons = {file: complaint, tmp_path / "none.json": "there is no file", tmp_path / "text.json": "cannot be read"}
    for named, reason in reasons.items():
        assert reason in refused(capsys, out, task=str(named))


RECORDS = sorted((Path(__file__).parent.parent / "records").glob("*/config*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_record_can_be_run_again(file):
    """The options of every run in records/ are those that this version knows."""
    recorded, data = loopwise.recipes.find(str(file)), read_json(file)
    assert recorded.reasoner_config == REASONERS[data["reasoner"]["name"]].Config(**data["reasoner"]["config"])
    assert recorded.training.steps == data["training"]["steps"]
