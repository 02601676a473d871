"""Search by guesses, with any model: what a guess is, when it is made, and that it is never an answer's excuse."""

import dataclasses
import random

import numpy as np
import pytest
import torch

import loopwise
from loopwise.data import cache
from loopwise.errors import CheckpointError, ConfigError
from loopwise.solving.budgets import Steps
from loopwise.solving.guessing import Guesses
from loopwise.solving.lane import Lane
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.solving.usual import usual_budget
from loopwise.storage import read_json, write_json
from loopwise.tasks.sudoku import Sudoku, SudokuConfig

SPEC = Sudoku(SudokuConfig(box="2x2")).spec
BLANK, DIGITS = 1, [2, 3, 4, 5]


def guesses(every=1, seed=0, start=0):
    return Guesses(every=every, seed=seed, start=start)


def puzzles_of(solver, count):
    """Test puzzles of a model, as tokens."""
    return list(np.asarray(cache.examples(solver.task, "test").inputs[:count]))


def test_a_guess_is_a_clue_more_by_the_networks_own_distribution():
    """A guess fills one open position, each as often, with digits as often as the logits there say, whatever they say
    of other tokens and at the clues; the puzzle itself stays as it is, and one without an open position too.
    """
    puzzle = np.array([2, *[BLANK] * 14, 3], np.int32)
    logits = np.zeros((16, SPEC.vocab_size), np.float32)
    logits[:, :2] = 50.0  # padding and blank are no guess
    logits[:, DIGITS] = np.log([0.7, 0.2, 0.1, 1e-9])
    places, digits = np.zeros(16), np.zeros(SPEC.vocab_size)
    count = 6000
    for step in range(count):
        seen = guesses().guess(puzzle, logits, SPEC, step)
        (place,) = np.flatnonzero(seen != puzzle)
        places[place] += 1
        digits[seen[place]] += 1
    assert puzzle.tolist() == [2, *[BLANK] * 14, 3]
    assert places[[0, 15]].tolist() == [0, 0]
    assert np.abs(places[1:15] / count - 1 / 14).max() < 0.02
    assert np.abs(digits[DIGITS] / count - [0.7, 0.2, 0.1, 0]).max() < 0.03
    full = np.full(16, 2, np.int32)
    assert guesses().guess(full, logits, SPEC, 1).tolist() == full.tolist()


def test_what_is_drawn_is_fixed_by_seed_start_and_step():
    """Equal seed, start and step give the same guess; another of the three gives another, sooner or later."""
    puzzle = np.full(16, BLANK, np.int32)
    logits = np.zeros((16, SPEC.vocab_size), np.float32)

    def drawn(steps=range(1, 9), **changed):
        return [guesses(**changed).guess(puzzle, logits, SPEC, step).tolist() for step in steps]

    assert drawn() == drawn()
    assert all(drawn() != other for other in (drawn(seed=1), drawn(start=1), drawn(range(2, 10))))


def test_a_pass_guesses_by_turns_and_goes_on_from_its_state(trained):
    """The network sees the puzzle itself for `every` steps, then the puzzle with one clue more, and after as many with
    another in its place; the first steps are those of a pass without guesses, bit for bit, and its state goes on.
    """
    solver = loopwise.load(trained, slots=1)
    puzzle = np.full(16, BLANK, np.int32)
    logits: list[torch.Tensor] = []
    work = solver.engine().submit(
        puzzle,
        Steps(9),
        guesses=guesses(every=3),
        check=lambda answer: False,
        watch=lambda progress, shown: logits.append(shown.clone()),
    )
    seen = []
    with torch.inference_mode():
        lane = Lane(solver.model, 1, 16, solver.device)
        lane.admit([work])
        while not work.stopped_by:
            batch = lane.batch
            seen.append(batch.inputs[0].numpy())
            _, prediction, _ = solver.model.step(lane.state, batch)
            lane.advance(lambda: 0.0)
            assert torch.equal(prediction.logits[0], logits[-1])
    assert [int((each != puzzle).sum()) for each in seen] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert seen[3].tolist() == seen[5].tolist() != seen[6].tolist() == seen[8].tolist()
    plain = solver.predictions([puzzle.tolist()], steps=3)
    assert all(torch.equal(one.logits[0], other) for one, other in zip(plain, logits[:3], strict=True))


def test_an_accepted_answer_is_kept(trained):
    """Where the rules accept the answer no guess is made, though the budget goes on: what is found stays."""
    solver = loopwise.load(trained, slots=8)
    for puzzle in puzzles_of(solver, 8):
        engine = solver.engine()
        work = engine.submit(puzzle, Steps(6), guesses=guesses(), check=lambda answer: True, watch=lambda *shown: None)
        while not work.stopped_by:
            engine.step()
        assert work.progress.seen is None


def test_guesses_find_what_the_single_pass_does_not_and_nothing_wrong():
    """In as many steps more puzzles are solved than by the single pass, all that it solves before the first guess among
    them; what is called verified has the clues of the puzzle and obeys the rules; no start is told as a single pass.
    """
    solver = loopwise.load("sudoku-6x6", slots=16)
    puzzles = puzzles_of(solver, 300)
    alone = solver.solve(puzzles, "verified|steps=32")
    found = solver.solve(puzzles, "verified|steps=32", starts=Starts(guess=4))
    assert sum(s.verified for s in found) > sum(s.verified for s in alone)
    for puzzle, one, other in zip(puzzles, alone, found, strict=True):
        assert other.single is None
        if one.verified and one.steps <= 4:
            assert (other.steps, other.tokens.tolist()) == (one.steps, one.tokens.tolist())
        if other.verified:
            assert (other.tokens == puzzle)[puzzle != BLANK].all()
            assert solver.task.verify(puzzle, other.tokens) is True


def test_who_watches_sees_the_guess(trained):
    """What is shown of a step has the puzzle with the guess that the network saw in it; where the start sees another
    view, and before the first guess, it has none.
    """
    solver, puzzle, shown = loopwise.load(trained, slots=4), np.full(16, BLANK, np.int32), []
    with solver:
        starts = Starts(count=2, views=True, guess=2, select=("first",))
        solver.begin(puzzle, 6, starts=starts, watch=shown.append).result()
    clues = {(each.start, each.step): each.seen for each in shown}
    assert clues[0, 1] is clues[0, 2] is None
    assert [int((clues[0, step] != puzzle).sum()) for step in range(3, 7)] == [1] * 4
    assert all(seen is None for (start, _), seen in clues.items() if start)


@pytest.mark.parametrize("starts", [Starts(guess=2), Starts(count=3, guess=2), Starts(count=3, views=True, guess=1)])
def test_guesses_come_to_the_same_in_any_company(starts, trained):
    """Answer, steps and start do not depend on slots' neighbours or on when a slot was free: 10 random orders and
    selections of the puzzles give what the puzzle gives alone.
    """
    solver = loopwise.load(trained, slots=4)
    puzzles = puzzles_of(solver, 8)

    def essence(solution):
        return solution.tokens.tolist(), solution.verified, solution.steps, solution.start, solution.halt_probability

    alone = [essence(*solver.solve([puzzle], "verified|steps=12", starts=starts)) for puzzle in puzzles]
    rng = random.Random(0)
    for _ in range(10):
        chosen = rng.sample(range(8), rng.randint(2, 8))
        found = solver.solve([puzzles[i] for i in chosen], "verified|steps=12", starts=starts)
        assert [essence(solution) for solution in found] == [alone[i] for i in chosen]


def test_who_guesses_stops_when_the_rules_accept():
    """Without a budget, guesses go on until the rules accept: their usual budget is that of a search."""
    solver = loopwise.load("sudoku-6x6", slots=4)
    assert str(usual_budget(solver.model, Starts(guess=2))) == "verified|steps=1000"
    assert usual_budget(solver.model, Starts()) == solver.default_budget
    (solution,) = solver.solve(puzzles_of(solver, 1), starts=Starts(guess=2))
    assert solution.stopped_by == "verified"


def test_a_model_may_guess_unless_told_otherwise(terminal, trained, tmp_path):
    """What config.json says of solving is what puzzles get: 4 starts that guess, for a number of starts and on the
    command line too; `--guess 0` is the single pass again. A file that does not say it never guesses; one that says
    nonsense is refused.
    """
    solver = loopwise.load(trained, slots=4)
    puzzle = np.full(16, BLANK, np.int32)
    folder = tmp_path / "guesser"
    Solver(dataclasses.replace(solver.model, guess=3)).save_pretrained(folder)
    guesser = loopwise.load(folder, slots=4)
    assert (solver.model.guess, guesser.model.guess) == (0, 3)
    assert (guesser.default_starts, str(guesser.default_budget)) == (4, "verified|steps=1000")
    asked = {None: (4, 3), 1: (1, 3), 2: (2, 3), Starts(): (1, 0), Starts(count=2, views=True): (2, 0)}
    assert {key: ((s := guesser.starts(key)).count, s.guess) for key in asked} == asked
    (usual,), (single,) = guesser.solve([puzzle], 12), guesser.solve([puzzle], 12, starts=Starts())
    (plain,) = solver.solve([puzzle], 12)
    assert usual.single is None
    assert usual.total_steps > 12
    assert (single.tokens.tolist(), single.steps) == (plain.tokens.tolist(), plain.steps)

    board = "." * 16
    records = [terminal.records("solve", path, board, "--json")[0] for path in (folder, trained)]
    assert records[0]["stopped_by"] == "verified" != records[1]["stopped_by"]
    (told,) = terminal.records("solve", folder, board, "--json", "--guess", "0")
    assert told["answer"] == records[1]["answer"]
    (scored,) = terminal.records("eval", folder, "--json", "--limit", "2", "--budget", "6")
    assert (scored["search"], scored["answers"][0]["starts"], scored["answers"][0]["guess"]) == (True, 4, 3)
    (scored,) = terminal.records("eval", folder, "--json", "--limit", "2", "--budget", "6", "--guess", "0")
    assert (scored["search"], [each["starts"] for each in scored["answers"]]) == (False, [1])

    config = read_json(folder / "config.json")
    for solving, says in (({"guess": -1}, "whole number"), ({}, "malformed")):
        write_json(folder / "config.json", {**config, "solving": solving})
        with pytest.raises(CheckpointError, match=says):
            loopwise.load(folder)


def test_what_cannot_guess_is_refused(sorter):
    """Guesses want symbols that are interchangeable and can be clues, and a model that does not guess by itself."""
    assert SPEC.guessable == DIGITS
    with pytest.raises(ConfigError, match="nothing to guess"):
        loopwise.load(sorter).solve(["1 2 3 4 5 6"], starts=Starts(guess=1))
    with pytest.raises(ConfigError, match="lattice guesses by itself"):
        loopwise.load("sudoku-extreme-lattice").starts(Starts(guess=1))
    with pytest.raises(ConfigError, match="at least 0"):
        Starts(guess=-1)


def test_the_commands_guess(terminal, trained):
    """`solve --guess` and `eval --guess` answer as the solver does with such starts, 4 unless told; the scores
    say that they are a search's; a trace shows the guess among the clues.
    """
    solver = loopwise.load(trained, slots=256)
    data = cache.examples(solver.task, "test")
    solutions = solver.solve(
        list(np.asarray(data.inputs)), "verified|steps=12", starts=Starts(count=4, views=True, guess=3, seed=4)
    )
    options = ("--budget", "verified|steps=12", "--guess", "3", "--seed", "4")
    (record,) = terminal.records("eval", trained, "--json", *options)
    (entry,) = record["answers"]
    assert record["search"] is True
    assert (entry["starts"], entry["guess"]) == (4, 3)
    assert entry["verified"] == np.mean([s.verified for s in solutions])
    assert entry["mean_steps"] == np.mean([s.total_steps for s in solutions])
    out = terminal.works("eval", trained, "--limit", "4", *options)
    assert "a guess every 3 steps" in out
    assert "single" not in out.split("Exact:")[0]
    for guess in ("0", "3"):
        of_several = ("--starts", "1,2", "--select", "vote", "--seed", "3", "--budget", "2", "--guess", guess)
        terminal.works("eval", trained, "--limit", "2", *of_several)
    several = terminal.records("eval", trained, "--json", "--limit", "4", *options, "--starts", "2,1")[0]["answers"]
    assert [each["starts"] for each in several] == [1, 2]

    board = "." * 16
    (solved,) = terminal.records("solve", trained, board, "--json", *options)
    assert "single" not in solved
    (*_, last) = terminal.records("solve", trained, board, "--json", "--trace", *options)  # of several starts
    assert (last["answer"], last["verified"], last["step"]) == (solved["answer"], solved["verified"], solved["steps"])
    options = (*options, "--starts", "1")
    (solved,) = terminal.records("solve", trained, board, "--json", *options)
    (*_, last) = terminal.records("solve", trained, board, "--json", "--trace", *options)
    assert (last["answer"], last["verified"], last["step"]) == (solved["answer"], solved["verified"], solved["steps"])
    shown = terminal.works("solve", trained, board, "--trace", "--guess", "1", "--starts", "1", "--budget", "2")
    assert "step 2, with a guess among the clues" in shown


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("eval --guess 2 --curve", "leave --guess away"),
        ("eval --guess 2 --max-steps 4", "leave budget"),
        ("eval --guess -1 --budget 3", "at least 0"),
        ("solve --guess 2 --starts 1 --sigma-init 1 --sample 0", "several starts"),
    ],
)
def test_options_that_make_no_sense_are_refused(command, says, terminal, trained):
    """A guess is refused where it would have no effect."""
    name, *options = command.split()
    assert says in terminal.refuses(name, trained, *options)
