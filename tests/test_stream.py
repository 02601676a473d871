"""Streams of puzzles: order, memory, budgets of their own, and what goes wrong in the midst of them."""

import gc
import itertools
import random
import time
import tracemalloc

import numpy as np
import pytest

import loopwise
from counting import POISON, Rows, RowsConfig, TrustedRows, counting_model
from loopwise.data import cache
from loopwise.errors import ConfigError, LoopwiseError, PuzzleError, SolvingError
from loopwise.solving.budgets import Halted, Steps, Verified
from loopwise.solving.checking import Checker
from loopwise.solving.solver import WINDOW, Solver

SLOTS = 4


def counter(task=None, slots=SLOTS):
    return Solver(counting_model(task), slots=slots, device="cpu")


@pytest.fixture
def solver():
    return counter()


def essence(result):
    """What must not depend on the others."""
    if isinstance(result, LoopwiseError):
        return str(result)
    return result.answer, result.steps, result.stopped_by, result.halt_probability, result.verified


# ---------------------------------------------------------------- order


def test_answers_come_in_order_or_as_they_are_ready(solver):
    """`stream` keeps the order of the puzzles; `as_completed` gives each with its place as soon as it is there, the
    quick ones first.
    """
    lives = [7, 1, 1, 2, 1]
    puzzles = [[life, 1, 1] for life in lives]
    assert [s.steps for s in solver.stream(puzzles)] == lives
    ready = list(solver.as_completed(puzzles))
    assert [s.steps for _, s in ready] == [1, 1, 1, 2, 7]
    assert {place: s.steps for place, s in ready} == dict(enumerate(lives))


def test_mixed_lengths_come_in_order_too(solver):
    """With thirty lengths, more than may be in slots at a time, each puzzle's answer is in its place."""
    rng = random.Random(0)
    puzzles = [[rng.randint(1, 6)] + [1] * rng.randint(0, 29) for _ in range(300)]
    for puzzle, solution in zip(puzzles, solver.stream(puzzles), strict=True):
        assert (len(solution.answer), solution.steps) == (len(puzzle), puzzle[0])
    assert {place for place, _ in solver.as_completed(puzzles)} == set(range(300))


def test_a_slow_head_of_the_line_stops_the_reading(solver):
    """While the first puzzle takes thousands of steps no more than WINDOW slot-fulls are read and kept; as completed,
    the others are not held up by it.
    """
    read = 0

    def source():
        nonlocal read
        for number in range(10_000):
            read += 1
            yield [30 if number == 0 else 1, 1, 1]

    budgets = itertools.chain([Steps(5_000)], itertools.repeat(Halted() | Steps(3)))
    answers = solver.stream(source(), budgets)
    assert next(answers).steps == 5_000
    assert read == SLOTS * WINDOW
    assert len(list(itertools.islice(answers, 200))) == 200
    read, budgets = 0, itertools.chain([Steps(5_000)], itertools.repeat(Halted() | Steps(3)))
    places = [place for place, _ in itertools.islice(solver.as_completed(source(), budgets), 1_000)]
    assert places == list(range(1, 1_001))


def test_one_slot_answers_each_puzzle_before_it_reads_the_next():
    """With a single slot, a program that waits for each answer before it writes the next puzzle gets it."""
    answered = []

    def source():
        for number in range(5):
            assert len(answered) == number
            yield [number + 1, 1, 1]

    answers = counter(slots=1).stream(source())
    while len(answered) < 5:
        answered.append(next(answers).steps)
    assert answered == [1, 2, 3, 4, 5]


def test_no_more_is_read_than_finds_a_slot(solver):
    """Of puzzles of one length no more are read than there are slots, so that none spends its time in a queue."""
    read = 0

    def source():
        nonlocal read
        for _ in range(100):
            read += 1
            yield [1, 1, 1]

    for given, solution in enumerate(solver.stream(source())):
        assert solution.steps == 1
        assert read <= given + SLOTS


def test_a_long_stream_takes_no_more_memory_than_a_short_one(solver):
    """Of thousands of puzzles nothing is kept, not even until Python looks for garbage: the last 5,000 add less to its
    memory than 10 bytes each.
    """
    stream = solver.stream([i % 5 + 1, 1, 1] for i in range(10_000))
    gc.collect()
    tracemalloc.start()
    gc.disable()
    try:
        assert sum(s.steps for s in itertools.islice(stream, 5_000)) == 15_000
        before, _ = tracemalloc.get_traced_memory()
        assert sum(s.steps for s in stream) == 15_000
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        gc.enable()
        tracemalloc.stop()


# ---------------------------------------------------------------- budgets


def test_each_puzzle_may_have_its_own_budget(solver):
    """A list of budgets has one for each puzzle, in any form; too few or too many are an error."""
    puzzles = [[9, 1, 1]] * 4
    solutions = solver.solve(puzzles, [3, "halted|steps=20", Verified() | 5, Steps(12)])
    assert [s.steps for s in solutions] == [3, 9, 5, 12]
    assert [s.stopped_by for s in solutions] == ["steps", "halted", "steps", "steps"]
    with pytest.raises(ConfigError, match="3 budgets for 4 puzzles"):
        solver.solve(puzzles, [1, 2, 3])
    with pytest.raises(ConfigError, match="more puzzles than budgets"):
        list(solver.stream(puzzles, iter([1, 2, 3])))


def test_a_puzzle_that_cannot_be_read_takes_its_budget_with_it(solver):
    """Budgets and puzzles stay together across an error."""
    results = list(solver.stream([[9, 1], None, [9, 1]], [1, 2, 3]))
    assert [getattr(r, "steps", None) for r in results] == [1, None, 3]


@pytest.mark.parametrize("budget", ["halted", Halted() & Steps(3), Verified()])
def test_a_budget_without_end_is_refused(budget, solver):
    """A budget that may never end is refused before anything is computed."""
    with pytest.raises(ConfigError, match=r"add a limit, such as .*\|steps=64"):
        solver.solve([[1, 2]], budget)


def test_more_steps_never_lose_a_verified_answer(trained):
    """Under `verified|steps=N` the verified puzzles are ever more of the same with growing N, also beyond the steps of
    training; in all more than at first.
    """
    solver = loopwise.load(trained, slots=40)
    puzzles = list(np.asarray(cache.examples(solver.task, "test").inputs))
    assert solver.trained_steps < 8
    verified = [[s.verified for s in solver.solve(puzzles, f"verified|steps={n}")] for n in (1, 2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(verified):
        assert all(b >= a for a, b in zip(fewer, more, strict=True))
    assert sum(verified[-1]) > sum(verified[0])


def test_the_deadline_of_a_puzzle_counts_from_when_it_was_read(solver):
    """A puzzle of a stream that ends by its deadline has its answer, and took not much longer."""
    (solution,) = solver.solve([[30, 1, 1]], "seconds=0.2|steps=1000000000")
    assert solution.stopped_by == "seconds"
    assert 0.2 <= solution.seconds < 20
    assert solution.steps > 1


def test_flops_are_those_of_the_counted_steps(trained):
    """A budget of three steps' FLOPs ends after three steps."""
    from loopwise.reasoners.costs import count_flops

    solver = loopwise.load(trained, slots=2)
    puzzle = np.asarray(cache.examples(solver.task, "test").inputs)[0]
    flops = count_flops(solver.reasoner, solver.model.gradient, solver.model.halting, len(puzzle)).solving
    assert solver.solve([puzzle], f"flops={3 * flops}")[0].steps == 3
    assert solver.solve([puzzle], f"flops={3 * flops + 1}")[0].steps == 4


def test_the_residual_is_told_where_it_was_asked_for(solver):
    """A solution has the residual of its last step where the budget needs it."""
    plain, asked = solver.solve([[3, 1, 1]])[0], solver.solve([[3, 1, 1]], "converged=0.01|steps=9")[0]
    assert plain.residual is None
    assert (asked.residual, asked.stopped_by, asked.steps) == (0.0, "converged", 4)


# ---------------------------------------------------------------- faults


def test_a_row_that_is_not_finite_is_an_error_in_its_place(solver):
    """Numbers that are not finite in one puzzle give its error in its place and change no other answer; `solve` names
    the puzzle.
    """
    puzzles = [[5, 1, 1], [9, POISON, 1], [4, 1, 1], [9, POISON, 1], [7, 1, 1]]
    results = list(solver.stream(puzzles))
    assert [isinstance(r, SolvingError) for r in results] == [False, True, False, True, False]
    for puzzle, result in zip(puzzles, results, strict=True):
        assert essence(result) == essence(next(solver.stream([puzzle])))
    with pytest.raises(SolvingError, match=r"^puzzle 2: .*not finite after step 2"):
        solver.solve(puzzles)


def misbehaving(kind):
    """Rows whose rules raise, exit or hang at puzzles that begin with 3."""

    class Misbehaving(Rows):
        def verify(self, inputs, answer):
            if inputs[0] == 3 and kind == "raise":
                raise ValueError("three is too much")
            if inputs[0] == 3 and kind == "exit":
                raise SystemExit
            while inputs[0] == 3:
                time.sleep(0.01)
            return super().verify(inputs, answer)

    return Misbehaving(RowsConfig())


@pytest.mark.parametrize("kind", ["raise", "exit", "hang"])
def test_rules_that_misbehave_leave_their_answer_undecided_and_the_others_alone(kind):
    """A checker that raises, exits or hangs at one puzzle leaves that one undecided; all answers are the same."""
    task = misbehaving(kind)
    solver = counter(task)
    solver.checker = Checker(task, seconds=0.2)
    puzzles = [[2, 1, 1], [3, 1, 1], [4, 1, 1], [1, 1, 1], [5, 1, 1]]
    budget = "halted|steps=8"
    expected = counter(TrustedRows(RowsConfig())).solve(puzzles, budget)
    for i, (ours, theirs) in enumerate(zip(solver.solve(puzzles, budget), expected, strict=True)):
        assert ours.verified is (None if i == 1 else True)
        assert (ours.answer, ours.steps) == (theirs.answer, theirs.steps)


def test_a_consumer_may_leave_at_any_time(solver):
    """A stream that is left in the middle leaves nothing behind: the next is not disturbed."""
    stream = solver.stream(itertools.repeat([5, 1, 1]))
    next(stream)
    stream.close()
    assert [s.steps for s in solver.solve([[2, 1], [3, 1, 1]])] == [2, 3]


def test_an_error_of_the_source_comes_through(solver):
    """What the iterable of puzzles raises reaches the caller, after the answers before it."""

    def source():
        yield [1, 1]
        yield [2, 1]
        raise OSError("the disk is gone")

    assert [s.steps for s in itertools.islice(solver.stream([[1, 1], [2, 1]]), 2)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        list(solver.stream(source()))


def test_puzzles_and_errors_may_alternate_without_end(solver):
    """A stream of nothing but errors, or every other one, is passed on without piling up."""
    source = ([1, 1] if number % 2 else None for number in itertools.count())
    found = list(itertools.islice(solver.stream(source), 500))
    assert [isinstance(r, PuzzleError) for r in found] == [True, False] * 250
    assert all(isinstance(r, PuzzleError) for r in itertools.islice(solver.stream(itertools.repeat(None)), 500))
