"""The solver and the evaluation: the same answers from both, whoever sits in the neighbouring slots."""

import itertools
import math
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import loopwise
from loopwise.checkpoint import Model
from loopwise.data import cache
from loopwise.errors import ConfigError, PuzzleError
from loopwise.evaluation import evaluate, wilson
from loopwise.reasoners.base import Reasoner, ReasonerConfig, Recursion
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.solving.budgets import HALT_THRESHOLD, Halted
from loopwise.solving.solver import WINDOW, Solver
from loopwise.tasks.maze import Maze, MazeConfig
from loopwise.tasks.maze_paths import PATH
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.types import Examples, Prediction

SLOTS = 5
MAX_STEPS = 8


@pytest.fixture(scope="module")
def model():
    """A model with random weights on sorting, whose halting head is as random as the rest: some puzzles stop at once,
    some never, most in between.
    """
    task = Sorting(SortingConfig(n=6, train=20, validation=5, test=60))
    config = TRMConfig(hidden_size=16, num_heads=2, H_cycles=1, L_cycles=2, registers=1, width_multiple=8)
    reasoner = TRM(config, task.spec)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        reasoner.halt.weight.normal_(0, 3, generator=rng)
        reasoner.halt.bias.fill_(-3.0)
    return Model(
        task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness(HaltingConfig(max_steps=MAX_STEPS))
    )


@pytest.fixture(scope="module")
def data(model):
    return model.task.examples("test")


@pytest.fixture(scope="module")
def puzzles(data):
    """The test split as lists of numbers."""
    return (data.inputs - 1).tolist()


@pytest.fixture(scope="module")
def solver(model):
    return Solver(model, slots=SLOTS, device="cpu")


def outcome(solution):
    """What must not depend on anything but puzzle and slot count."""
    return solution.answer, solution.steps, solution.stopped_by, solution.halt_probability, solution.verified


# ---------------------------------------------------------------- the solver


def test_the_model_halts_at_many_different_steps(solver, puzzles):
    """The other tests of this file mean something: the stops spread from the first step to the budget."""
    solutions = solver.solve(puzzles)
    assert len({s.steps for s in solutions}) >= 4
    assert {s.stopped_by for s in solutions} == {"halted", "steps"}


@pytest.mark.parametrize("threshold", [0.0, 0.5, HALT_THRESHOLD, 1.0])
def test_a_puzzle_stops_exactly_where_the_model_says(threshold, solver, puzzles):
    """Let to stop by itself, a puzzle ends at the first step whose halting probability is above the threshold, with the
    answer of that step, else with the budget's last.
    """
    for puzzle, solution in zip(puzzles, solver.solve(puzzles, Halted(threshold) | MAX_STEPS), strict=True):
        steps = solver.trace(puzzle)
        assert len(steps) == MAX_STEPS
        wants = next((i for i, step in enumerate(steps, 1) if step.halt_probability > threshold), None)
        assert (solution.steps, solution.stopped_by) == ((wants, "halted") if wants else (MAX_STEPS, "steps"))
        np.testing.assert_array_equal(solution.tokens, steps[solution.steps - 1].tokens)
        assert solution.answer == steps[solution.steps - 1].answer
        assert solution.halt_probability == steps[solution.steps - 1].halt_probability


def test_the_usual_threshold_is_the_solvers_own(solver, puzzles):
    """Who says nothing gets the documented threshold; one that is no probability is refused."""
    usual, named = solver.solve(puzzles), solver.solve(puzzles, f"halted={HALT_THRESHOLD}|steps={MAX_STEPS}")
    assert [outcome(s) for s in usual] == [outcome(s) for s in named]
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="probability"):
            solver.solve(puzzles, f"halted={threshold}|steps=2")


@pytest.mark.parametrize("max_steps", [1, 3, MAX_STEPS, MAX_STEPS + 4])
def test_the_budget_of_steps_is_kept_by_each_puzzle(max_steps, solver, puzzles):
    """Each puzzle gets the steps that are allowed, counted from its entry into a slot, also more than in training."""
    freed = solver.solve(puzzles, Halted() | max_steps)
    assert max(s.steps for s in freed) == max_steps
    for solution in solver.solve(puzzles, max_steps):
        assert (solution.steps, solution.stopped_by) == (max_steps, "steps")


def test_an_answer_does_not_depend_on_the_neighbours(solver, puzzles):
    """At equal slots a puzzle gets the same answer, steps and halting probability bit for bit in 50 random orders and
    selections of the others, and alone.
    """
    expected = {tuple(p): outcome(s) for p, s in zip(puzzles, solver.solve(puzzles), strict=True)}
    rng = random.Random(0)
    for _ in range(50):
        chosen = rng.sample(puzzles, rng.randint(1, len(puzzles)))
        for puzzle, solution in zip(chosen, solver.solve(chosen), strict=True):
            assert outcome(solution) == expected[tuple(puzzle)]


def test_puzzles_of_different_lengths_are_solved_side_by_side(solver):
    """A model with rotary positions takes a stream of mixed lengths; each answer is that of the puzzle alone."""
    rng = random.Random(1)
    mixed = [[rng.randrange(10) for _ in range(rng.choice([3, 6, 11]))] for _ in range(30)]
    for puzzle, solution in zip(mixed, solver.solve(mixed), strict=True):
        assert len(solution.answer) == len(puzzle)
        assert outcome(solution) == outcome(solver.solve([puzzle])[0])


def test_a_stream_is_read_no_further_than_a_window(solver):
    """Of ten thousand puzzles no more are read than one window beyond the answer that was asked for, so memory and the
    wait for the first answer do not grow with the stream.
    """
    read = 0

    def source():
        nonlocal read
        for number in range(10_000):
            read += 1
            yield [number % 10, 3, 1]

    answers = solver.stream(source(), 1)
    assert read == 0
    for given, result in enumerate(itertools.islice(answers, 3 * SLOTS * WINDOW), 1):
        assert result.steps == 1
        assert read <= given - 1 + SLOTS * WINDOW
    assert read < 10_000


def test_a_stream_without_end_gives_answers(solver):
    """The first answers of an endless stream come."""
    first = list(itertools.islice(solver.stream(itertools.repeat("3 1 2")), 3))
    assert first[0].answer == first[2].answer
    assert isinstance(first[0].answer, str)


def test_errors_stand_in_their_place(solver, puzzles):
    """A puzzle that cannot be read gives its error in its place and changes no other answer; `solve` names it."""
    broken = [puzzles[0], "1 x 2", puzzles[1], [], None, puzzles[2], [99]]
    results = list(solver.stream(broken))
    assert [isinstance(r, PuzzleError) for r in results] == [False, True, False, True, True, False, True]
    for index, puzzle in ((0, puzzles[0]), (2, puzzles[1]), (5, puzzles[2])):
        assert outcome(results[index]) == outcome(solver.solve([puzzle])[0])
    with pytest.raises(PuzzleError, match=r"^puzzle 2: "):
        solver.solve(broken)


def test_no_puzzles_give_no_answers(solver):
    """An empty list and an empty stream are fine."""
    assert solver.solve([]) == []
    assert list(solver.stream(iter(()))) == []


@pytest.mark.parametrize("max_steps", [0, -1])
def test_no_steps_are_refused(max_steps, solver):
    """A budget of no steps is a mistake, for an answer as for a trace."""
    with pytest.raises(ConfigError, match="at least 1"):
        solver.solve([[1, 2]], max_steps)
    with pytest.raises(ConfigError, match="at least 1"):
        solver.trace([1, 2], max_steps=max_steps)


def test_no_slots_are_refused(model):
    """A solver needs a slot."""
    with pytest.raises(ConfigError, match="slots"):
        Solver(model, slots=0)


def test_the_answer_has_the_form_of_the_puzzle(solver):
    """A text gives a text, with its separator, a list a list, and the same answer in each form."""
    text, commas, numbers, tokens = solver.solve(["3 1 2", "3,1,2", [3, 1, 2], np.array([4, 2, 3], np.int32)])
    assert text.answer.split(" ") == commas.answer.split(",") == [str(n) for n in numbers.answer]
    np.testing.assert_array_equal(tokens.answer, numbers.tokens)


def test_tokens_are_whole_numbers_of_the_vocabulary(solver):
    """An array of anything else is refused in a line, not rounded, wrapped around or read as text."""
    tokens = np.array([4, 2, 3])
    for wrong in (tokens + 0.9, tokens + 2**32, -tokens, tokens[None], tokens.astype(str), tokens > 2):
        with pytest.raises(PuzzleError, match=r"^tokens are an array \[L\] of whole numbers below \d+$"):
            solver.solve([wrong])
    assert len(solver.trace(tokens, max_steps=2.0)) == 2


def test_a_model_is_the_same_after_saving(solver, puzzles, tmp_path):
    """`save_pretrained` and `from_pretrained` (and `loopwise.load`) give the same answers bit for bit."""
    solver.save_pretrained(tmp_path / "model")
    for again in (
        Solver.from_pretrained(tmp_path / "model", slots=SLOTS),
        loopwise.load(tmp_path / "model", slots=SLOTS),
    ):
        assert again.trained_steps == MAX_STEPS
        ours, theirs = again.solve(puzzles), solver.solve(puzzles)
        assert [outcome(s) for s in ours] == [outcome(s) for s in theirs]


# ---------------------------------------------------------------- the evaluation


def test_a_model_solves_in_another_number_format(tmp_path):
    """Activations may be bfloat16 where the model was trained in float32, and a saved solver says which; others than
    these are refused in a line that names them.
    """
    solver = loopwise.load("sudoku-6x6", dtype="bfloat16")
    boards = cache.examples(solver.task, "test").inputs[:20]
    assert sum(bool(s.verified) for s in solver.solve(list(boards))) >= 15
    solver.save_pretrained(tmp_path / "saved")
    formats = [loopwise.load(tmp_path / "saved", **more).reasoner for more in ({}, {"dtype": "float32"})]
    for reasoner, wanted in zip(formats, (torch.bfloat16, torch.float32), strict=True):
        assert {part.dtype for part in reasoner.init_state(1, 36)} == {wanted}
    with pytest.raises(ConfigError, match="known: trained, float32, bfloat16"):
        loopwise.load("sudoku-6x6", dtype="float8")


def test_solver_and_evaluation_agree(model, data, puzzles):
    """Solved one by one or evaluated together, at equal slots the same puzzles come out right, at each number of steps
    and when the model stops by itself.
    """
    examples = Examples(*(column[: 4 * SLOTS] for column in data))
    labels = [examples.labels[i] for i in range(4 * SLOTS)]
    # An untrained model sorts nothing: make half of its own answers the labels, so that it is sometimes right.
    solver = Solver(model, slots=SLOTS, device="cpu")
    for i in range(0, 4 * SLOTS, 2):
        labels[i] = solver.trace(puzzles[i])[i % MAX_STEPS].tokens
    examples = examples._replace(labels=np.stack(labels))
    scores = evaluate(model, examples, range(1, MAX_STEPS + 1), slots=SLOTS)
    for steps, exact in zip(scores.steps, scores.exact, strict=True):
        solutions = solver.solve(puzzles[: 4 * SLOTS], steps)
        right = [np.array_equal(s.tokens, label) for s, label in zip(solutions, labels, strict=True)]
        assert exact == sum(right)
    halted = solver.solve(puzzles[: 4 * SLOTS])
    assert scores.halted_exact == sum(np.array_equal(s.tokens, label) for s, label in zip(halted, labels, strict=True))
    assert scores.halted_steps == pytest.approx(np.mean([s.steps for s in halted]))
    assert sum(scores.exact) > 0


def test_a_trained_model_scores_as_it_solves(trained):
    """Of a trained model, the share of solved test puzzles that the evaluation tells is what solving them gives."""
    solver = loopwise.load(trained, slots=40)
    examples = cache.examples(solver.task, "test")
    scores = evaluate(solver.model, examples, slots=40)
    solutions = solver.solve(list(np.asarray(examples.inputs)), solver.trained_steps)
    right = [np.array_equal(s.tokens, label) for s, label in zip(solutions, examples.labels, strict=True)]
    assert scores.exact[-1] == sum(right)
    assert scores.verified is not None
    assert scores.verified[-1] == sum(s.verified for s in solutions)
    assert scores.exact_accuracy > 0


class ScriptState(NamedTuple):
    step: torch.Tensor  # [B, 1]
    row: torch.Tensor  # [B, 1]


class Scripted(Reasoner[ReasonerConfig]):
    """Answers, and halting probabilities, by a script: answers [puzzle, step, L], halts [puzzle, step]."""

    name = "scripted"
    Config = ReasonerConfig

    def __init__(self, spec, answers, halts):
        super().__init__(ReasonerConfig(), spec)
        self.answers = torch.tensor(answers)
        self.halts = torch.tensor(halts)
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, batch):
        return batch.inputs[:, :1]  # the first number tells which puzzle this is

    def init_state(self, batch_size, length):
        return ScriptState(torch.zeros(batch_size, 1, dtype=torch.int64), torch.zeros(batch_size, 1, dtype=torch.int64))

    def recursion(self, x):
        return Recursion((lambda state: ScriptState(state.step + 1, x - 1),), 1)

    def readout(self, state):
        rows, steps = state.row[:, 0], state.step[:, 0] - 1
        logits = nn.functional.one_hot(self.answers[rows, steps], self.spec.vocab_size).float()
        halt = self.halts[rows, steps].logit()
        return Prediction(logits, halt, halt, torch.zeros_like(halt), logits[..., :0])

    def accepts(self, length):
        return True


@pytest.fixture
def scripted():
    """Three puzzles of two positions and three steps, written down by hand; tokens are number + 1."""
    task = Sorting(SortingConfig(n=2, values=4))
    answers = [
        [[4, 1], [1, 4], [1, 4]],  # both wrong, right, right
        [[2, 1], [2, 4], [1, 2]],  # both wrong, both wrong, right
        [[3, 3], [3, 4], [4, 3]],  # one wrong, right, both wrong
    ]
    halts = [[0.1, 0.97, 0.1], [0.96, 0.99, 0.99], [0.94, 0.6, 0.2]]
    model = Model(
        task=task,
        reasoner=Scripted(task.spec, answers, halts),
        gradient=LastCycle(),
        halting=Correctness(HaltingConfig(max_steps=3)),
    )
    inputs = np.array([[1, 4], [2, 1], [3, 4]], np.int32)
    labels = np.array([[1, 4], [1, 2], [3, 4]], np.int32)
    return model, Examples(inputs, labels, np.zeros(3, np.int32))


@pytest.mark.parametrize("slots", [1, 2, 3, 100])
def test_scores_are_those_counted_by_hand(slots, scripted):
    """Exact, tokens and verified after each step, and the answer at which the model stopped, equal a count by hand, in
    batches of any size.
    """
    model, examples = scripted
    scores = evaluate(model, examples, [3, 1, 2], slots=slots)
    assert scores.steps == (1, 2, 3)
    # Right positions: step 1: 0, 0, 1; step 2: 2, 0, 2; step 3: 2, 2, 0, of two each.
    assert scores.exact == (0, 2, 2)
    assert scores.tokens == pytest.approx((1 / 6, 4 / 6, 4 / 6))
    assert scores.verified == (0, 2, 2)
    # At 0.95 the first stops at step 2 (right), the second at step 1 (wrong), the third never, so at step 3 (wrong).
    assert (scores.halted_exact, scores.halted_verified) == (1, 1)
    assert scores.halted_steps == pytest.approx(2.0)
    assert scores.exact_accuracy == pytest.approx(2 / 3)


def test_another_right_answer_is_verified_and_not_exact():
    """In a maze the path of the label counts as exact and as verified, any other shortest path as verified only."""
    task = Maze(MazeConfig(size=3))
    mazes = np.stack([task.parse("#S......G"), task.parse(".S......G")])
    label, other = mazes.copy(), mazes.copy()
    label[:, [4, 7]] = other[:, [4, 5]] = PATH
    answers = [[mazes[0], other[0], label[0]], [other[1], label[1], mazes[1]]]
    model = Model(
        task=task,
        reasoner=Scripted(task.spec, np.array(answers, np.int64), [[0.1, 0.97, 0.1], [0.97, 0.1, 0.1]]),
        gradient=LastCycle(),
        halting=Correctness(HaltingConfig(max_steps=3)),
    )
    scores = evaluate(model, Examples(mazes, label, np.zeros(2, np.int32)), [1, 2, 3])
    assert (scores.exact, scores.verified) == ((0, 1, 1), (1, 2, 1))
    assert (scores.halted_exact, scores.halted_verified) == (0, 2)


def test_positions_that_are_not_asked_do_not_count(scripted):
    """A wrong token where the label is ignored harms neither exact nor token accuracy."""
    model, examples = scripted
    labels = examples.labels.copy()
    labels[2, 1] = -100
    scores = evaluate(model, examples._replace(labels=labels), [1, 3])
    assert scores.exact == (1, 2)
    assert scores.tokens == pytest.approx((1 / 3, 2 / 3))


def test_nothing_to_evaluate_is_refused(scripted):
    """No puzzles, and no steps, are one-line errors."""
    model, examples = scripted
    with pytest.raises(ConfigError, match="empty"):
        evaluate(model, examples.rows(slice(0)))
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(model, examples, [0, 2])


def test_rules_that_cannot_decide_give_no_verified_share(scripted, monkeypatch):
    """Where the task says None, there is no share of verified answers rather than a share of zero."""
    model, examples = scripted
    task = Sorting(SortingConfig(n=2, values=4))
    monkeypatch.setattr(task, "verify", lambda puzzle, answer: None)
    scores = evaluate(replace(model, task=task), examples)
    assert scores.verified is None
    assert scores.to_json()["by_steps"][0]["verified"] is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe 1998 gives these to four digits
        (1, 29, 0.0061, 0.1718),
        (15, 148, 0.0624, 0.1605),
        (81, 263, 0.2553, 0.3662),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_intervals_equal_published_ones(successes, trials, low, high):
    """Wilson's interval has the published values (Newcombe 1998, table I, and its mirror image)."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_holds_its_share_and_shrinks():
    """The interval lies within 0 and 1, holds the share, shrinks with more trials, and is everything without any."""
    assert wilson(0, 0) == (0.0, 1.0)
    for trials in (1, 7, 40, 1000):
        for successes in range(0, trials + 1, math.ceil(trials / 7)):
            low, high = wilson(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1
            wide = wilson(successes, trials)
            narrow = wilson(10 * successes, 10 * trials)
            assert narrow[1] - narrow[0] < wide[1] - wide[0]
