"""A run that is killed, interrupted, starved of disk or driven to not-a-number, and what remains of it on the disk.

Every run is a process of its own that calls the command line, forked from a server that has imported everything, so
that a start costs a fraction of a second. The runs are small; nothing about resuming depends on the size.
"""

import contextlib
import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

import loopwise
from loopwise import runs
from loopwise.cli import main
from loopwise.storage import read_json, read_tensors
from loopwise.training import loop
from loopwise.training import trainer as trainer_module
from loopwise.training.trainer import Trainer

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["loopwise.cli.train", "torch._dynamo", "pytest"])

STEPS, EVAL_EVERY = 60, 20
PATIENCE = 120  # seconds; a run takes one or two
KILLS = 20
READY = "the command line begins"

TINY = (
    "sorting --task.n 6 --task.train 50 --task.validation 10 --task.test 10 --tracker none --halting.max-steps 4 "
    "--reasoner.hidden-size 16 --reasoner.num-heads 2 --reasoner.H-cycles 1 --reasoner.L-cycles 1 "
    "--reasoner.registers 1 --reasoner.width-multiple 8 --training.batch-size 8 --training.dtype float32 "
    f"--training.lr 1e-2 --training.warmup-steps 5 --training.device cpu --training.steps {STEPS} "
    f"--training.eval-every {EVAL_EVERY}"
).split()
OFTEN, SELDOM = ["--training.save-every", "0.01"], ["--training.save-every", "1000"]


# ---------------------------------------------------------------- runs in processes of their own


def child(arguments, output, environment=None, prepare=None):
    """Be `loopwise ARGUMENTS`, with both outputs in a file; `prepare` spoils the world before."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    os.write(descriptor, f"{READY}\n".encode())
    sys.exit(main(arguments))


class Run:
    """A process that trains, and the folder in which it does."""

    def __init__(self, folder: Path, *arguments: str, environment=None, prepare=None):
        self.output = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.txt")
        self.begin = time.monotonic()
        self.process = FORK.Process(
            target=child, args=(["train", *arguments], str(self.output), environment, prepare), daemon=True
        )
        self.process.start()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; returns the exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.said()}"
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it is not too late."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def complaint(self) -> str:
        """The one line with which the command ended; asserts that there is one, and no traceback."""
        lines = [line for line in self.said().splitlines() if line.startswith("loopwise: ")]
        assert len(lines) == 1, self.said()
        assert self.said().splitlines()[-1] == lines[0]
        assert "Traceback" not in self.said()
        return lines[0]


def start(folder, *more, prepare=None):
    return Run(folder, *TINY, "--out", str(folder), *more, prepare=prepare)


def go_on(folder, prepare=None):
    """Resume; where not even the options have been written yet, that is the same command again."""
    if (folder / "config.json").exists():
        return Run(folder, "--resume", str(folder), "--tracker", "none", prepare=prepare)
    return start(folder, *OFTEN, prepare=prepare)


def finish(folder):
    run = go_on(folder)
    assert run.wait() == 0, run.said()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(the folder of a run that nothing disturbed, the seconds that it took)."""
    folder = tmp_path_factory.mktemp("resume") / "uninterrupted"
    for _ in range(2):  # the first start of the server takes long
        if (folder / "config.json").exists():
            folder = folder.with_name("again")
        run = start(folder, *OFTEN)
        assert run.wait() == 0, run.said()
        seconds = time.monotonic() - run.begin
    return folder, seconds


def bits(tensors):
    return {name: (t.dtype, tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


def content(folder, processes=1):
    """Everything that a finished run leaves behind, but the clock times: weights and states bit for bit, and notes."""
    found = {}
    for name in ("model.safetensors", "last/model.safetensors"):
        tensors, notes = read_tensors(folder / name)
        found[name] = bits(tensors), notes["step"], notes["scores"]
    for rank in range(processes):
        tensors, notes = read_tensors(folder / "training" / f"step-{STEPS}-process-{rank}.safetensors")
        progress = {key: value for key, value in notes["progress"].items() if key != "seconds"}
        found[f"state {rank}"] = bits(tensors), notes["numbers"], progress
    return found


def assert_same_end(folder, expected, processes=1):
    __tracebackhide__ = True
    ours, theirs = content(folder, processes), content(expected, processes)
    for part, values in theirs.items():
        different = [name for name, value in values[0].items() if ours[part][0].get(name) != value]
        assert not different, f"{part}: {different} differ"
        assert ours[part] == values
    assert logged(folder) == logged(expected)


def logged(folder):
    """(kind, step) of each line of the log."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["kind"], entry["step"]) for entry in map(json.loads, lines)]


def saved_step(folder):
    latest = folder / "training" / "latest.json"
    return read_json(latest)["step"] if latest.exists() else 0


def wait_for(condition, run):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, run.said()
        assert run.process.is_alive(), run.said()
        time.sleep(0.005)


# ---------------------------------------------------------------- kill -9


def test_the_same_command_gives_the_same_weights(uninterrupted, tmp_path):
    """Nothing in a run depends on the time of day, on the process, on how often it saves or on who watches: two runs
    are equal bit for bit, and the log has every tenth step and every evaluation exactly once.
    """
    run = start(tmp_path / "run", *SELDOM, "--tracker", "tensorboard")
    assert run.wait() == 0, run.said()
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert_same_end(tmp_path / "run", uninterrupted[0])
    train = [("train", step) for step in range(10, STEPS + 1, 10)]
    evaluations = [("eval", step) for step in range(EVAL_EVERY, STEPS + 1, EVAL_EVERY)]
    assert sorted(logged(tmp_path / "run")) == sorted(train + evaluations)


@pytest.mark.timeout(300)
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(uninterrupted, tmp_path):
    """kill -9 at 20 random moments, from the start of the process to its end, each time resumed: best weights, last
    weights, moving average, optimizer, carry, randomness and data position equal those of the run that was left alone
    bit for bit, and its log has each step exactly once.
    """
    expected, seconds = uninterrupted
    rng = random.Random(20)
    before = []
    for number in range(KILLS):
        folder = tmp_path / str(number)
        run = start(folder, *OFTEN)
        if number % 2:  # by its progress, since on a busy machine the clock says little of that
            while run.process.is_alive() and saved_step(folder) < number / KILLS * STEPS / 2:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        else:
            time.sleep(rng.uniform(number, number + 1) / KILLS * seconds)
        run.kill()
        run.wait()
        before.append(saved_step(folder))
        finish(folder)
        assert_same_end(folder, expected)
    # The test is about resuming only if most kills met a run under way.
    assert len({step for step in before if 0 < step < STEPS}) >= 5


class Dying:
    """Kill this process with its nth change of the file system, before or after that has happened."""

    def __init__(self, number: int, *, after: bool):
        self.left = number
        self.after = after

    def __call__(self):
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._deadly(getattr(os, name)))

    def _deadly(self, function):
        def call(*arguments, **options):
            self.left -= 1
            if self.left == 0 and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def test_killed_between_any_two_writes_a_run_ends_with_the_same_weights(uninterrupted, tmp_path):
    """A run that is killed again and again, each time at another place of a save (a flush, a rename, the removal of the
    old state), before or after it, ends as if nothing had been.
    """
    folder = tmp_path / "run"
    deaths = [(13, True), *itertools.product((2, 3, 4, 5, 8), (False, True))]
    for number, after in deaths:
        run = go_on(folder, prepare=Dying(number, after=after))
        assert run.wait() == -signal.SIGKILL, run.said()
    assert 0 < saved_step(folder) < STEPS
    finish(folder)
    assert_same_end(folder, uninterrupted[0])


class DyingInAnEvaluation:
    """Kill this process in its nth evaluation, which the training before it was long enough to save for."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self):
        evaluate, loop.LONG = runs.evaluate, 0.0

        def deadly(model, examples):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return evaluate(model, examples)

        runs.evaluate = deadly


@pytest.mark.parametrize("number", [1, STEPS // EVAL_EVERY])
def test_an_evaluation_that_was_killed_is_made_up_for(number, uninterrupted, tmp_path):
    """A run that is killed while it is scored, at its end or before, has the scores, the weights and the log of one
    that was not: what it would have lost is done first when it goes on.
    """
    run = start(tmp_path / "run", *SELDOM, prepare=DyingInAnEvaluation(number))
    assert run.wait() == -signal.SIGKILL, run.said()
    assert saved_step(tmp_path / "run") == number * EVAL_EVERY
    finish(tmp_path / "run")
    assert_same_end(tmp_path / "run", uninterrupted[0])


def test_a_killed_save_leaves_no_scrap(tmp_path):
    """The half-written file of a save that was killed is gone once the run has been resumed to its end."""
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=Dying(8, after=False))
    assert run.wait() == -signal.SIGKILL
    assert [path for path in folder.rglob(".*") if path.is_file()], "the kill missed the writing"
    finish(folder)
    assert not list(folder.rglob(".*"))
    assert len(list((folder / "training").iterdir())) == 2


# ---------------------------------------------------------------- signals, not-a-number, full disks


def slow():
    """Take some time for each step, so that a run is met under way."""
    step = Trainer.train_step

    def slow_step(self):
        time.sleep(0.02)
        return step(self)

    Trainer.train_step = slow_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(number, uninterrupted, tmp_path):
    """SIGINT and SIGTERM end a run within a step: exit code 0, no traceback, the step that it tells is saved, and the
    command that it proposes ends with the same weights as a run that was left alone.
    """
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=slow)
    wait_for((folder / "log.jsonl").exists, run)
    run.kill(number)
    assert run.wait() == 0
    said = run.said()
    assert "Traceback" not in said
    assert f"interrupted at step {saved_step(folder)} " in said
    assert 0 < saved_step(folder) < STEPS
    assert f"loopwise train --resume {folder}" in said
    finish(folder)
    assert_same_end(folder, uninterrupted[0])


def test_a_signal_during_the_start_loses_nothing(uninterrupted, tmp_path):
    """A run that is interrupted while it starts says at most one line, no traceback, and goes on later."""
    folder = tmp_path / "run"
    for delay in (0.02, 0.1, 0.3, 0.9, 0.1, 0.5):
        run = go_on(folder, prepare=slow)
        wait_for(lambda: READY in run.said(), run)  # noqa: B023 - called at once
        time.sleep(delay)
        run.kill(signal.SIGINT)
        # Nearly always 0 or 130; but foreign C code may turn the interrupt into an error of its own.
        assert run.wait() >= 0
        assert run.said().count("loopwise: ") <= 1
        assert "Traceback" not in run.said()
    finish(folder)
    assert_same_end(folder, uninterrupted[0])


def lose_the_loss():
    """The loss of step 30 is not a number."""
    calls = itertools.count(1)
    answer_loss = trainer_module.answer_loss

    def poisoned(*arguments):
        loss, right, correct = answer_loss(*arguments)
        return (loss * math.nan if next(calls) == 30 else loss), right, correct

    trainer_module.answer_loss = poisoned


def test_a_loss_that_is_no_number_stops_the_run_with_advice(uninterrupted, tmp_path):
    """Where the loss becomes NaN the run ends with exit code 2 and one line that says at which step and what to do; the
    model solves, and the last saved state goes on to the same weights as ever.
    """
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=lose_the_loss)
    assert run.wait() == 2
    complaint = run.complaint()
    assert "at step 30" in complaint
    assert "--training.lr" in complaint
    assert saved_step(folder) == EVAL_EVERY
    assert loopwise.load(folder, slots=1).solve([[3, 1, 2, 5, 4, 0]])
    finish(folder)
    assert_same_end(folder, uninterrupted[0])


def assert_numbers(folder):
    """Every tensor on the disk is finite."""
    __tracebackhide__ = True
    for file in folder.rglob("*.safetensors"):
        tensors, _ = read_tensors(file)
        broken = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        assert not broken, f"{file.name}: {broken}"


def lose_the_gradient():
    """The gradient of the step before the second save is not a number, though its loss is one."""
    calls = itertools.count(1)
    total = Trainer._sum_gradients

    def poisoned(self):
        if next(calls) == 2 * EVAL_EVERY:
            for parameter in self.reasoner.f.parameters():
                parameter.grad.fill_(math.nan)
        return total(self)

    Trainer._sum_gradients = poisoned


def test_a_gradient_that_is_no_number_is_never_saved(uninterrupted, tmp_path):
    """Where a gradient becomes NaN right before a save, the run ends with the same advice, all that is on the disk are
    numbers, and the last good state goes on to the same weights as ever.
    """
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=lose_the_gradient)
    assert run.wait() == 2
    assert "--training.lr" in run.complaint()
    assert_numbers(folder)
    finish(folder)
    assert_same_end(folder, uninterrupted[0])


@pytest.mark.parametrize("lr", ["1e20", "1e38"])
def test_an_absurd_learning_rate_ends_with_advice(lr, tmp_path):
    """A learning rate that blows up the weights in one step ends the run with exit code 2 and one line of advice."""
    folder = tmp_path / "run"
    run = start(folder, "--training.lr", lr, "--training.eval-every", "1", "--training.warmup-steps", "0")
    assert run.wait() == 2, run.said()
    assert "lr" in run.complaint()
    assert_numbers(folder)


def worse_and_worse():
    """On the validation split the model gets worse from evaluation to evaluation."""
    evaluate = runs._Run._evaluate

    def declining(self, reasoner):
        scores = evaluate(self, reasoner)
        scores["by_steps"][-1]["exact_accuracy"] = 1 / self.trainer.step
        return scores

    runs._Run._evaluate = declining


def worse_until_the_loss_is_lost():
    worse_and_worse()
    lose_the_loss()


def test_the_best_model_is_kept_apart_from_the_last(tmp_path):
    """The model of the best validation score stays when later ones are worse, also in a run that was resumed; the last
    one is beside it, and both can be solved with.
    """
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=worse_until_the_loss_is_lost)
    assert run.wait() == 2
    run = go_on(folder, prepare=worse_and_worse)
    assert run.wait() == 0, run.said()
    assert f"best 5.0 % exact on validation at step {EVAL_EVERY}" in run.said()
    (best, best_notes), (last, last_notes) = (read_tensors(f / "model.safetensors") for f in (folder, folder / "last"))
    assert (best_notes["step"], last_notes["step"]) == (EVAL_EVERY, STEPS)
    assert bits(best) != bits(last)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [entry for entry in map(json.loads, lines) if entry["kind"] == "eval"]
    assert [entry["best"] for entry in evaluations] == [True, False, False]
    for place in (folder, folder / "last"):
        assert loopwise.load(place, slots=1).solve([[3, 1, 2, 5, 4, 0]])


class FullDisk:
    """From the nth flush on, the disk is full."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self):
        fsync = os.fsync

        def full(descriptor):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return fsync(descriptor)

        os.fsync = full


def no_large_files():
    """The kernel refuses what is larger than 20 kB: configurations and logs fit, weights and states do not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def assert_survives(folder, expected, run):
    """The run ended with one line, the old checkpoint is as it was, and goes on to the expected weights."""
    __tracebackhide__ = True
    assert run.wait() == 2, run.said()
    assert "free some space" in run.complaint()
    assert loopwise.load(folder, slots=1).solve([[3, 1, 2, 5, 4, 0]])
    assert not list(folder.rglob(".*"))
    finish(folder)
    assert_same_end(folder, expected)


def test_a_full_disk_leaves_the_old_checkpoint(uninterrupted, tmp_path):
    """A disk that is full at some save (of the weights, of the model card, of the state) ends the run with exit code 2
    and one line; the files of the save before are whole, solve, and go on.
    """
    for number in (8, 10, 12):
        folder = tmp_path / str(number)
        run = start(folder, *SELDOM, prepare=FullDisk(number))
        assert_survives(folder, uninterrupted[0], run)


def test_a_disk_that_takes_half_a_file_leaves_the_old_checkpoint(uninterrupted, tmp_path):
    """The same where the kernel itself cuts the file off in the middle, as a quota does."""
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, prepare=lose_the_loss)  # ends after the first save
    assert run.wait() == 2
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = go_on(folder, prepare=no_large_files)
    assert run.wait() == 2
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "log.jsonl")
    assert_survives(folder, uninterrupted[0], run)


def full_tracker():
    """The disk is full for TensorBoard, which writes from a thread of its own."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    RecordWriter.write = write


def test_a_tracker_that_cannot_write_shows_no_traceback(tmp_path):
    """Where TensorBoard meets a full disk, the run goes on without it or ends with one line, never with a traceback."""
    folder = tmp_path / "run"
    run = start(folder, *SELDOM, "--tracker", "tensorboard", prepare=full_tracker)
    code = run.wait()
    assert "Traceback" not in run.said()
    assert code == 0 or "free some space" in run.complaint()


# ---------------------------------------------------------------- several processes


def start_two(folder, *arguments, prepare=None):
    """The two processes of a run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        started.append(Run(folder, *arguments, environment=environment, prepare=prepare))
    return started


def assert_both_end(pair, code=0):
    __tracebackhide__ = True
    codes = [run.wait() for run in pair]
    assert codes == [code, code], "\n".join(run.said() for run in pair)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("two") / "uninterrupted"
    assert_both_end(start_two(folder, *TINY, "--out", str(folder)))
    return folder


def test_two_processes_resume_bit_for_bit(two_processes, tmp_path):
    """A signal to one of two processes makes both save at the same step and leave; a kill of both leaves the last
    common state; resumed, weights and the state of each process equal those of the run that was left alone.
    """
    folder = tmp_path / "run"
    pair = start_two(folder, *TINY, "--out", str(folder), *OFTEN, prepare=slow)
    wait_for((folder / "log.jsonl").exists, pair[0])
    pair[1].kill(signal.SIGTERM)
    assert_both_end(pair)
    step = saved_step(folder)
    assert 0 < step < STEPS
    pair = start_two(folder, "--resume", str(folder), "--tracker", "none", prepare=slow)
    wait_for(lambda: saved_step(folder) > step, pair[0])
    for run in pair:
        run.kill()
    assert_both_end(pair, -signal.SIGKILL)
    assert_both_end(start_two(folder, "--resume", str(folder), "--tracker", "none"))
    assert_same_end(folder, two_processes, processes=2)


def test_each_process_has_a_carry_and_randomness_of_its_own(two_processes):
    """Two processes end with the same weights, averages and optimizer states; their slots, random numbers and data
    differ.
    """
    states = [read_tensors(two_processes / "training" / f"step-{STEPS}-process-{rank}.safetensors") for rank in (0, 1)]
    (first, first_notes), (second, second_notes) = states
    shared = [name for name in first if name.startswith(("model.", "ema.", "optimizer."))]
    assert len(shared) > 20
    assert bits({name: second[name] for name in shared}) == bits({name: first[name] for name in shared})
    for name in ("rng", "carry.batch.0", "carry.state.0"):
        assert not torch.equal(first[name], second[name])
    assert first_notes["numbers"]["stream"]["rng"] != second_notes["numbers"]["stream"]["rng"]


def test_another_number_of_processes_is_refused(two_processes):
    """One process does not resume the state of two: exit code 2, one line that says how many are needed, and nothing
    changes on the disk.
    """
    before = {path: path.read_bytes() for path in two_processes.rglob("*") if path.is_file()}
    run = Run(two_processes, "--resume", str(two_processes), "--tracker", "none")
    assert run.wait() == 2
    assert "2 processes" in run.complaint()
    assert before == {path: path.read_bytes() for path in two_processes.rglob("*") if path.is_file()}


def test_two_processes_have_the_gradient_of_one(tmp_path):
    """On the same global batch the sum of the gradients of two processes is the gradient of one (read from the first
    moments after one step), for the networks and for the puzzle table.
    """
    options = [
        "--training.steps",
        "1",
        "--training.no-augment",
        "--training.no-shorten",
        "--training.optimizer",
        "adamw",
    ]
    alone = start(tmp_path / "one", *options)
    together = start_two(tmp_path / "two", *TINY, "--out", str(tmp_path / "two"), *options)
    assert alone.wait() == 0, alone.said()
    assert_both_end(together)
    one, _ = read_tensors(tmp_path / "one" / "training" / "step-1-process-0.safetensors")
    moments = [name for name in one if name.endswith("exp_avg")]
    assert moments
    assert any(one[name].any() for name in moments)
    for rank in (0, 1):
        two, _ = read_tensors(tmp_path / "two" / "training" / f"step-1-process-{rank}.safetensors")
        for name in moments:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(two["model.puzzles.weight"], one["model.puzzles.weight"])
