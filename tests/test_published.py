"""Imports of published checkpoints: what comes out predicts what the published model predicts, bit for bit, and what is
no published checkpoint is refused in one line with nothing written.

The files are made from the literal twin of TRM, whose tensors have the published names. HRM's are made from a twin
with a second network, which is all that the two schedules differ in.
"""

import hashlib
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

import loopwise
from loopwise.checkpoint import WEIGHTS
from loopwise.cli import main
from loopwise.errors import CheckpointError
from loopwise.published import convert
from loopwise.reasoners.gradients import LastCycle, LastUpdates
from loopwise.reasoners.halting import Correctness, QLearning
from loopwise.storage import read_tensors
from loopwise.tasks.table import Table, TableConfig
from loopwise.types import Batch
from reference.trm import TRMTwin, TwinBlock, TwinLevel
from rounding import products_round_alike

HEADS = 2


class HRMTwin(TRMTwin):
    """The published HRM: a slow network of its own answers."""

    def __init__(self, *sizes, H_layers=1, **options):
        super().__init__(*sizes, **options)
        rope = 10000.0 if self.positions == "rope" else None
        block = (self.d, self.S, options["num_heads"], 4.0, "attention", rope, 1e-5)
        self.H_level = TwinLevel([TwinBlock(*block) for _ in range(H_layers)])

    def cycle(self, y, z, x):
        for _ in range(self.L_cycles):
            z = self.L_level(z, y + x)
        return self.H_level(y, z), z


def twin(cls=TRMTwin, vocabulary=11, length=9, identifiers=5, seed=0, **options):
    """A small twin with weights of which none is zero."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "num_heads": HEADS, "H_cycles": 2, "L_cycles": 2, "forward_dtype": torch.float32}
    model = cls(vocabulary, length, identifiers, **small | options)
    with torch.no_grad():
        model.puzzle_emb.weights.normal_(0, 0.25)
        model.q_head.weight.normal_(0, 0.25)
        model.q_head.bias.normal_(0.5, 0.1)
    return model


def state_of(model, prefix="_orig_mod.model.inner."):
    """The state dictionary as the published code saves it."""
    return {prefix + name: tensor.clone() for name, tensor in model.state_dict().items()}


def bytes_of(data, **options):
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(data, stream, **options)
    return stream.getvalue()


@pytest.fixture
def importing(tmp_path, capsys, monkeypatch):
    """A function that imports a state dictionary with options and loads the result."""
    monkeypatch.chdir(tmp_path)

    def run(state, *options, name="model"):
        torch.save(state, f"{name}.pt")
        capsys.readouterr()
        code = main(["import", f"{name}.pt", "--out", name, *map(str, options)])
        said = capsys.readouterr()
        assert (code, said.err) == (0, "")
        run.said = said.out
        return loopwise.load(tmp_path / name, slots=3, device="cpu")

    return run


SMALL = ("--heads", HEADS, "--H-cycles", 2, "--L-cycles", 2)


@torch.no_grad()
def assert_equal_predictions(solver, model, identifiers=(0, 3, 4), steps=3, bound=0.0):
    """Three steps of three random puzzles, each with an identifier of its own, are the twin's bit for bit, or within a
    bound.
    """
    spec = solver.reasoner.spec
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randint(spec.vocab_size, (len(identifiers), spec.length), generator=rng)
    ids = torch.tensor(identifiers)
    theirs, ours = model.initial_state(len(ids)), solver.reasoner.init_state(len(ids), spec.length)
    seen = []
    for _ in range(steps):
        theirs, logits, halting, going = model(theirs, inputs, ids)
        ours, said, _ = solver.model.step(ours, Batch(inputs, torch.full_like(inputs, -100), ids))
        pairs = ((said.logits, logits), (said.halt_logits, halting), (said.continue_logits, going))
        for a, b in (*pairs, *zip(ours, theirs, strict=True)):
            torch.testing.assert_close(a, b, rtol=0, atol=bound)
        seen.append(said.logits)
    assert seen[0].std() > 0.1
    assert not torch.equal(seen[0], seen[-1])


# ---------------------------------------------------------------- what comes out

ARCHITECTURES = [
    *((TRMTwin, core, "learned", registers) for core in ("attention", "mlp") for registers in (1, 5, 16)),
    *((TRMTwin, "attention", positions, registers) for positions in ("rope", "none") for registers in (1, 5, 16)),
    *((TRMTwin, "mlp", "none", registers) for registers in (1, 5, 16)),
    *(
        (HRMTwin, "attention", positions, registers)
        for positions in ("rope", "learned", "none")
        for registers in (1, 4)
    ),
]


@pytest.mark.parametrize("prefix", ["", "_orig_mod.model.inner."], ids=["plain", "compiled"])
@pytest.mark.parametrize(
    ("cls", "core", "positions", "registers"),
    ARCHITECTURES,
    ids=[f"{cls.__name__}-{core}-{positions}-{registers}" for cls, core, positions, registers in ARCHITECTURES],
)
def test_an_import_predicts_what_the_published_model_predicts(cls, core, positions, registers, prefix, importing):
    """Every architecture, imported through the command line, equals the twin bit for bit, and its check says so; with
    `mlp` within 0.01 where the processor rounds the library's products otherwise than the twin's.
    """
    model = twin(cls, core=core, positions=positions, puzzle_emb_len=registers)
    options = [*SMALL, "--registers", registers]
    options += ["--shape", 9] if positions == "rope" or (core, positions) == ("attention", "none") else []
    options += ["--positions", "none"] if (core, positions) == ("attention", "none") else []
    solver = importing(state_of(model, prefix), *options)
    bound = 0.0 if core == "attention" or products_round_alike() else 0.01
    said = re.search(r"logits differ by (\S+) at most, halting values by (\S+)\n", importing.said)
    assert max(float(number) for number in said.groups()) <= bound
    assert_equal_predictions(solver, model, bound=bound)


@pytest.mark.parametrize("cls", [TRMTwin, HRMTwin])
def test_cycles_and_layers_are_told_apart(cls, importing):
    """Unequal numbers of layers and cycles end up where they belong."""
    layers = {"H_layers": 2} if cls is HRMTwin else {}
    model = twin(cls, num_layers=3, H_cycles=1, L_cycles=3, puzzle_emb_len=1, **layers)
    solver = importing(
        state_of(model), "--heads", HEADS, "--H-cycles", 1, "--L-cycles", 3, "--registers", 1, "--shape", "3x3"
    )
    assert_equal_predictions(solver, model)
    wrong = importing(
        state_of(model), "--heads", 4, "--H-cycles", 1, "--L-cycles", 3, "--registers", 1, "--shape", 9, name="wrong"
    )
    with pytest.raises(AssertionError):  # the check at the import cannot tell, the file does not say it
        assert_equal_predictions(wrong, model)


@pytest.mark.parametrize(("cls", "cycles", "registers"), [(TRMTwin, (3, 6), 16), (HRMTwin, (2, 2), 1)])
def test_the_published_defaults(cls, cycles, registers, importing):
    """Without options: 8 heads, the family's cycles and prefix, 16 steps, and the policies of its paper."""
    model = twin(
        cls, length=81, identifiers=1, num_heads=8, H_cycles=cycles[0], L_cycles=cycles[1], puzzle_emb_len=registers
    )
    solver = importing(state_of(model))
    assert_equal_predictions(solver, model, (0, 0), steps=2)
    assert solver.trained_steps == 16
    assert solver.task.name == "sudoku"
    policies = type(solver.model.gradient), type(solver.model.halting)
    assert policies == ((LastCycle, Correctness) if cls is TRMTwin else (LastUpdates, QLearning))
    if cls is HRMTwin:
        assert solver.model.gradient.config.k == 2
    networks, table = solver.reasoner.num_parameters()
    assert (networks, table) == (sum(p.numel() for p in model.parameters()), 16)
    assert importing.said.count("(published default)") == 6


def test_puzzles_are_told_apart_by_their_identifiers(importing):
    """The rows of the puzzle table keep their numbers, and matter."""
    model = twin(puzzle_emb_len=4, identifiers=7)
    solver = importing(state_of(model), *SMALL, "--registers", 4, "--shape", 9)
    assert solver.task.spec.num_puzzle_ids == 7
    assert_equal_predictions(solver, model, (6, 0, 5))
    inputs = torch.ones(7, 9, dtype=torch.int64)
    batch = Batch(inputs, inputs, torch.arange(7))
    with torch.no_grad():
        logits = solver.model.step(solver.reasoner.init_state(7, 9), batch).prediction.logits
    assert len({row.numpy().tobytes() for row in logits}) == 7


def test_numbers_in_half_precision_keep_their_values(importing):
    """Initial states in bfloat16, as the published code saves them, and weights in float16 become float32 exactly."""
    model = twin(puzzle_emb_len=1)
    state = state_of(model)
    for name in state:
        state[name] = state[name].to(torch.bfloat16 if name.endswith("_init") else torch.float16)
    solver = importing(state, *SMALL, "--registers", 1, "--shape", 9)
    model.load_state_dict({name.removeprefix("_orig_mod.model.inner."): t.float() for name, t in state.items()})
    assert_equal_predictions(solver, model)


def test_activations_in_bfloat16(importing):
    """With --dtype bfloat16 the import computes what the published model computes in bfloat16."""
    model = twin(forward_dtype=torch.bfloat16, puzzle_emb_len=4)
    solver = importing(state_of(model), *SMALL, "--registers", 4, "--shape", 9, "--dtype", "bfloat16")
    assert solver.reasoner.dtype == torch.bfloat16
    assert_equal_predictions(solver, model)


PREFIXES = ["", "inner.", "model.inner.", "_orig_mod.", "_orig_mod.inner.", "model._orig_mod.inner.", "model.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_make_no_difference(prefix, importing):
    """Whatever stands in front of the names, and a network that was compiled on its own, the tensors are the same."""
    model = twin(puzzle_emb_len=1)
    options = (*SMALL, "--registers", 1, "--shape", 9)
    importing(state_of(model), *options, name="usual")
    state = state_of(model, prefix)
    odd = {name.replace("L_level.", "L_level._orig_mod.") if prefix else name: t for name, t in state.items()}
    importing(odd, *options, name="odd")
    usual, other = (read_tensors(os.path.join(name, WEIGHTS))[0] for name in ("usual", "odd"))
    assert usual.keys() == other.keys()
    assert all(torch.equal(usual[name], other[name]) for name in usual)


def test_wrapped_dictionaries_and_averages(importing):
    """A dictionary inside of another is found; averages go before weights, and what has none is taken from these."""
    model, averaged = twin(puzzle_emb_len=1), twin(puzzle_emb_len=1, seed=1)
    options = (*SMALL, "--registers", 1, "--shape", 9)
    buffers = ("H_init", "L_init", "puzzle_emb.weights")
    average = {name: t for name, t in state_of(averaged).items() if not name.endswith(buffers)}
    other = {"step": 3, "optimizer": {"state": {0: torch.ones(2)}}}
    for number, wrapper in enumerate(("model_state_dict", "state_dict", "model", "ema", "ema_state_dict", "shadow")):
        solver = importing({wrapper: state_of(model), **other}, *options, name=f"alone{number}")
        assert_equal_predictions(solver, model)
    solver = importing({"ema": average, "state_dict": state_of(model, ""), **other}, *options, name="both")
    averaged.load_state_dict({name: t for name, t in model.state_dict().items() if name in buffers}, strict=False)
    assert_equal_predictions(solver, averaged)


def test_parameters_and_old_files(importing):
    """Tensors saved as parameters, and files in torch's old format, are read too."""
    model = twin(puzzle_emb_len=1)
    options = (*SMALL, "--registers", 1, "--shape", 9)
    state = {name: torch.nn.Parameter(tensor) for name, tensor in state_of(model).items()}
    assert_equal_predictions(importing(state, *options), model)
    with open("old.pt", "wb") as file:
        file.write(bytes_of(state_of(model), _use_new_zipfile_serialization=False))
    assert main(["import", "old.pt", "--out", "old", *map(str, options)]) == 0
    assert_equal_predictions(loopwise.load("./old", device="cpu"), model)


# ---------------------------------------------------------------- which task, which size

SUDOKU = {"vocabulary": 11, "length": 81, "identifiers": 1}
OTHER = {"vocabulary": 5, "length": 12}
LEARNED = {"positions": "learned"}
SIZES = {
    "sudoku": (SUDOKU, (), "sudoku", (9, 9), 16),
    "sudoku with identifiers": (SUDOKU | {"identifiers": 3}, (), "table", (81,), 16),
    "sudoku asked for": (SUDOKU, ("--task", "sudoku"), "sudoku", (9, 9), 16),
    "sudoku as a table": (SUDOKU, ("--task", "table"), "table", (81,), 16),
    "sudoku, short prefix": (SUDOKU | LEARNED | {"puzzle_emb_len": 2}, (), "sudoku", (9, 9), 2),
    "sudoku, mlp": (SUDOKU | {"core": "mlp"}, (), "sudoku", (9, 9), 16),
    "maze": ({"vocabulary": 6, "length": 900, "identifiers": 1}, (), "table", (900,), 16),
    "arc": ({"vocabulary": 12, "length": 900, "identifiers": 4}, (), "table", (30, 30), 16),
    "a grid": (OTHER, ("--shape", "3x4"), "table", (3, 4), 16),
    "a row": (OTHER, ("--shape", "12"), "table", (12,), 16),
    "length from the weights": (OTHER | {"core": "mlp"}, (), "table", (12,), 16),
    "prefix from the weights": (OTHER | LEARNED | {"puzzle_emb_len": 3}, ("--shape", "3x4"), "table", (3, 4), 3),
    "length from the prefix": (
        {"vocabulary": 11, "length": 83, "puzzle_emb_len": 3} | LEARNED, ("--registers", 3), "table", (83,), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_task_and_size_are_worked_out(case, importing):
    """The task, its shape and the prefix follow from the file, and from options where it does not tell."""
    sizes, options, task, shape, registers = SIZES[case]
    solver = importing(state_of(twin(hidden_size=8, num_layers=1, **sizes)), *SMALL, *options)
    assert solver.task.name == task
    assert solver.task.spec.shape == shape
    assert solver.task.spec.num_puzzle_ids == sizes.get("identifiers", 5)
    assert solver.reasoner.config.registers == registers


def test_tokens_have_the_published_numbers(importing):
    """Sudoku: 1 is blank, d + 1 is digit d. Maze: # blank S G o. ARC: the mark of an end, then the colours."""
    small = {"hidden_size": 8, "num_layers": 1}
    sudoku = importing(state_of(twin(length=81, identifiers=1, **small)), *SMALL, name="sudoku")
    puzzle = "1........" + "." * 63 + ".......29"
    expected = np.ones(81, np.int32)
    expected[[0, 79, 80]] = 2, 3, 10
    np.testing.assert_array_equal(sudoku.read(puzzle), expected)
    several = importing(state_of(twin(length=81, identifiers=2, **small)), *SMALL, name="several")
    np.testing.assert_array_equal(several.read(puzzle), expected)
    maze = importing(state_of(twin(vocabulary=6, length=900, identifiers=1, **small)), *SMALL, name="maze")
    np.testing.assert_array_equal(maze.read("# SGo" * 180), np.tile([1, 2, 3, 4, 5], 180))
    arc = importing(state_of(twin(vocabulary=12, length=900, identifiers=2, **small)), *SMALL, name="arc")
    expected = np.zeros((30, 30), np.int32)
    expected[0, :3], expected[1, :3] = (2, 11, 1), (1, 1, 0)
    np.testing.assert_array_equal(arc.read([[0, 9, "E"], ["E", "E", None]][:1])[:3], expected[0, :3])
    np.testing.assert_array_equal(arc.read([[0, 9, "E"], ["E", "E", "E"]])[30:33], [1, 1, 1])
    assert arc.task.format(expected.reshape(-1), [[0]]) == [[0, 9, "E"], ["E", "E", None]]


def test_an_import_solves_from_the_command_line(importing, capsys):
    """`loopwise solve FOLDER PUZZLE` gives the twin's answer."""
    model = twin(length=81, identifiers=1, puzzle_emb_len=16)
    solver = importing(state_of(model), *SMALL, "--max-steps", 3)
    puzzle = "1........" + "." * 63 + ".......29"
    assert main(["solve", "./model", puzzle, "--json", "--budget", "3", "--device", "cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == 3
    state, tokens = model.initial_state(1), torch.from_numpy(solver.read(puzzle)).long()[None]
    for _ in range(3):
        state, logits, _, _ = model(state, tokens, torch.zeros(1, dtype=torch.int64))
    assert record["answer"] == solver.task.format(logits.argmax(-1)[0].numpy().astype(np.int32), puzzle)


def test_the_folder_says_where_it_came_from(importing):
    """Name and checksum of the file and every assumption stand in the card and in the notes of the weights."""
    importing(state_of(twin(puzzle_emb_len=2)), *SMALL, "--registers", 2, "--shape", 9, "--max-steps", 16)
    assert sorted(os.listdir("model")) == ["README.md", "config.json", "model.safetensors"]
    with open("model/README.md", encoding="utf-8") as file:
        card = file.read()
    with open("model.pt", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    notes = read_tensors(os.path.join("model", WEIGHTS))[1]["imported"]
    assert (notes["file"], notes["sha256"]) == ("model.pt", digest)
    assert {"H_cycles": "2 (given)", "max_steps": "16 (published default)"}.items() <= notes["options"].items()
    for words in ("model.pt", digest, "| heads | 2 (given) |", "| positions | rotary (published default) |"):
        assert words in card


# ---------------------------------------------------------------- the check


def spoil_names(monkeypatch):
    """The two initial states get each other's names."""
    monkeypatch.setitem(convert.FAMILY_NAMES, "TRM", {"H_init": "z_init", "L_init": "y_init", "L_level": "f"})


def spoil(change):
    """The plain forward pass says something else, in logits or halting values, in its last step only."""

    def apply(monkeypatch):
        honest = convert.published_steps

        def changed(*args):
            *first, (logits, values) = honest(*args)
            return [*first, change(logits.clone(), values.clone())]

        monkeypatch.setattr(convert, "published_steps", changed)

    return apply


SPOILS = {
    "names": spoil_names,
    "logits": spoil(lambda logits, values: (logits.index_fill_(2, torch.tensor([1]), 9.0), values)),
    "halting": spoil(lambda logits, values: (logits, values + torch.tensor([0.0, 0.1]))),
    "logits not a number": spoil(lambda logits, values: (logits * float("nan"), values)),
    "halting not a number": spoil(lambda logits, values: (logits, values * float("nan"))),
}


@pytest.mark.parametrize("how", SPOILS)
def test_an_import_that_is_not_the_same_is_not_written(how, tmp_path, monkeypatch):
    """Where the import and the plain forward pass disagree, nothing is written."""
    torch.save(state_of(twin(puzzle_emb_len=1)), tmp_path / "model.pt")
    SPOILS[how](monkeypatch)
    options = convert.ImportOptions(heads=HEADS, registers=1, shape="9")
    with pytest.raises(CheckpointError, match="nothing was written") as caught:
        convert.import_checkpoint(tmp_path / "model.pt", tmp_path / "out", options)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_number_of_identifiers_survives_metadata():
    """A table keeps how many identifiers a model has; nonsense there is refused."""
    metadata = {"kind": "list", "values": ["", 1, 2], "shape": [4], "num_puzzle_ids": 9}
    table = Table.restore(TableConfig(), metadata)
    assert table.metadata() == metadata
    assert table.spec.num_puzzle_ids == 9
    usual = Table.restore(TableConfig(), {key: value for key, value in metadata.items() if key != "num_puzzle_ids"})
    assert usual.spec.num_puzzle_ids == 1
    assert "num_puzzle_ids" not in usual.metadata()
    for nonsense in (0, -1, 1.5, "2", True, None, []):
        with pytest.raises(ValueError, match="num_puzzle_ids"):
            Table.restore(TableConfig(), {**metadata, "num_puzzle_ids": nonsense})


# ---------------------------------------------------------------- what is refused


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


class Fancy(dict):
    """A dictionary of a class that no other program has."""


GOOD = ("--heads", HEADS, "--shape", 9)
MODELS = {
    "TRM": twin(identifiers=1),
    "MLP": twin(core="mlp", num_layers=1),
    "LEARNED": twin(positions="learned", num_layers=1),
    "HRM": twin(HRMTwin, num_layers=1, puzzle_emb_len=1),
}
STATES = {name: state_of(model) for name, model in MODELS.items()}
FIRST = "_orig_mod.model.inner."
TABLE = FIRST + "embed_tokens.embedding_weight"
HEAD = FIRST + "lm_head.weight"


def without(kind, name):
    return {key: tensor for key, tensor in STATES[kind].items() if key != name}


def changed(name, change, kind="TRM"):
    return {key: change(tensor) if key == name else tensor for key, tensor in STATES[kind].items()}


def poisoned(value):
    def change(tensor):
        spoiled = tensor.clone()
        spoiled.reshape(-1)[-1] = value
        return spoiled

    return change


def wrong_states():
    """(what, dictionary that is no published checkpoint)"""
    short = FIRST + "L_level.layers.0."
    for kind, state in STATES.items():
        for name in state:
            if not name.endswith("embed_pos.embedding_weight"):  # without it, it is a model with rotary positions
                yield f"{kind} without {name.removeprefix(FIRST)}", without(kind, name)
    for name in STATES["TRM"]:
        yield f"{name.removeprefix(FIRST)} a row short", changed(name, lambda tensor: tensor[:-1].clone())
        yield f"{name.removeprefix(FIRST)} a dimension more", changed(name, lambda tensor: tensor[None].clone())
    yield "a scalar", changed(TABLE, lambda tensor: tensor.sum())
    yield "a transposed copy", changed(short + "mlp.down_proj.weight", lambda tensor: tensor.t().contiguous())
    yield "another hidden size", changed(TABLE, lambda tensor: torch.cat((tensor, tensor), 1))
    yield "a vocabulary of one", {**STATES["TRM"], **{key: STATES["TRM"][key][:1].clone() for key in (TABLE, HEAD)}}
    wide = torch.zeros(11, 16).expand(10**12, 11, 16)[:, 0]
    yield "a view of petabytes", {**STATES["TRM"], FIRST + "puzzle_emb.weights": wide}
    yield "a transposed view", changed(TABLE, lambda tensor: tensor.t().contiguous().t())
    for dtype in (torch.int64, torch.int8, torch.bool, torch.float64, torch.complex64):
        yield f"weights of {str(dtype)[6:]}", changed(HEAD, lambda tensor, dtype=dtype: tensor.to(dtype))
    yield "all of int32", {key: tensor.int() for key, tensor in STATES["TRM"].items()}
    yield "a sparse tensor", changed(HEAD, lambda tensor: tensor.to_sparse())
    yield "a tensor without data", changed(HEAD, lambda tensor: tensor.to("meta"))
    for value in ("nan", "inf", "-inf"):
        for name in (TABLE, FIRST + "H_init", FIRST + "puzzle_emb.weights", short + "mlp.gate_up_proj.weight"):
            yield f"{value} in {name.removeprefix(FIRST)}", changed(name, poisoned(float(value)))
    yield "numbers that overflow", changed(TABLE, lambda tensor: tensor * 1e38)
    for name in (
        "extra",
        short + "self_attn.q_norm.weight",
        FIRST + "L_level.layers.2.mlp.up.weight",
        "a\nb",
        "x" * 999,
    ):
        yield f"unknown {name[:50]!r}", {**STATES["TRM"], name: torch.ones(16)}
    yield "bias in a block", {**STATES["TRM"], short + "mlp.down_proj.bias": torch.ones(16)}
    yield "a layer without a number", {**STATES["TRM"], FIRST + "L_level.layers.x.mlp.down_proj.weight": torch.ones(1)}
    yield "a layer far away", {**STATES["TRM"], FIRST + "L_level.layers.99999999999.w": torch.ones(1)}
    yield "one name twice", {**STATES["TRM"], "lm_head.weight": STATES["TRM"][HEAD]}
    yield "both cores", {**STATES["MLP"], **STATES["TRM"]}
    hrm = {key: tensor for key, tensor in STATES["HRM"].items() if "H_level" in key}
    yield "both families", {**STATES["TRM"], **dict(list(hrm.items())[:1])}
    yield "a slow network of the mlp core", {**STATES["MLP"], **hrm}
    yield "HRM with one slow tensor of an unknown name", {**STATES["TRM"], FIRST + "H_level.gate": torch.ones(1)}
    yield "an empty dictionary", {}
    yield "an empty dictionary in another", {"state_dict": {}}
    yield "two dictionaries", {"state_dict": STATES["TRM"], "model": STATES["TRM"]}
    yield "two averages", {"ema": STATES["TRM"], "shadow": STATES["TRM"]}
    yield "tensors beside a dictionary", {"state_dict": STATES["TRM"], "lm_head.weight": torch.ones(1)}
    yield "an average without the rest", {"ema": without("TRM", FIRST + "H_init")}
    yield "dictionaries twice nested", {"state_dict": {"model": STATES["TRM"]}}
    yield "a number among tensors", {**STATES["TRM"], "step": 3}
    yield "names that are numbers", dict(enumerate(STATES["TRM"].values()))
    yield "another program's model", {"conv1.weight": torch.ones(3, 3), "conv1.bias": torch.ones(3)}
    yield "a list", list(STATES["TRM"].values())
    yield "a tensor", torch.ones(3)
    yield "nothing", None
    yield "a text", "weights"


def wrong_files():
    """(what, bytes that are no file of tensors)"""
    for what, state in wrong_states():
        yield what, bytes_of(state)
    data, old = bytes_of(STATES["TRM"]), bytes_of(STATES["TRM"], _use_new_zipfile_serialization=False)
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        yield f"cut to {share}", data[: int(len(data) * share)]
        yield f"in the old format, cut to {share}", old[: int(len(old) * share)]
    yield "without its last byte", data[:-1]
    yield "without its first byte", data[1:]
    yield "empty", b""
    for size in (1, 10, 1000, 100_000):
        yield f"{size} random bytes", np.random.default_rng(size).bytes(size)
    yield "a magic number alone", b"PK\x03\x04"
    yield "a gzip of nothing", b"\x1f\x8b\x08\x00"
    yield "JSON", json.dumps({"H_init": [1.0]}).encode()
    yield "an endless pickle", b"\x80\x02" + b"(" * 100_000
    yield "a trap", bytes_of(Trap())
    yield "a trap in the old format", bytes_of(Trap(), _use_new_zipfile_serialization=False)
    yield "a trap among tensors", bytes_of({**STATES["TRM"], "extra": Trap()})
    yield "a whole module", bytes_of(MODELS["TRM"])
    yield "a dictionary of another class", bytes_of(Fancy(STATES["TRM"]))
    yield "an array", bytes_of({"H_init": np.ones(3)})


WRONG_OPTIONS = {
    "heads that do not divide": ("TRM", "--heads", 3, "--shape", 9),
    "no heads": ("TRM", "--heads", 0, "--shape", 9),
    "fewer heads than none": ("TRM", "--heads", -2, "--shape", 9),
    "half a head": ("TRM", "--heads", 2.5, "--shape", 9),
    "heads too thin for rotary positions": ("TRM", "--heads", 16, "--shape", 9),
    "no slow cycles": ("TRM", *GOOD, "--H-cycles", 0),
    "no fast cycles": ("TRM", *GOOD, "--L-cycles", 0),
    "negative cycles": ("HRM", *GOOD, "--L-cycles", -1),
    "cycles that are no number": ("HRM", *GOOD, "--L-cycles", "six"),
    "no steps": ("TRM", *GOOD, "--max-steps", 0),
    "no prefix": ("TRM", *GOOD, "--registers", 0),
    "a prefix that does not fit": ("LEARNED", *GOOD, "--registers", 5),
    "a prefix of all": ("MLP", "--heads", HEADS, "--registers", 25),
    "a prefix of more than all": ("MLP", "--heads", HEADS, "--registers", 26),
    "a puzzle of all positions": ("MLP", "--heads", HEADS, "--shape", 25),
    "a puzzle of more than all": ("MLP", "--heads", HEADS, "--shape", "9x9"),
    "a table of positions that is not there": ("TRM", *GOOD, "--positions", "learned"),
    "a table of positions left out": ("LEARNED", *GOOD, "--positions", "rotary"),
    "a table of positions not used": ("LEARNED", *GOOD, "--positions", "none"),
    "rotary positions without attention": ("MLP", *GOOD, "--positions", "rotary"),
    "unknown positions": ("TRM", *GOOD, "--positions", "diagonal"),
    "fixed positions": ("TRM", *GOOD, "--positions", "fixed"),
    **{
        f"the shape {shape!r}": ("TRM", "--heads", HEADS, f"--shape={shape}")
        for shape in ("0", "3x0", "-9", "9x", "x9", "3x3x3", "nine", "9.0", "9" * 50, " 9", "\u0669")
    },
    "a board that is no sudoku": ("TRM", *GOOD, "--task", "sudoku"),
    "identifiers that sudoku has not": ("MLP", *GOOD, "--task", "sudoku"),
    "an unknown task": ("TRM", *GOOD, "--task", "chess"),
    "an unknown format": ("TRM", *GOOD, "--dtype", "float16"),
    "an unknown option": ("TRM", *GOOD, "--head", 2, "--layers", 3),
}


def files_of(folder):
    """{path: content} of everything in a folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """A function that sees a command line refused: exit code 2, one line on the standard error, nothing written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        before = files_of(tmp_path)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert said.err.startswith("loopwise: ")
        assert said.err.count("\n") == 1
        assert said.err.endswith("\n")
        assert len(said.err) < 2000
        assert "internal error" not in said.err
        assert "out of memory" not in said.err
        assert files_of(tmp_path) == before
        return said.err

    return run


WRONG_FILES = dict(wrong_files())


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_file_that_is_no_published_checkpoint_is_refused(what, refused, tmp_path):
    """Damage, traps, other models, missing, surplus, misshapen and poisoned tensors: one line that names the file."""
    (tmp_path / "model.pt").write_bytes(WRONG_FILES[what])
    complaint = refused("import", "model.pt", "--out", "out", *GOOD)
    assert "model.pt" in complaint
    assert len(complaint) < 300
    assert "weights_only" not in complaint  # no advice to run what is in the file


def test_there_are_many_wrong_files():
    """No two are called the same, so that none is lost."""
    assert len(WRONG_FILES) == len(list(wrong_files())) > 150


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_options_that_do_not_fit_are_refused(what, refused, tmp_path):
    """Options that no model could have, or not this one: one line."""
    kind, *options = WRONG_OPTIONS[what]
    torch.save(STATES[kind], tmp_path / "model.pt")
    refused("import", "model.pt", "--out", "out", *options)


def test_a_size_that_nothing_tells_must_be_said(refused, tmp_path):
    """A vocabulary of no published data, rotary positions, no option: the message names the option."""
    torch.save(state_of(twin(vocabulary=7)), tmp_path / "model.pt")
    assert "--shape" in refused("import", "model.pt", "--out", "out", "--heads", HEADS)


def test_widths_of_no_expansion_are_refused(refused, tmp_path):
    """One expansion makes all SwiGLUs of a model; a file with widths that none makes is refused."""
    state = dict(STATES["MLP"])
    block = FIRST + "L_level.layers.0.mlp_t."
    state[block + "gate_up_proj.weight"] = torch.ones(2 * 3, 25)
    state[block + "down_proj.weight"] = torch.ones(25, 3)
    torch.save(state, tmp_path / "model.pt")
    assert "3 over 25" in refused("import", "model.pt", "--out", "out", *GOOD)


@pytest.mark.parametrize(
    ("width", "token_width"), [(43, None), (64, None), (256, 256), (128, 192), (43, 67), (300, 469)]
)
def test_unusual_widths_of_one_expansion_are_kept(width, token_width, importing):
    """Widths that another expansion or multiple makes are found again."""
    model = twin(core="mlp" if token_width else "attention", num_layers=1, puzzle_emb_len=16)
    state = state_of(model)
    sizes = {"mlp": (16, width)} | ({"mlp_t": (25, token_width)} if token_width else {})
    for part, (size, wide) in sizes.items():
        block = f"{FIRST}L_level.layers.0.{part}."
        state[block + "gate_up_proj.weight"] = torch.randn(2 * wide, size)
        state[block + "down_proj.weight"] = torch.randn(size, wide)
    solver = importing(state, *SMALL, "--shape", 9)
    for name in ("mlp", "token_mlp") if token_width else ("mlp",):
        assert getattr(solver.reasoner.f.blocks[0], name).down.weight.shape[1] in (width, token_width)


def test_places_that_do_not_serve_are_refused(refused, tmp_path):
    """No file, no folder, a folder for a file, a file for a folder, and a folder with something in it."""
    torch.save(STATES["TRM"], tmp_path / "model.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    assert "FILE" in refused("import")
    assert "FILE" in refused("import", "--out", "out")
    assert "--out" in refused("import", "model.pt")
    refused("import", "model.pt", "--out", "")
    assert "nothing.pt" in refused("import", "nothing.pt", "--out", "out", *GOOD)
    assert "folder" in refused("import", "folder", "--out", "out", *GOOD)
    assert "full" in refused("import", "model.pt", "--out", "full", *GOOD)
    assert "model.pt" in refused("import", "model.pt", "--out", "model.pt", *GOOD)
    assert "model.pt" in refused("import", "model.pt", "--out", "model.pt/out", *GOOD)
    shutil.rmtree(tmp_path / "full")


def test_an_empty_folder_serves(importing, tmp_path):
    """A folder that is there and empty is written into, and a second import of the file says and holds the same."""
    (tmp_path / "model").mkdir()
    importing(STATES["TRM"], *GOOD)
    assert main(["import", "model.pt", "--out", "again", *map(str, GOOD)]) == 0
    for name in ("README.md", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    tensors, notes = read_tensors(tmp_path / "model" / WEIGHTS)
    same, same_notes = read_tensors(tmp_path / "again" / WEIGHTS)
    assert notes == same_notes
    assert all(torch.equal(tensors[name], same[name]) for name in tensors.keys() | same.keys())
