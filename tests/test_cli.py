"""The command line as users meet it, the friendly and the hostile: in this process where that shows the same."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import loopwise
from loopwise.cli import COMMANDS, main
from loopwise.data import fetch as fetch_module
from loopwise.errors import PuzzleError
from loopwise.storage import read_tensors
from loopwise.tasks.sorting import Sorting, SortingConfig
from terminal import files_of, loopwise_process

BOARD = "1...|..2.|.3..|...4"  # 4x4, separators are passed over
SOLVED = "1234341221434321"
COMPLETED = ".234341221434321"


# ---------------------------------------------------------------- puzzles that cannot be solved


@pytest.mark.parametrize(
    ("puzzle", "says"),
    [
        ("", "0 cells"),
        ("   ", "0 cells"),
        ("1234", "4 cells"),
        (SOLVED + "1", "17 cells"),
        ("x" + SOLVED[1:], "unknown symbol 'x'"),
        ("5" + SOLVED[1:], "unknown symbol '5'"),
        ("\u0661" + SOLVED[1:], "unknown symbol"),  # a digit, for Unicode
        ("\u00b2" + SOLVED[1:], "unknown symbol"),
        ("1\x00" + SOLVED[2:], "unknown symbol"),
        ("11..............", "twice"),
        ("1...1...........", "twice"),
        ("1....1..........", "twice"),
        ("[1, 2]", "2 cells"),
        ("[]", "0 cells"),
        ("[[1, 2, 3, 4]]", "1 rows"),
        ("[[1], [2], [3], [4]]", "row 1"),
        ("[[[[[[1]]]]]]", ""),
        ("[" * 5000, "unknown symbol"),
        ("[" * 5000 + "]" * 5000, ""),
        (json.dumps([99] + [0] * 15), "cell 1"),
        (json.dumps([10**400] + [0] * 15), "cell 1"),
        (json.dumps([1.5] + [0] * 15), "cell 1"),
        (json.dumps([True] + [0] * 15), "cell 1"),
        (json.dumps(["1"] + [0] * 15), "cell 1"),
        ('{"puzzle": "1"}', "input"),
        ('{"input": null}', ""),
        ("{}", "input"),
        ("{", "unknown symbol"),
        ("null", "unknown symbol"),
        ("9" * 5000, "unknown symbol"),
        ("[" + "9" * 5000 + "]", ""),
    ],
)
def test_a_puzzle_that_cannot_be_read_is_refused(puzzle, says, terminal, trained):
    """Whatever is wrong with the puzzle on the command line, the answer is one line that names it, and exit code 2."""
    assert says in terminal.refuses("solve", trained, puzzle)


@pytest.mark.parametrize(
    "puzzle", ["1 2 x", "1 2 99", "-1", "[1, -1]", "[1, 2.5]", "1.5 2", "[[1, 2]]", "1e3", "\u0661"]
)
def test_a_row_that_cannot_be_read_is_refused(puzzle, terminal, sorter):
    """The same for rows of numbers."""
    terminal.refuses("solve", sorter, puzzle)


def test_a_bad_puzzle_is_a_record_and_stops_no_other(terminal, trained):
    """With --json the record of a bad line says why, the others have their answers, in order."""
    lines = [SOLVED, "12", '{"input": null}', "null", '{"inputs": []}', "{", json.dumps({"input": COMPLETED}), "[[[]]]"]
    code, out, err = terminal.type("solve", trained, "-", "--json", stdin="\n".join(lines))
    records = [json.loads(line) for line in out.splitlines()]
    assert ["error" in record for record in records] == [False, True, True, True, True, True, False, True]
    assert all("\n" not in record["error"] for record in records if "error" in record)
    assert err == ""
    assert code in (0, 2)


def test_a_bad_line_keeps_the_others_in_place(terminal, trained):
    """Without --json a bad line leaves an empty line, its number and reason go to the standard error, exit code 2."""
    code, out, err = terminal.type("solve", trained, "-", stdin=f"{SOLVED}\n12\n{COMPLETED}\n")
    assert code == 2
    assert [bool(line) for line in out.split("\n")[:3]] == [True, False, True]
    assert err.startswith("loopwise: puzzle 2: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", bytes(range(256)) * 20])
def test_a_binary_file_is_refused(content, terminal, trained, tmp_path):
    """Of a file that is no text every line is refused, as a file and as the standard input."""
    (tmp_path / "puzzles.bin").write_bytes(content)
    for arguments, stdin in ((("--file", tmp_path / "puzzles.bin"), None), (("-",), content)):
        code, out, err = terminal.type("solve", trained, *arguments, stdin=stdin)
        assert (code, out.strip()) == (2, "")
        assert "the line is no text" in err
        assert all(line.startswith("loopwise: puzzle ") for line in err.splitlines())


def test_a_file_that_is_none_is_refused(terminal, trained, tmp_path):
    """No file, a folder, a name that cannot be one."""
    assert "no file" in terminal.refuses("solve", trained, "--file", "nowhere.txt")
    terminal.refuses("solve", trained, "--file", tmp_path)
    terminal.refuses("solve", trained, "--file", "a\0b")
    terminal.refuses("solve", trained, "--file", "x" * 5000)


def test_an_empty_file_has_no_answers(terminal, trained, tmp_path):
    """Nothing to solve is nothing said: an empty file and empty lines give no answers, and no error."""
    (tmp_path / "empty").write_text("")
    assert terminal.works("solve", trained, "--file", tmp_path / "empty") == ""
    assert terminal.works("solve", trained, "-", "--json", stdin="\n \n\n") == ""


# ---------------------------------------------------------------- commands and options that make no sense


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sovle", "solve"),
        ("--nonsense", "unknown command"),
        ("train", "say what to train"),
        ("train sudokku", "sudoku"),
        ("train no_such_module:Task", "cannot import"),
        ("train json:loads", "not a concrete subclass"),
        ("train :", ""),
        ("train sorting --task.m 4", "--task.m"),
        ("train sorting --task.n", ""),
        ("train sorting --task.n four", "four"),
        ("train sorting --task.n 0", "task.n"),
        ("train sorting --task.n -3", ""),
        ("train sorting --training.lr nan", "lr"),
        ("train sorting --training.lr inf", "lr"),
        ("train sorting --training.lr -1", "lr"),
        ("train sorting --training.lr 0", "lr"),
        ("train sorting --training.weight-decay nan", "weight_decay"),
        ("train sorting --training.lr-end nan", "lr_end"),
        ("train sorting --training.warmup-steps -5", "warmup_steps"),
        ("train sorting --training.stop-at nan", "stop_at"),
        ("train sorting --training.seed -1", "seed"),
        ("train sorting --training.steps 0", "steps"),
        ("train sorting --training.batch-size 0", "batch_size"),
        ("train sorting --training.ema 1", "ema"),
        ("train sorting --training.loss hinge", "hinge"),
        ("train sorting --training.device abacus", ""),
        ("train sorting --halting.max-steps 0", "max_steps"),
        ("train sorting --halting.exploration 2", "exploration"),
        ("train sorting --halting.weight nan", "weight"),
        ("train sorting --reasoner.num-heads 7", "num_heads"),
        ("train sorting --reasoner.hidden-size 0", "hidden_size"),
        ("train sorting --reasoner.expansion nan", "expansion"),
        ("train sorting --reasoner.seed -1 --training.steps x", ""),
        ("train sorting --reasoner tmr", "trm"),
        ("train sorting --reasoner", "needs a value"),
        ("train sorting --tracker nonsense", "tracker"),
        ("train sorting --time-limit soon", "duration"),
        ("train sorting --time-limit 1.2.3s", "duration"),
        ("train sorting --time-limit 5x", "duration"),
        ("train sorting --resume", "needs a value"),
        ("train sudoku --task.box 3", ""),
        ("train sudoku --task.box 1x1", ""),
        ("train table", "--task.file"),
        ("train table --task.file missing.csv", "missing.csv"),
        ("train --resume nowhere", "nowhere"),
        ("eval", "which model"),
        ("eval nowhere", "nowhere"),
        ("eval owner/name/more", ""),
        ("solve", "which model"),
        ("solve nowhere 123", "nowhere"),
        ("data", "inspect|build"),
        ("data inspect", "say which"),
        ("data inspcet sorting", "inspect"),
        ("data inspect nothing", "unknown task"),
        ("data inspect sorting --task.n 0", "task.n"),
        ("data build nothing", "unknown task"),
        ("data fetch", "say which"),
        ("data fetch sudoku-extrem", "sudoku-extreme"),
        ("tasks now", ""),
        ("models --jsn", "--json"),
        ("doctor --colour", ""),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(line, says, terminal):
    """Unknown commands, tasks, options and values that cannot be: one line, exit code 2, nothing written."""
    arguments = line.split()
    if line.startswith("train s") and "--resume" not in arguments:
        # What is not refused is a run of one step, not of an hour.
        small = {"--out": "run", "--tracker": "none", "--training.steps": "1", "--training.batch-size": "2"}
        arguments[2:2] = [word for pair in small.items() if pair[0] not in arguments for word in pair]
    assert says in terminal.refuses(*arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--max-steps 3", "--max-steps"),
        ("--budget many", "'many'"),
        ("--budget 1.5", "1.5"),
        ("--budget 0", "at least 1"),
        ("--budget halted", "|steps=64"),
        ("--budget halted=2|4", "probability"),
        ("--budget halted=nan|4", "probability"),
        ("--budget (halted|4", "parenthesis"),
        ("--budget seconds=0", "more than 0"),
        ("--starts -1", "starts must be at least 0"),
        ("--starts few", "few"),
        ("--starts 2 --select best", "'best'"),
        ("--starts 2 --select ", "--select"),
        ("--starts 2 --sigma-init -1", "at least 0"),
        ("--starts 2 --sigma-step nan", "sigma_step"),
        ("--starts 2 --seed -1", "at least 0"),
        ("--select q", "add --starts"),
        ("--seed 3", "add --starts"),
        ("--unordered", "--json"),
        ("--unordered --json --trace", "--trace"),
        ("--starts 2 --trace", "--trace"),
        ("--slots 0", "slots"),
        ("--slots -4", "slots"),
        ("--slots 1e9", "1e9"),
        ("--device abacus", "abacus"),
        ("--device cuda:99", ""),
        ("--sample -1", "sample"),
        ("--sample 1000000", "sample"),
        ("--nonsense", "nonsense"),
        ("--file", ""),
    ],
)
def test_solving_options_that_make_no_sense_are_refused(options, says, terminal, sorter):
    """The same for the options of solve, without a puzzle on the side where they bring their own."""
    puzzle = [] if options.startswith(("--sample", "--file")) else ["-"]
    assert says in terminal.refuses("solve", sorter, *puzzle, *options.split(), stdin="1 2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--max-steps 0", "at least 1"),
        ("--max-steps -1,2", ""),
        ("--max-steps ,", "whole numbers"),
        ("--max-steps 1;2", "whole numbers"),
        ("--split tset", "tset"),
        ("--limit -1", "limit"),
        ("--slots 0", "slots"),
        ("--task.n 0", "task.n"),
        ("--task.values 5", "values"),
        ("--task.values 11", "values"),
        ("--task.colour red", "colour"),
    ],
)
def test_evaluation_options_that_make_no_sense_are_refused(options, says, terminal, sorter):
    """The same for the options of eval; the vocabulary of a trained model is fixed."""
    assert says in terminal.refuses("eval", sorter, *options.split())


def test_a_puzzle_and_a_file_are_one_too_many(terminal, sorter):
    """Two sources of puzzles, and none, are refused."""
    assert "one of" in terminal.refuses("solve", sorter)
    assert "one of" in terminal.refuses("solve", sorter, "1 2", "--file", "x")
    assert "one of" in terminal.refuses("solve", sorter, "-", "--sample", "1")


def test_an_out_that_cannot_be_is_refused(terminal, trained, tmp_path):
    """A run goes neither into a file, nor below one, nor over another run."""
    options = ["train", "sorting", "--tracker", "none", "--task.train", "20", "--training.steps", "1", "--out"]
    (tmp_path / "file").write_text("precious")
    terminal.refuses(*options, tmp_path / "file")
    terminal.refuses(*options, tmp_path / "file" / "run")
    terminal.refuses(*options, "/proc/nowhere/run")
    before = files_of(trained)
    assert "--resume" in terminal.refuses(*options, trained)
    assert files_of(trained) == before


# ---------------------------------------------------------------- checkpoints that are none


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


DAMAGES = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "cut": cut,
    "a bit flipped": flip,
    "text": lambda data: b"hello",
    "a list": lambda data: b"[]",
    "somebody else's": lambda data: b'{"model_type": "bert", "hidden_size": 768}',
    "a pickle": lambda data: b"\x80\x04\x95\x0b\x00\x00\x00",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_refused(name, damage, terminal, trained, tmp_path):
    """A file of a checkpoint that is missing, cut, flipped in a bit or foreign: solve and eval say so in one line."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    data = DAMAGES[damage]((folder / name).read_bytes())
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    for command in (["solve", folder, SOLVED], ["eval", folder]):
        terminal.refuses(*command)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "training/latest.json", "training/step-80-process-0.safetensors"])
def test_a_damaged_training_state_is_refused(name, damage, terminal, trained, tmp_path):
    """A run whose state is damaged is not resumed, and not started again over what there is."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    data = DAMAGES[damage]((folder / name).read_bytes())
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    elif name == "training/latest.json":
        shutil.rmtree(folder / "training")  # no state at all is a run that was stopped before its first save
        (folder / "config.json").unlink()
    terminal.refuses("train", "--resume", folder, "--tracker", "none")


def test_a_foreign_folder_is_no_checkpoint(terminal, tmp_path):
    """Folders of other programs, empty folders and files are refused."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "other" / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    for name in ("empty", "file", "other"):
        terminal.refuses("solve", tmp_path / name, "1")
        terminal.refuses("eval", tmp_path / name)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "", "empty"),
        ("t.jsonl", "", "empty"),
        ("t.jsonl", "\n\n", "empty"),
        ("t.csv", "question,answer\n1,2\n", "input"),
        ("t.jsonl", '{"input": "1"}\n', "output"),
        ("t.jsonl", '{"input": [[1, 2], [3]], "output": [[1]]}\n', "line 1"),
        ("t.jsonl", '{"input": "1", "output": "1"}\n{"input": [1], "output": [1]}\n', "line 2"),
        ("t.jsonl", '{"input": "1", "output": "1"}\n{"input": \n', "line 2"),
        ("t.jsonl", "[1, 2]\n", "line 1"),
        ("t.jsonl", '{"input": null, "output": null}\n', "line 1"),
        ("t.csv", "input,output\n1,2,3\n", "line 2"),
        ("t.csv", 'input,output\n"1,2\n', ""),
        ("t.csv", "input,output\n1,2\n", "20"),
        ("t.txt", "input,output\n1,2\n", ".csv"),
        ("t.jsonl.gz", "no gzip", "gzip"),
        ("t.json", '{"input": "1"}', "list"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(name, content, says, terminal, tmp_path):
    """A column that is missing, uneven grids, an empty file and their like name the place and what to do."""
    (tmp_path / name).write_text(content)
    for command in (["train", "table", "--out", "run"], ["data", "inspect", "table"], ["data", "build", "table"]):
        assert says in terminal.refuses(*command, "--task.file", name)


def test_a_table_goes_from_a_file_to_solved_rows_by_two_commands(terminal, tmp_path):
    """300 rows in a file; one command trains, one solves new rows in the form in which they are written."""
    rng = random.Random(0)
    with open(tmp_path / "reverse.jsonl", "w", encoding="utf-8") as file:
        for number in range(300):
            text = "".join(rng.choice("abcd") for _ in range(5)) + "abcd"[number % 4]
            file.write(json.dumps({"input": text, "output": text[::-1]}) + "\n")
    options = (
        "--tracker none --reasoner.hidden-size 16 --reasoner.num-heads 2 --reasoner.registers 1 "
        "--reasoner.H-cycles 1 --reasoner.L-cycles 1 --training.steps 5 --training.batch-size 8 --halting.max-steps 2"
    )
    code, _, err = terminal.type("train", "table", "--task.file", "reverse.jsonl", "--out", "run", *options.split())
    assert code == 0
    assert "finished at step 5" in err
    records = terminal.records("solve", "run", "-", "--json", stdin='abcdab\n{"input": "dddd"}\n')
    assert [type(record["answer"]) for record in records] == [str, str]
    assert all(set(record["answer"]) <= set("abcd?") for record in records)
    assert all(record["verified"] is None for record in records)
    (tmp_path / "reverse.jsonl").unlink()
    assert len(terminal.records("solve", "run", "abcdab", "--json")) == 1  # the file is not needed any more


# ---------------------------------------------------------------- solving


def test_answers_are_the_same_through_every_door(terminal, trained, tmp_path):
    """File, standard input and Python give the same answers in order; each has the form of its puzzle; the records have
    the promised fields.
    """
    flat = [int(c) for c in COMPLETED.replace(".", "0")]
    grid = [flat[i : i + 4] for i in range(0, 16, 4)]
    values = [COMPLETED, BOARD, flat, grid, {"input": COMPLETED}, {"input": grid}, SOLVED]
    lines = [v if isinstance(v, str) else json.dumps(v) for v in values]
    (tmp_path / "puzzles").write_text("\n".join(lines) + "\n")
    from_file = terminal.records("solve", trained, "--file", tmp_path / "puzzles", "--json")
    from_stdin = terminal.records("solve", trained, "-", "--json", stdin="\n\n".join(lines))
    puzzles = [v["input"] if isinstance(v, dict) else v for v in values]
    solutions = loopwise.load(trained).solve(puzzles)
    for one, two, solution, puzzle in zip(from_file, from_stdin, solutions, puzzles, strict=True):
        assert set(one) == {"answer", "verified", "steps", "stopped_by", "halt_probability", "seconds"}
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
        assert (one["answer"], one["verified"], one["steps"]) == (solution.answer, solution.verified, solution.steps)
        assert one["stopped_by"] in {"halted", "steps"}
        assert 0 <= one["halt_probability"] <= 1
        assert one["seconds"] > 0
        assert type(one["answer"]) is type(puzzle)
        assert np.shape(one["answer"]) == np.shape(puzzle)
    assert from_file[1]["answer"].count("|") == 3
    assert from_file[-1]["answer"] == SOLVED or from_file[-1]["verified"] is False


def test_a_single_puzzle_is_drawn_with_its_verdict(terminal, trained):
    """Without --json a puzzle is shown as a board, and below it whether the rules accept it, the steps and the time."""
    out = terminal.works("solve", trained, COMPLETED)
    assert len(out.strip().splitlines()) == 6  # four rows, a line between the boxes, the verdict
    assert "obeys the rules" in out or "breaks the rules" in out
    assert "step" in out
    assert terminal.works("solve", trained, json.dumps({"input": COMPLETED})).splitlines()[:5] == out.splitlines()[:5]


def test_a_trace_shows_each_step(terminal, trained):
    """--trace shows the answer after every step, as boards or as records, and stops where the puzzle is solved."""
    records = terminal.records("solve", trained, COMPLETED, "--trace", "--json", "--budget", "verified|halted|3")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert all(len(record["answer"]) == 16 for record in records)
    assert records[-1]["verified"] or len(records) == 3
    assert not any(record["verified"] for record in records[:-1])
    steps = loopwise.load(trained, slots=1).trace(COMPLETED, max_steps=3)
    for record, step in zip(records, steps, strict=False):
        assert record["answer"] == step.answer
        assert record["halt_probability"] == pytest.approx(step.halt_probability)
    out = terminal.works("solve", trained, COMPLETED, "--trace", "--budget", "verified|halted|3")
    assert out.count("halt probability") == len(records)


def test_a_trace_of_a_bad_puzzle_is_refused(terminal, trained):
    """--trace complains like solve."""
    assert "4 cells" in terminal.refuses("solve", trained, "1234", "--trace")


def test_budgets_reach_the_solver(terminal, sorter):
    """--budget has its effect, as text or as a number; more steps than in training are allowed."""
    for steps in (1, 3, 9):
        (record,) = terminal.records("solve", sorter, "3 1 2", "--json", "--budget", str(steps))
        assert (record["steps"], record["stopped_by"]) == (steps, "steps")
    (record,) = terminal.records("solve", sorter, "3 1 2", "--json", "--budget", "halted=0|steps=5")
    assert (record["steps"], record["stopped_by"]) == (1, "halted")


def test_a_sample_is_a_test_puzzle(terminal, trained):
    """--sample N solves a puzzle of the test split; with --json the answer can be read by a program."""
    assert "rules" in terminal.works("solve", trained, "--sample", "3")
    (record,) = terminal.records("solve", trained, "--sample", "3", "--json")
    assert set(record) >= {"answer", "verified", "steps"}


# ---------------------------------------------------------------- evaluating, and the smaller commands


def test_an_evaluation_is_consistent(terminal, trained):
    """Every accuracy lies in its interval, shares are counts over puzzles, and for a task whose solution is unique what
    is exact is what the rules accept; the same data and weights give the same scores.
    """
    command = ["eval", trained, "--max-steps", "4,1,2,8", "--json"]
    (record,) = terminal.records(*command)
    assert [entry["steps"] for entry in record["by_steps"]] == [1, 2, 4, 8]
    assert (record["task"], record["split"], record["puzzles"], record["trained_steps"]) == ("sudoku", "test", 40, 4)
    assert record["flops_per_step"] > 0
    assert len(record["data_sha256"]) == 16
    for entry in [*record["by_steps"], record["when_halted"]]:
        low, high = entry["interval_95"]
        assert 0 <= low <= entry["exact_accuracy"] <= high <= 1
        assert (entry["exact_accuracy"] * 40) % 1 == pytest.approx(0, abs=1e-9)
        assert entry["verified"] == entry["exact_accuracy"]
        assert entry["verified_interval_95"] == entry["interval_95"]
    for entry in record["by_steps"]:
        assert entry["token_accuracy"] >= entry["exact_accuracy"]
    assert 1 <= record["when_halted"]["mean_steps"] <= 8
    assert terminal.records(*command) == [record]


def test_an_evaluation_covers_other_splits_sizes_and_fewer_puzzles(terminal, sorter):
    """--split, --limit and the options of the task choose other puzzles; a row-sorting model takes longer rows."""
    (base,) = terminal.records("eval", sorter, "--json")
    (few,) = terminal.records("eval", sorter, "--limit", "7", "--json")
    (longer,) = terminal.records("eval", sorter, "--task.n", "9", "--json")
    (validation,) = terminal.records("eval", sorter, "--split", "validation", "--json")
    assert (base["puzzles"], few["puzzles"], validation["puzzles"]) == (40, 7, 20)
    assert len({r["data_sha256"] for r in (base, few, longer, validation)}) == 4
    assert longer["flops_per_step"] > base["flops_per_step"]


def test_weights_that_serve_any_size_are_measured_and_trained_on_at_another(terminal, tmp_path):
    """With the convolution core --task.size of eval builds the larger grid, and --training.start-from begins a run on
    it with the same weights; what does not fit is refused in a line."""
    options = "maze --task.size {} --task.min-moves 3 --task.train 20 --task.validation 10 --task.test 10"
    options += " --reasoner looped --reasoner.hidden-size 8 --reasoner.width-multiple 8 --reasoner.registers 0"
    options += " --reasoner.core {} --reasoner.num-layers 1 --training.batch-size 4 --training.steps 2"
    options += " --training.eval-every 2 --training.ema 0 --training.warmup-steps 0 --tracker none"

    def train(name, size, core, *more):
        command = options.format(size, core).split()
        return ["train", *command, "--out", str(tmp_path / name), *more]

    assert main(train("small", 4, "convolution")) == 0
    (record,) = terminal.records("eval", tmp_path / "small", "--task.size", "7", "--json")
    assert record["puzzles"] == 10
    begin = ["--training.start-from", str(tmp_path / "small")]
    assert main(train("large", 7, "convolution", *begin, "--training.lr", "1e-9", "--training.weight-decay", "0")) == 0
    weights = [read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("small", "large")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)
    # A run that was stopped before it had saved anything begins with them too.
    shutil.rmtree(tmp_path / "large" / "training")
    (tmp_path / "large" / "model.safetensors").unlink()
    assert main(["train", "--resume", str(tmp_path / "large"), "--tracker", "none"]) == 0
    resumed, _ = read_tensors(tmp_path / "large" / "model.safetensors")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-6)
    assert "do not fit" in terminal.refuses(*train("other", 7, "attention", *begin))
    nowhere = train("none", 7, "convolution", "--training.start-from", "nowhere")
    assert "no weights to start from" in terminal.refuses(*nowhere)


def test_the_network_of_a_search_goes_on_as_a_single_pass(terminal, tmp_path):
    """A looped network over symbols starts from the weights of a lattice, whose further heads it leaves; the other way
    round there is something missing, which is said in a line.
    """
    options = "sudoku --task.box 2x2 --task.train 20 --task.validation 10 --task.test 0 --training.ema 0"
    options += " --reasoner.hidden-size 8 --reasoner.width-multiple 8 --reasoner.num-layers 1 --training.steps 1"
    options += " --training.batch-size 4 --training.warmup-steps 0 --training.lr 1e-9 --training.weight-decay 0"

    def train(name, reasoner, *more):
        command = [*options.split(), "--reasoner", reasoner, "--tracker", "none"]
        return ["train", *command, "--out", str(tmp_path / name), *more]

    assert main(train("search", "lattice")) == 0
    assert main(train("pass", "equivariant-looped", "--training.start-from", str(tmp_path / "search"))) == 0
    search, single = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("search", "pass"))
    assert set(single) < set(search)
    for name, tensor in single.items():
        torch.testing.assert_close(tensor, search[name], rtol=0, atol=1e-6)
    back = train("back", "lattice", "--training.start-from", str(tmp_path / "pass"))
    assert "do not fit" in terminal.refuses(*back)


def test_more_blocks_begin_as_copies_of_those_there_are(terminal, tmp_path):
    """A model of three blocks that starts from one of two has these two and the first again, resumed or not, with the
    initial state of those; the other way round a block would be lost, which is said in a line.
    """
    options = "sudoku --task.box 2x2 --task.train 20 --task.validation 10 --task.test 0 --training.ema 0"
    options += " --reasoner equivariant-looped --reasoner.hidden-size 8 --reasoner.width-multiple 8 --training.steps 1"
    options += " --training.batch-size 4 --training.warmup-steps 0 --training.lr 1e-9 --training.weight-decay 0"

    def train(name, blocks, *more):
        command = [*options.split(), "--reasoner.num-layers", blocks, "--tracker", "none", *more]
        assert main(["train", *command, "--out", str(tmp_path / name)]) == 0
        return tmp_path / name

    two = train("two", "2")
    three = train("three", "3", "--training.start-from", str(two))
    began, grown = (read_tensors(folder / "model.safetensors")[0] for folder in (two, three))
    assert len({name for name in grown if ".blocks.2." in name}) >= 5
    assert not torch.equal(began["f.blocks.0.mlp.down.weight"], began["f.blocks.1.mlp.down.weight"])
    for name, tensor in grown.items():
        torch.testing.assert_close(tensor, began[name.replace(".blocks.2.", ".blocks.0.")], rtol=0, atol=1e-6)
    begin = ["--training.start-from", str(two), "--reasoner.seed", "1"]
    whole = train("whole", "3", *begin, "--training.steps", "2")
    parts = train("parts", "3", *begin)
    assert main(["train", "--resume", str(parts), "--training.steps", "2", "--tracker", "none"]) == 0
    for folder in (whole, parts):
        ended = read_tensors(folder / "model.safetensors")[0]
        assert torch.equal(ended["z_init"], began["z_init"])
    lost = ["train", *options.split(), "--reasoner.num-layers", "1", "--training.start-from", str(three)]
    assert "has more blocks" in terminal.refuses(*lost, "--out", tmp_path / "one")


def test_an_evaluation_is_shown_as_a_table(terminal, trained):
    """Without --json there is a table with the protocol below it."""
    out = terminal.works("eval", trained, "--max-steps", "1,2")
    for word in ("95 % interval", "verified", "FLOPs", "halted", "no votes", "sha256"):
        assert word in out


def test_an_evaluation_tells_its_number_format(terminal, trained):
    """`--dtype` is that of the activations, and the record has it; another name than those known is refused."""
    for options, wanted in (((), "float32"), (("--dtype", "bfloat16"), "bfloat16")):
        (record,) = terminal.records("eval", trained, "--limit", "5", "--json", *options)
        assert record["dtype"] == wanted
    assert "known: trained, float32, bfloat16" in terminal.refuses("eval", trained, "--dtype", "float8")


def test_validation_during_training_equals_an_evaluation(terminal, trained):
    """The scores that a run kept with its weights are those that eval measures on the same split."""
    kept = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    best = [entry for entry in kept if entry["kind"] == "eval" and entry["best"]][-1]
    (record,) = terminal.records("eval", trained, "--split", "validation", "--json")
    assert record["by_steps"] == best["by_steps"]
    assert record["when_halted"] == best["when_halted"]


@pytest.mark.parametrize("command", ["", *COMMANDS, "data fetch", "data inspect sorting", "train sorting"])
def test_every_command_explains_itself_with_examples(command, terminal):
    """--help of every command exits with 0 and shows examples that can be typed."""
    out = terminal.works(*command.split(), "--help")
    assert "loopwise" in out
    if command:
        assert out.count(f"loopwise {command.split()[0]} ") + out.count(f"loopwise {command.split()[0]}\n") >= 2


def test_the_version_is_told(terminal):
    """--version prints it and nothing else."""
    assert terminal.works("--version").strip() == loopwise.__version__


def test_tasks_and_recipes_are_listed(terminal):
    """`loopwise tasks` has every task and recipe, with their options."""
    out = terminal.works("tasks")
    for word in ("sorting", "rolling-sum", "sudoku", "table", "sudoku-6x6", "box="):
        assert word in out


def test_models_and_doctor_tell_what_there_is(terminal, monkeypatch):
    """`models` and `doctor` run, for people and for programs; on a narrow terminal, too, no model's name is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    table = terminal.works("models")
    for record in terminal.records("models", "--json"):
        assert f" {record['name']} " in table
    (findings,) = terminal.records("doctor", "--json")
    assert findings["device"]
    assert findings["loopwise"] == loopwise.__version__
    assert "torch" in terminal.works("doctor")


def test_data_is_inspected_and_built(terminal, tmp_path):
    """`data inspect` tells sizes and shows a puzzle; `data build` writes the arrays of the task."""
    options = ["sorting", "--task.n", "5", "--task.train", "30", "--task.validation", "6", "--task.test", "7"]
    task = Sorting(SortingConfig(n=5, train=30, validation=6, test=7))
    shown = terminal.works("data", "inspect", *options)
    terminal.works("data", "build", *options, "--out", tmp_path / "out")
    for split, count in (("train", 30), ("validation", 6), ("test", 7)):
        inputs, labels = (np.load(tmp_path / "out" / split / f"{name}.npy") for name in ("inputs", "labels"))
        examples = task.examples(split)
        assert len(inputs) == count
        np.testing.assert_array_equal(inputs, examples.inputs)
        np.testing.assert_array_equal(labels, examples.labels)
        assert split in shown
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (facts["task"], facts["vocab_size"], facts["shape"]) == ("sorting", 11, [5])
    (tmp_path / "file").write_text("x")
    terminal.refuses("data", "build", *options, "--out", tmp_path / "file")


def test_fetching_without_a_network_is_one_line(terminal, monkeypatch):
    """Where the hub cannot be reached, `data fetch` says so, and how to do without."""

    def unreachable(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    for name in fetch_module.SOURCES:
        complaint = terminal.refuses("data", "fetch", name, "--out", "data")
        assert "network" in complaint
        assert "by hand" in complaint


def test_what_arrives_damaged_is_refused(terminal, monkeypatch, tmp_path):
    """A download whose checksum is not that of the hub is not kept; a right one is, and is not fetched twice."""
    source = tmp_path / "download.csv"
    source.write_text("question,answer\n")
    fetched = []

    def download(repository, file, repo_type):
        fetched.append(file)
        return str(source)

    def metadata(url):
        return SimpleNamespace(etag=tag)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    tag = "0" * 64
    assert "checksum" in terminal.refuses("data", "fetch", "maze-hard", "--out", "data")
    tag = hashlib.sha256(source.read_bytes()).hexdigest()
    for _ in range(2):
        assert len(terminal.works("data", "fetch", "maze-hard", "--out", "data").splitlines()) == 2
    assert fetched == ["train.csv", "train.csv", "test.csv"]
    assert (tmp_path / "data" / "maze-hard" / "test.csv").read_bytes() == source.read_bytes()


# ---------------------------------------------------------------- as a process


def test_a_mistake_is_one_line_of_a_process_too(tmp_path):
    """The exit code and the one line reach the shell."""
    process = loopwise_process("solve", tmp_path / "nowhere", "1")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("loopwise: ")
    assert err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(trained):
    """`loopwise solve ... | head -1` ends without a complaint, wherever the pipe breaks."""
    with loopwise_process("solve", trained, "-", "--json", "--slots", "1") as process:
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{COMPLETED}\n" * 40)
            process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 141)


def test_an_interrupt_while_solving_is_one_line(trained):
    """Ctrl-C during a solve says one line and exits with 130; what was solved before has been written."""
    with loopwise_process("solve", trained, "-", "--json", "--slots", "1") as process:
        process.stdin.write(f"{COMPLETED}\n" * 2000)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["answer"]  # the first window is done
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "loopwise: interrupted\n"


def test_a_bug_of_ours_is_one_line_and_can_be_seen(terminal, monkeypatch):
    """An error that nobody foresaw is one line that asks for a report; LOOPWISE_DEBUG shows where it is."""

    def broken(arguments):
        raise ZeroDivisionError("so\nit is")

    monkeypatch.setattr("loopwise.cli.tasks.main", broken)
    code, out, err = terminal.type("tasks")
    assert (code, out) == (1, "")
    assert (
        err
        == "loopwise: internal error, please report it (ZeroDivisionError: so it is); LOOPWISE_DEBUG=1 shows where\n"
    )
    monkeypatch.setenv("LOOPWISE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["tasks"])
    assert os.environ["LOOPWISE_DEBUG"]


def test_a_checker_is_looked_at_before_anything_is_written(terminal, tmp_path):
    """A run whose checker is not there is refused at its start, and its folder stays free."""
    rows = [f"{number:05b},{number:05b}" for number in range(32)]
    (tmp_path / "rows.csv").write_text("\n".join(["input,output", *rows]), encoding="utf-8")
    command = ("train", "table", "--task.file", tmp_path / "rows.csv", "--out", tmp_path / "run")
    assert "cannot import the checker" in terminal.refuses(*command, "--task.checker", "no_such_module:f")


def test_a_misspelt_model_is_recognised(terminal):
    """A shipped model's name that is nearly right is suggested, and where the others are listed is said."""
    said = terminal.refuses("solve", "sudoku6x6", "1")
    assert "did you mean 'sudoku-6x6'?" in said
    assert "`loopwise models`" in said


def test_one_puzzle_in_place_of_a_list_is_told_so(trained):
    """A text is no list of puzzles of a symbol each."""
    with pytest.raises(PuzzleError, match="put the one puzzle into a list"):
        loopwise.load(trained).solve("3 1 2")


def test_a_board_of_another_size_is_told_so(terminal):
    """A 9x9 puzzle for a 6x6 model has the wrong number of cells, whatever its symbols."""
    assert "has 81 cells, a 6x6 sudoku has 36" in terminal.refuses("solve", "sudoku-6x6", "9" + 80 * ".")


def test_a_taken_port_is_told_so(terminal):
    """Where another program listens already, that is said, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port {port} is taken" in terminal.refuses("serve", "sorting", "--port", port)
