"""Solving from the command line: lines of any content and pace, budgets, starts and curves; and the page about it."""

import io
import json
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import loopwise
from counting import POISON, counting_model
from loopwise.cli import lines as lines_module
from loopwise.cli.lines import LONGEST, Lines
from loopwise.data import cache
from loopwise.errors import PuzzleError
from loopwise.evaluation import evaluate_answers
from loopwise.solving.budget_text import as_budget
from loopwise.solving.solver import NOT_YET, Solver
from loopwise.solving.starts import Starts
from loopwise.storage import read_json
from loopwise.types import Examples
from terminal import loopwise_process

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "solving.md"
ROWS = ["3 1 2", "5 5 0 1", "[2, 9]", "7", "4 4 4 4", "0 9 8 1 2"]
BOARD = "1...|..2.|.3..|...4"


def untimed(record):
    """A record without what differs from run to run."""
    record = {name: value for name, value in record.items() if name != "seconds"}
    return record | ({"single": untimed(record["single"])} if "single" in record else {})


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**16])
def test_lines_are_the_same_wherever_the_pieces_end(chunk, tmp_path, monkeypatch):
    """Lines of all lengths, with characters of several bytes, come out whole however the file is read."""
    rng = random.Random(chunk)
    texts = ["".join(rng.choices("ab é漢\U0001f9e9", k=rng.randrange(12))) for _ in range(200)]
    file = tmp_path / "lines"
    file.write_text("\n".join(texts), encoding="utf-8")
    monkeypatch.setattr(lines_module, "CHUNK", chunk)
    lines = Lines(str(file))
    found = []
    for line in lines:
        found.append(line)
        lines.answered()
    assert found == [text for text in texts if text.strip()]
    assert lines.share == 1.0


def test_a_line_that_is_no_text_or_too_long_is_an_error_in_its_place(tmp_path):
    """Bytes that are not UTF-8 and a line of megabytes without end are errors of their lines alone; a byte order mark
    and line ends of other systems are passed over.
    """
    long = b"7" * (3 * LONGEST)
    (tmp_path / "lines").write_bytes(b"\xef\xbb\xbf1 2\r\n3 \xff\n\n4\n" + long + b"\n5\n\xe2\x82\n6 \x00" + long)
    found = list(Lines(str(tmp_path / "lines")))
    assert [type(value) for value in found] == [str, PuzzleError, str, PuzzleError, str, PuzzleError, PuzzleError]
    assert [value for value in found if isinstance(value, str)] == ["1 2", "4", "5"]
    assert "byte 3 is not UTF-8" in str(found[1])
    assert "longer than" in str(found[3])


def test_a_line_that_has_not_come_is_waited_for_only_where_nothing_else_is_to_do(monkeypatch):
    """While an answer is on its way, a pipe without a line gives NOT_YET at once; else the line is waited for."""
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stdin, open(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        lines = Lines("")
        source = iter(lines)
        pipe.write(b"a\nb")
        assert next(source) == "a"
        assert [next(source), next(source)] == [NOT_YET, NOT_YET]
        lines.answered()
        begun = time.monotonic()
        threading.Timer(0.3, pipe.write, [b"c\n"]).start()
        assert next(source) == "bc"
        assert time.monotonic() - begun > 0.25
        pipe.close()
        lines.answered()
        assert list(source) == []


def test_a_closed_standard_input_is_refused(terminal, sorter, monkeypatch):
    """A program that is started without a standard input says so."""
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input is closed" in terminal.refuses("solve", sorter, "-")


# ---------------------------------------------------------------- streams


def test_bad_lines_in_a_stream_are_records_in_their_places(terminal, sorter):
    """Among good lines a bad row, bytes that are no text and broken JSON give errors in their places; the other records
    are those of a stream without them.
    """
    good = terminal.records("solve", sorter, "-", "--json", stdin="\n".join(ROWS))
    bad = [b"1 x", b"\xff\xfe", b'{"input": [1, 2', b'{"output": 1}']
    stream = [ROWS[0].encode(), bad[0], bad[1], *(row.encode() for row in ROWS[1:]), bad[2], bad[3]]
    code, out, err = terminal.type("solve", sorter, "-", "--json", stdin=b"\n".join(stream))
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    assert [i for i, record in enumerate(records) if "error" in record] == [1, 2, 8, 9]
    assert [untimed(r) for r in records if "error" not in r] == [untimed(r) for r in good]


def test_unordered_records_come_as_they_are_ready_and_say_whose_they_are(terminal, sorter):
    """--unordered gives the same records with the index of their puzzles; an error does not wait for the others."""
    stream = "\n".join([*ROWS, "x"])
    _, out, _ = terminal.type("solve", sorter, "-", "--json", stdin=stream)
    ordered = [json.loads(line) for line in out.splitlines()]
    code, out, _ = terminal.type("solve", sorter, "-", "--json", "--unordered", stdin=stream)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert records[0]["index"] == 6
    assert sorted(record["index"] for record in records) == list(range(7))
    assert all(untimed(r) == {"index": r["index"], **untimed(ordered[r["index"]])} for r in records)


def test_a_slow_stream_gets_each_answer_before_the_next_line(sorter):
    """With 64 slots a single line is answered while the input stays open. Waiting costs no time of the processor; an
    interrupt meanwhile ends with 130.
    """
    with loopwise_process("solve", sorter, "-", "--json") as process:
        for row in ROWS:
            process.stdin.write(f"{row}\n")
            process.stdin.flush()
            assert "answer" in json.loads(process.stdout.readline())
        time.sleep(0.3)
        before = psutil.Process(process.pid).cpu_times()
        time.sleep(0.5)
        assert psutil.Process(process.pid).cpu_times().user - before.user < 0.1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "loopwise: interrupted\n"
        assert process.stdout.read() == ""


def test_a_terminal_is_told_how_many_answers_obey_the_rules(sorter, tmp_path):
    """Answers in lines look alike, right or wrong: with the standard error on a terminal their number is told there."""
    (tmp_path / "rows").write_text("\n".join([*ROWS[:3], "x"]))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "loopwise", "solve", sorter, "--file", tmp_path / "rows"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert len(process.stdout.read().splitlines()) == 4
        told = b""
        while b"one a line" not in told or not told.endswith(b"\n"):
            told += os.read(ours, 4096)
    os.close(ours)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) x (\w+ the rules|no answer)", told.decode())}
    assert "4 puzzles, one a line: " in told.decode()
    assert counts["no answer"] == 1
    assert sum(counts.values()) == 4


def test_progress_is_told_on_a_terminal_and_the_answers_are_left_alone(sorter, tmp_path):
    """With the standard error on a terminal and the output elsewhere count and rate are told, the answers are whole."""
    (tmp_path / "rows").write_text("\n".join(ROWS * 20 + ["x"]))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "loopwise", "solve", sorter, "--file", tmp_path / "rows", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        records = [json.loads(line) for line in process.stdout.read().splitlines()]
        told = b""
        while b"121 puzzles" not in told:
            told += os.read(ours, 4096)
    os.close(ours)
    assert len(records) == 121
    assert "error" in records[-1]
    assert b"a second, 100 % of the file read" in told


@pytest.mark.parametrize("starts", [1, 3])
def test_a_long_stream_keeps_its_order(starts):
    """The benchmark of streams finds every answer and every error in its place."""
    command = [sys.executable, ROOT / "benchmarks" / "streaming.py", "--puzzles", "1500", "--starts", str(starts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,500 lines in order: 1,49" in done.stdout
    assert "1 errors in their places, exit code 2" in done.stdout


# ---------------------------------------------------------------- budgets and starts


@pytest.mark.parametrize(
    ("budget", "stopped_by", "steps"),
    [
        ("7", "steps", 7),
        ("verified|steps=9", "verified", None),
        ("flops=1|steps=9", "flops", 1),
        ("converged=1|steps=40", "converged", None),
        ("seconds=1000|steps=2", "steps", 2),
        ("(halted=0|steps=9)&steps=3", "halted&steps", 3),
    ],
)
def test_every_budget_can_be_named(budget, stopped_by, steps, terminal):
    """--budget takes all of them, combined, and the record tells which one stopped the puzzle."""
    row = "3 1 2 9 4 4 0 7 5 5 1 8 6 2 2 3"
    (record,) = terminal.records("solve", "sorting", row, "--json", "--budget", budget)
    assert record["stopped_by"] == stopped_by
    assert steps in (None, record["steps"])
    assert stopped_by != "verified" or record["verified"]


def test_a_time_that_is_over_before_the_first_step_is_an_error_of_its_puzzle(terminal, trained):
    """A deadline that nobody can keep gives an error record and exit code 2."""
    code, out, err = terminal.type("solve", trained, BOARD, "--json", "--budget", "seconds=1e-9")
    assert (code, err) == (2, "")
    assert "the time was over" in json.loads(out)["error"]


def test_several_starts_tell_the_single_pass_apart(terminal, trained):
    """A record of several starts has the chosen start, the steps of all, and the very record of the single pass."""
    boards = "\n".join([BOARD, "." * 16, ".234341221434321"])
    single = terminal.records("solve", trained, "-", "--json", stdin=boards)
    several = terminal.records("solve", trained, "-", "--json", "--starts", "5", stdin=boards)
    for one, best in zip(single, several, strict=True):
        assert untimed(best["single"]) == untimed(one)
        assert 0 <= best["start"] < 5
        assert best["total_steps"] >= best["steps"] + one["steps"] * (best["start"] > 0)
        assert best["verified"] >= one["verified"]
    assert "the single pass: " in terminal.works("solve", trained, BOARD, "--starts", "5")


def test_the_seed_fixes_the_starts(terminal, trained):
    """Equal seeds give equal records, with views and with noise; another seed and other noise give others."""

    def run(*options):
        options = ("--json", "--starts", "4", "--select", "q,first", *options)
        return [untimed(r) for r in terminal.records("solve", trained, "-", *options, stdin=f"{BOARD}\n{'.' * 16}")]

    for noise in ([], ["--sigma-init", "0.7"], ["--sigma-step", "0.2"]):
        assert run(*noise, "--seed", "5") == run(*noise, "--seed", "5") != run(*noise, "--seed", "6")
    assert run() != run("--sigma-init", "0.7")
    for record in run("--sigma-init", "1e-6"):  # hardly any noise, and no views beside it
        assert record["total_steps"] == 4 * record["steps"]
        assert record["halt_probability"] == pytest.approx(record["single"]["halt_probability"], abs=1e-4)


def test_a_trace_ends_with_its_budget(terminal, trained):
    """--trace shows the steps of the budget and no more, line by line; a bad line is an error in its place."""
    options = ("--trace", "--json", "--budget", "3")
    code, out, err = terminal.type("solve", trained, "-", *options, stdin=f"{BOARD}\n12\n{'.' * 16}\n")
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    assert [(r["puzzle"], r["step"]) for r in records if "step" in r] == [(p, s) for p in (1, 3) for s in (1, 2, 3)]
    assert "4x4" in records[3]["error"] or "cells" in records[3]["error"]
    (solved,) = terminal.records("solve", trained, BOARD, "--json", "--budget", "3")
    (*_, last) = terminal.records("solve", trained, BOARD, *options)
    assert (last["answer"], last["verified"]) == (solved["answer"], solved["verified"])


# ---------------------------------------------------------------- scores under budgets


def test_answers_under_a_budget_are_those_of_the_solver(terminal, trained):
    """`eval --budget --starts` counts what the solver answers, the single pass first, with intervals."""
    solver = loopwise.load(trained, slots=256)
    data = cache.examples(solver.task, "test")
    (record,) = terminal.records("eval", trained, "--json", "--budget", "verified|steps=6", "--starts", "3")
    assert [entry["starts"] for entry in record["answers"]] == [1, 3]
    for entry in record["answers"]:
        starts = Starts(count=entry["starts"], views=entry["starts"] > 1)
        solutions = solver.solve([np.array(row) for row in data.inputs], "verified|steps=6", starts=starts)
        exact = [np.array_equal(s.tokens, labels) for s, labels in zip(solutions, data.labels, strict=True)]
        assert entry["exact_accuracy"] == np.mean(exact)
        assert entry["verified"] == np.mean([s.verified for s in solutions])
        assert entry["mean_steps"] == np.mean([s.total_steps for s in solutions])
        assert sum(entry["stopped_by"].values()) == record["puzzles"] == 40
        low, high = entry["interval_95"]
        assert low <= entry["exact_accuracy"] <= high
    out = terminal.works("eval", trained, "--budget", "6")
    for word in ("budget steps=6", "1 (single)", "steps 40", "sha256"):
        assert word in out


def test_an_evaluation_tells_what_came_of_each_puzzle(terminal, trained, tmp_path):
    """`--answers FILE` has a line for each puzzle and number of starts, in order, that add up to the scores."""
    options = ("--limit", "5", "--budget", "verified|steps=6", "--starts", "1,3", "--answers", "lines.jsonl", "--json")
    (record,) = terminal.records("eval", trained, *options)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [(line["starts"], line["puzzle"]) for line in lines] == [(n, i) for n in (1, 3) for i in range(5)]
    for entry in record["answers"]:
        told = [line for line in lines if line["starts"] == entry["starts"]]
        assert entry["verified"] == np.mean([line["verified"] for line in told])
        assert entry["exact_accuracy"] == np.mean([line["exact"] for line in told])
        assert entry["mean_steps"] == np.mean([line["steps"] for line in told])
        assert all(line["seconds"] > 0 and len(line["tokens"]) == 16 for line in told)


def test_an_evaluation_may_think_deeper_with_the_same_weights(terminal, trained):
    """`--reasoner.` changes what needs no other weights, which the record tells; the rest is refused in one line."""
    (usual,) = terminal.records("eval", trained, "--limit", "4", "--max-steps", "1", "--json")
    (deeper,) = terminal.records(
        "eval", trained, "--limit", "4", "--max-steps", "1", "--json", "--reasoner.L-cycles", "9"
    )
    assert deeper["flops_per_step"] > usual["flops_per_step"]
    assert deeper["reasoner"] == {**usual["reasoner"], "L_cycles": 9}
    assert "another hidden_size" in terminal.refuses("eval", trained, "--reasoner.hidden-size", "8")


def test_puzzles_of_another_size_are_solved_by_the_same_weights(terminal):
    """`--task.size` solves mazes of 5x5 with the shipped weights, which were trained on 30x30; without it the error
    names the option, and with other tokens or other weights there is one error, too.
    """
    maze = "S.#...#........##.#....#G"
    said = json.loads(terminal.works("solve", "maze-hard", maze, "--task.size", "5", "--json"))
    assert said["verified"] is True
    assert "`size`" in terminal.refuses("solve", "maze-hard", maze)
    assert "fit" in terminal.refuses("solve", "maze-hard", maze, "--task.size", "5", "--reasoner.hidden-size", "16")
    assert "knows" in terminal.refuses("solve", "sudoku-6x6", "1234", "--task.box", "3x3")


def test_a_puzzle_without_an_answer_is_not_right():
    """An error counts as a puzzle that is not solved, and is named."""
    inputs = np.array([[2, 1, 1], [2, POISON, 1], [4, 1, 1]], np.int32)
    labels = np.repeat(inputs[:, :1], 3, axis=1)
    solver = Solver(counting_model(), slots=2, device="cpu")
    told = []
    examples = Examples(inputs, labels, labels[:, 0] * 0)
    answers = evaluate_answers(solver, examples, as_budget("verified|3"), Starts(), told.append)
    assert (answers.puzzles, answers.exact, answers.verified) == (3, 1, 1)
    assert [(each.exact, each.stopped_by, each.steps) for each in told] == [
        (True, "verified", 2),
        (False, "error", 0),
        (False, "steps", 3),
    ]
    assert answers.stopped_by == {"verified": 1, "error": 1, "steps": 1}
    assert answers.steps == pytest.approx((2 + 0 + 3) / 3)


def test_a_curve_has_tables_numbers_and_a_picture(terminal, trained, tmp_path):
    """`eval --curve` scores fixed steps beyond those in training, the single pass stopped when verified, and starts.
    More steps and more starts never lower the verified share of the latter two.
    """
    options = ("--curve", "--max-steps", "1,2,8", "--starts", "1,2,4", "--out", "new/curves")
    out = terminal.works("eval", trained, *options)
    for word in ("single pass, after so many steps", "stopped when verified", "several starts", "1 (single)"):
        assert word in out
    folder = tmp_path / "new" / "curves"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "curve.md").read_text()
    assert page.count(f"\n{'| --- ' * 5}|\n") == 3
    assert "(curve.png)" in page
    record = read_json(folder / "curve.json")
    (same,) = terminal.records("eval", trained, *options, "--json")
    for entry in (*same["until_verified"], *same["starts"], *record["until_verified"], *record["starts"]):
        assert entry.pop("median_seconds") > 0
    assert same.items() <= record.items()
    assert [entry["steps"] for entry in record["by_steps"]] == [1, 2, 8]
    assert [entry["budget"] for entry in record["until_verified"]] == [f"verified|steps={n}" for n in (1, 2, 8)]
    assert [entry["starts"] for entry in record["starts"]] == [1, 2, 4]
    for entries in (record["until_verified"], record["starts"]):
        shares = [entry["verified"] for entry in entries]
        assert shares == sorted(shares)
    for fixed, stopped in zip(record["by_steps"], record["until_verified"], strict=True):
        assert stopped["verified"] >= fixed["verified"]
        assert stopped["mean_steps"] <= fixed["steps"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--budget halted", "may never end"),
        ("--budget soon", "soon"),
        ("--starts 0", "at least 1"),
        ("--starts 1,x", "list of starts"),
        ("--starts 2 --select best", "best"),
        ("--select q", "add --starts"),
        ("--budget 4 --sigma-init 1", "add --starts"),
        ("--budget 4 --max-steps 1,2", "--max-steps"),
        ("--starts 2 --max-steps 1,2", "--curve"),
        ("--budget 4 --starts 1 --seed 3", "add --starts"),
        ("--curve --max-steps 0", "at least 1"),
        ("--budget 4 --out there", "add --curve"),
        ("--answers there", "add --budget"),
        ("--budget 4 --answers none/there", "cannot be written"),
        ("--curve --starts 2 --sigma-step -1", "at least 0"),
    ],
)
def test_scores_that_make_no_sense_are_refused(options, says, terminal, sorter):
    """Budgets, starts and their options are checked before the work."""
    assert says in terminal.refuses("eval", sorter, *options.split())


def test_a_curve_without_matplotlib_is_refused_before_the_work(terminal, sorter, monkeypatch):
    """Where the picture cannot be drawn, nothing is computed, and the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("loopwise.cli.eval.evaluate_curve", lambda *_: pytest.fail("computed"))
    assert "pip install 'loopwise[plot]'" in terminal.refuses("eval", sorter, "--curve")


# ---------------------------------------------------------------- the page


def test_the_examples_of_the_page_run(terminal, capsys):
    """The Python of docs/solving.md runs as one program, and its first answers take the steps that it says."""
    text = PAGE.read_text(encoding="utf-8")
    names = {}
    outputs = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
        outputs.append(capsys.readouterr().out.split())
    assert outputs[0][1:4] == ["True", "3", "verified"]
    assert outputs[0][5:8] == ["True", "25", "verified"]
    assert outputs[-1][-2:] == ["of", "100"]


def test_the_commands_of_the_page_run(terminal, tmp_path):
    """Each command of docs/solving.md does its work."""
    (tmp_path / "puzzles.txt").write_text("3 1 2 9 4 4 0 7 5 5 1 8 6 2 2 3\n" * 3)
    commands = re.findall(r"^loopwise (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(re.sub(r"[<>] \S+", "", command))
        stdin = (tmp_path / "puzzles.txt").read_text() if "<" in command else None
        assert terminal.works(*words, stdin=stdin)


def test_text_from_a_stream_without_a_file_number_is_read(monkeypatch):
    """A standard input that is no file of the system's, such as one of a test, is read line by line."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    assert list(Lines("")) == ["a", "b"]
