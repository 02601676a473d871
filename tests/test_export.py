"""Exported models compute what they did, in a loop that knows onnxruntime and numpy only."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loopwise import cli, export
from loopwise.checkpoint import Model, load_model
from loopwise.cli.exporting import main
from loopwise.errors import CheckpointError, ConfigError, ExportError, StorageError
from loopwise.export import export_onnx, parity
from loopwise.export.graphs import Tracer
from loopwise.models import find
from loopwise.reasoners.base import Reasoner
from loopwise.reasoners.gradients import FixedPointConfig, FullBPTT, Implicit
from loopwise.reasoners.halting import Correctness
from loopwise.registry import discover
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.types import Batch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

REASONERS = discover("loopwise.reasoners", Reasoner)
PAGE = Path(__file__).parent.parent / "docs" / "export.md"
SMALL = {"hidden_size": 8, "num_heads": 2, "width_multiple": 8, "registers": 1, "num_layers": 1, "H_layers": 1}
SMALL |= {"L_layers": 1, "H_cycles": 2, "L_cycles": 2, "cycles": 2, "num_states": 2, "core": "mlp", "positions": "none"}
PLAIN = Implicit(FixedPointConfig(solver="plain", max_cycles=2))


def small_model(name, gradient=None, dtype=torch.float32, **options) -> Model:
    """A reasoner that nobody has trained, on rows of three; its halting head says something all the same."""
    cls = REASONERS[name]
    known = {field.name for field in dataclasses.fields(cls.Config)}
    config = cls.Config(**{k: v for k, v in (SMALL | options).items() if k in known})
    task = Sorting(SortingConfig(n=3, values=5))
    reasoner = cls(config, task.spec, dtype)
    torch.nn.init.normal_(reasoner.halt.weight, generator=torch.Generator().manual_seed(0))
    return Model(task=task, reasoner=reasoner, gradient=gradient or FullBPTT(), halting=Correctness())


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def facts_of(path) -> dict:
    return json.loads(session(path).get_modelmeta().custom_metadata_map["loopwise"])


def random_tokens(model, rows, length):
    return np.random.default_rng(rows).integers(1, model.reasoner.spec.vocab_size, (rows, length))


def by_numpy(path, tokens, steps):
    """Logits and halting logits after each step, from the two files alone."""
    start, step = session(path.with_suffix(".start.onnx")), session(path)
    given = {"tokens": tokens, "puzzle_ids": np.zeros(len(tokens), np.int64)}
    names, said = facts_of(path)["state"], []
    state = start.run(None, given)
    for _ in range(steps):
        *state, logits, halting, going_on = step.run(None, given | dict(zip(names, state, strict=True)))
        said.append((logits, halting, going_on))
    return said


@torch.no_grad()
def by_torch(model, tokens, steps):
    """The same by the library."""
    inputs = torch.as_tensor(tokens)
    batch = Batch(inputs, inputs, torch.zeros_like(inputs[:, 0]))
    state, said = model.reasoner.init_state(*tokens.shape), []
    for _ in range(steps):
        state, prediction = model.reasoner(state, batch, model.gradient)
        said.append(tuple(tensor.numpy() for tensor in prediction[:3]))
    return said


def assert_same(path, model, lengths):
    """Any number of puzzles, four steps: the same answers, the same numbers but for rounding."""
    for rows, length in zip((1, 4, 7), lengths, strict=False):
        tokens = random_tokens(model, rows, length)
        both = zip(by_numpy(path, tokens, 4), by_torch(model, tokens, 4), strict=True)
        for near, (ours, theirs) in zip((1e-4, 2e-3, 2e-3, 2e-3), both, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, atol=near, rtol=near)
            assert (ours[0].argmax(-1) == theirs[0].argmax(-1)).all()


@pytest.mark.parametrize("name", sorted(name for name, cls in REASONERS.items() if not cls.search))
def test_every_reasoner_exports(name, tmp_path):
    """The plain recursion of each family."""
    model = small_model(name)
    done = export_onnx(model, tmp_path / "m.onnx")
    assert done.difference < 1e-4
    assert done.same_answers == 1
    assert not done.any_length
    assert_same(tmp_path / "m.onnx", model, (3, 3))


def test_attention_takes_any_length(tmp_path):
    """With rotary positions the files serve all lengths; registers and a head that reads the mean go along."""
    options = {"core": "attention", "positions": "rotary", "registers": 2, "halting_reads": "mean", "H_cycles": 1}
    model = small_model("trm", **options)
    assert export_onnx(model, tmp_path / "m.onnx").any_length
    assert_same(tmp_path / "m.onnx", model, (3, 8, 1))


def test_a_search_for_a_fixed_point_is_traced_whole(tmp_path):
    """A policy that searches for the fixed point runs in the graph as it does here; in bfloat16 too, as float32."""
    model = small_model("deq", PLAIN, dtype=torch.bfloat16)
    export_onnx(model, tmp_path / "m.onnx")
    assert model.reasoner.dtype is torch.bfloat16
    model.reasoner.dtype = torch.float32
    assert_same(tmp_path / "m.onnx", model, (3, 3))


def test_a_search_over_symbols_is_refused_in_one_line(tmp_path):
    """What guesses and starts again has no graph; nothing is written."""
    with pytest.raises(ConfigError, match="the steps of lattice are a search"):
        export_onnx(small_model("lattice"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_anderson_mixing_is_refused_in_one_line(tmp_path):
    """What ONNX has no operator for is said at once, with what to do."""
    with pytest.raises(ConfigError, match="--unit update"):
        export_onnx(small_model("deq", Implicit()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_inner_loop_outside(tmp_path):
    """The graphs of single updates, run as loop.json says, make a step."""
    model = small_model("hrm", L_cycles=3)
    export_onnx(model, tmp_path / "parts", unit="update")
    loop = json.loads((tmp_path / "parts" / "loop.json").read_text())
    assert (loop["cycle"], loop["num_cycles"], loop["reasoner"]) == ([0, 0, 0, 1], 2, "hrm")
    run = {file.stem: session(file) for file in (tmp_path / "parts").glob("*.onnx")}
    assert set(run) == {"start", "encode", "update_0", "update_1", "readout"}
    tokens = random_tokens(model, 4, 3)
    given = {"tokens": tokens, "puzzle_ids": np.zeros(4, np.int64)}
    state, (x,) = run["start"].run(None, given), run["encode"].run(None, given)
    for theirs in by_torch(model, tokens, 3):
        for kind in loop["cycle"] * loop["num_cycles"]:
            state = run[f"update_{kind}"].run(None, {"x": x, **dict(zip(loop["state"], state, strict=True))})
        ours = run["readout"].run(None, dict(zip(loop["state"], state, strict=True)))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3)


def test_many_updates_are_a_loop(tmp_path):
    """Twenty updates have the nodes of one cycle, with hundreds of which onnxruntime would load for minutes; the same
    numbers come out.
    """
    model = small_model("trm", L_cycles=3, H_cycles=5)
    export_onnx(model, tmp_path / "m.onnx")
    assert_same(tmp_path / "m.onnx", model, (3, 3))
    made = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(made, full_check=True)
    (loop,) = (node for node in made.graph.node if node.op_type == "Loop")
    body = [node.op_type for node in loop.attribute[0].g.node]
    one = [node.op_type for node in Tracer(model).updates()["update_0"].graph.node]
    assert body.count("MatMul") == 4 * one.count("MatMul") > 0


# ---------------------------------------------------------------- the shipped model, the command and the page


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped sorting model, exported by the command."""
    path = tmp_path_factory.mktemp("export") / "sorting.onnx"
    assert main(["sorting", "--out", str(path)]) == 0
    return path


def test_the_files_say_what_they_are(exported):
    """Metadata, names, shapes; nothing of the machine or of the checkpoint's folder."""
    facts = facts_of(exported)
    assert (facts["task"], facts["reasoner"], facts["unit"]) == ("sorting", "trm", "step")
    assert facts["symbols"][1:] == [str(i) for i in range(10)]
    assert facts["any_length"]
    assert facts == facts_of(exported.with_suffix(".start.onnx"))
    shapes = {value.name: value.shape for value in session(exported).get_inputs()}
    assert shapes["tokens"] == ["batch", "length"]
    assert shapes["state_y"][0] == "batch"
    onnx.checker.check_model(onnx.load(exported), full_check=True)
    assert "Loop" not in {node.op_type for node in onnx.load(exported).graph.node}  # of six updates
    weights = Path(find("sorting")) / "model.safetensors"
    assert exported.stat().st_size < 1.5 * weights.stat().st_size
    for file in exported.parent.iterdir():
        assert not re.search(rb"site-packages|\.py\b|File \"", file.read_bytes())


def test_the_shipped_model_is_the_same_outside(exported):
    """Rows of three lengths."""
    assert_same(exported, load_model(Path(find("sorting")))[0], (16, 9, 20))


def test_the_code_of_the_page_solves_its_puzzles(exported, monkeypatch, capsys):
    """docs/export.md: the loop, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "torch" not in code
    monkeypatch.chdir(exported.parent)
    capsys.readouterr()
    exec(compile(code, str(PAGE), "exec"), {})
    puzzles = re.search(r"puzzles = (\[.*?\])", code).group(1)
    expected = [" ".join(sorted(puzzle.split())) for puzzle in json.loads(puzzles)]
    assert capsys.readouterr().out.splitlines() == expected


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def untraced(monkeypatch):
    """No graph may be made."""
    monkeypatch.setattr(Tracer, "_trace", lambda *_: pytest.fail("traced before the mistake was found"))


@pytest.mark.usefixtures("untraced")
def test_mistakes_are_found_before_the_work(tmp_path, monkeypatch):
    """No model, no such model, a bad name, a place that is taken, a package that is missing."""
    out = tmp_path / "m.onnx"
    with pytest.raises(ConfigError, match="which model"):
        main(["--out", str(out)])
    with pytest.raises(ConfigError, match=r"say where: .* --out"):
        main(["sorting"])
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        main([str(tmp_path / "nothing"), "--out", str(out)])
    with pytest.raises(ConfigError, match="a folder is for"):
        main(["sorting", "--out", str(tmp_path / "m")])
    with pytest.raises(ConfigError, match="unknown unit"):
        export_onnx(small_model("trm"), out, unit="cycle")
    for taken in (out, tmp_path / "m.start.onnx"):
        taken.write_text("mine")
        with pytest.raises(ConfigError, match="exists already"):
            main(["sorting", "--out", str(out)])
        assert taken.read_text() == "mine"
        taken.unlink()
    for package in export.PACKAGES:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ConfigError, match=rf"needs the package {package}; .*loopwise\[onnx\]"):
                main(["sorting", "--out", str(out)])
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(exported, tmp_path, monkeypatch):
    """Weights that are a little off are noticed, and nothing is left."""
    graphs = scaled(exported, 1.02)
    monkeypatch.setattr(Tracer, "step", lambda _: graphs)
    with pytest.raises(ExportError, match="nothing was written"):
        export_onnx(load_model(Path(find("sorting")))[0], tmp_path / "m.onnx")
    monkeypatch.setattr(Tracer, "step", lambda _: {**graphs, "step": graphs["start"]})
    with pytest.raises(ExportError, match="onnxruntime refuses"):
        export_onnx(load_model(Path(find("sorting")))[0], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def scaled(exported, factor):
    """The graphs of the sorting model with weights of the step that are off by a factor."""
    made = {"start": onnx.load(exported.with_suffix(".start.onnx")), "step": onnx.load(exported)}
    for weight in made["step"].graph.initializer:
        if weight.name.endswith("qkv.weight"):
            values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return made


def test_what_rounding_explains_is_written_and_no_more(exported, tmp_path, monkeypatch):
    """Beyond the tolerance a difference passes that an ulp of noise upon each update makes too. A weight that is wrong
    by 0.01 % is more than that, not a number is, and where noise makes anything of a step, nothing is explained by it.
    """
    model = load_model(Path(find("sorting")))[0]
    monkeypatch.setattr(parity, "TOLERANCE", 1e-9)

    def write(factor, name):
        monkeypatch.setattr(Tracer, "step", lambda _: scaled(exported, factor))
        return export_onnx(model, tmp_path / name)

    assert 1e-9 < write(1, "right.onnx").difference < 1e-4
    written = set(tmp_path.iterdir())
    for wrong in (1.0001, np.nan):
        with pytest.raises(ExportError, match="nothing was written"):
            write(wrong, "wrong.onnx")
    monkeypatch.setattr(parity, "ULP", 0.1)
    write(1.0001, "noisy.onnx")
    with pytest.raises(ExportError, match=r"more than 0\.05, .*nothing was written"):
        write(3, "wrong.onnx")
    assert {file.name for file in set(tmp_path.iterdir()) - written} == {"noisy.onnx", "noisy.start.onnx"}


@pytest.mark.usefixtures("untraced")
def test_a_cycle_that_would_load_for_minutes_is_refused_in_one_line(tmp_path):
    """As many different updates as a Loop cannot shorten, before anything is traced."""
    with pytest.raises(ConfigError, match=r"201 updates in a row.* --unit update"):
        export_onnx(small_model("hrm", L_cycles=200), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_the_command_with_one_line(tmp_path, monkeypatch, capsys):
    """Also within torch's exporter, whose errors are caught, with what it prints kept from the terminal."""

    def interrupted(*_, **__):
        print("[torch.onnx] Run decompositions...")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.onnx.export", interrupted)
    assert cli.main(["export", "sorting", "--out", str(tmp_path / "m.onnx")]) == 130
    assert capsys.readouterr() == ("", "loopwise: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path, monkeypatch):
    """The file appears whole or not at all, a folder too."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StorageError, match="No space left"):
        export._write_folder(tmp_path / "parts", {"a.onnx": b"data"})
    assert not list(tmp_path.iterdir())
