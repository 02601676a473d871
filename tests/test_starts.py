"""Several starts for one puzzle: what each sees, which is chosen, and that the single pass stays apart."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopwise
from counting import POISON, RowsConfig, TrustedRows, counting_model
from loopwise.data import cache
from loopwise.errors import ConfigError, SolvingError
from loopwise.solving.budgets import Halted, Steps, Verified
from loopwise.solving.solver import Solver
from loopwise.solving.starts import SELECTORS, Candidate, Starts, as_starts, choose
from loopwise.types import IGNORE_LABEL

thorough = settings(max_examples=300, deadline=None, database=None, derandomize=True)

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        answer=st.integers(0, 2).map(lambda token: np.array([token], np.int32)),
        verified=st.sampled_from([True, False, None]),
        halt_probability=st.sampled_from([0.1, 0.5, 0.9]),
        residual=st.sampled_from([0.01, 0.1, float("inf")]),
        steps=st.integers(1, 4),
    ),
    min_size=1,
    max_size=6,
)
SELECT = st.lists(st.sampled_from(list(SELECTORS)), min_size=1, max_size=4, unique=True).map(tuple)


def candidate(answer=1, verified=None, q=0.5, residual=0.5, steps=4):
    return Candidate(np.array([answer], np.int32), verified, q, residual, steps)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("select", "candidates", "best"),
    [
        (("verified", "q"), [candidate(q=0.9), candidate(verified=True, q=0.1)], 1),
        (("verified", "q"), [candidate(verified=False, q=0.9), candidate(q=0.1)], 1),
        (("verified", "q"), [candidate(q=0.2), candidate(q=0.8), candidate(q=0.8)], 1),
        (("q", "verified"), [candidate(q=0.9), candidate(verified=True, q=0.1)], 0),
        (("q", "residual"), [candidate(residual=0.2), candidate(residual=0.1)], 1),
        (("residual",), [candidate(residual=0.2, q=0.9), candidate(residual=0.1), candidate(residual=0.1)], 1),
        (("vote", "q"), [candidate(1, q=0.9), candidate(2, q=0.1), candidate(2, q=0.2)], 2),
        (("vote", "first"), [candidate(1, steps=3), candidate(2, steps=2)], 1),
        (("first",), [candidate(steps=3), candidate(steps=2), candidate(steps=2)], 1),
        (("verified", "q"), [candidate(verified=True, q=0.9, steps=3), candidate(verified=True, q=0.1, steps=2)], 1),
        (("verified", "vote"), [candidate(1, steps=9), candidate(2, True, steps=2), candidate(2, steps=9)], 1),
    ],
)
def test_the_choice_is_that_of_the_rules(select, candidates, best):
    """Each rule picks what it says, a later one decides between equals, and of equals the first is taken."""
    assert choose(candidates, select) == best


@thorough
@given(candidates=CANDIDATES, select=SELECT)
def test_no_other_candidate_is_better(candidates, select):
    """Whatever is chosen, none is better by the first rule; with `verified` first, a verified answer is never passed
    over, and the quickest is taken.
    """
    best = candidates[choose(candidates, select)]
    if select[0] != "verified":
        key = SELECTORS[select[0]]
        assert key(best, candidates) == max(key(one, candidates) for one in candidates)
    elif any(one.verified for one in candidates):
        assert best.verified
        assert best.steps == min(one.steps for one in candidates if one.verified)


@thorough
@given(candidates=CANDIDATES, select=SELECT, late=CANDIDATES)
def test_who_is_slower_than_a_verified_answer_has_no_say(candidates, select, late):
    """Where `verified` is first, the choice is the same whether starts that need more steps than the quickest verified
    one were let to their end or were given up.
    """
    select = ("verified", *(name for name in select if name != "verified"))
    quickest = min((one.steps for one in candidates if one.verified), default=None)
    if quickest is not None:
        slow = [one._replace(steps=quickest + one.steps) for one in late]
        assert choose(candidates + slow, select) == choose(candidates, select)


# ---------------------------------------------------------------- options


def test_a_number_means_views_or_else_noise(trained):
    """`starts=8` takes the symmetries of a task that has some, and noise where there are none; views of a task without
    symmetries are refused.
    """
    sudoku, rows = loopwise.load(trained).task, TrustedRows(RowsConfig())
    assert as_starts(8, sudoku) == Starts(count=8, views=True)
    assert as_starts(8, rows).sigma_init > 0
    assert not as_starts(8, rows).views
    with pytest.raises(ConfigError, match="no symmetries"):
        as_starts(Starts(count=2, views=True), rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "at least 1"),
        ({"count": 2}, "the same"),
        ({"count": 2, "sigma_init": -1.0}, "at least 0"),
        ({"count": 2, "sigma_step": float("nan")}, "sigma_step"),
        ({"count": 2, "random_init": True, "sigma_step": 1.0}, "sigma_init"),
        ({"select": ()}, "nothing to select by"),
        ({"select": ("verified", "luck")}, "there is no 'luck'"),
        ({"select": "q"}, "select"),
    ],
)
def test_starts_that_make_no_sense_are_refused(options, says):
    """Starts that are none, that would all be the same, or that are chosen by what is not known, are clear errors."""
    with pytest.raises(ConfigError, match=says):
        Starts(**options)


# ---------------------------------------------------------------- solving


def puzzles_of(solver, count):
    """Test puzzles of a model, as tokens."""
    return list(np.asarray(cache.examples(solver.task, "test").inputs[:count]))


def essence(solution):
    """What must be the same at every time, in every company."""
    return solution.tokens.tolist(), solution.verified, solution.steps, solution.stopped_by, solution.halt_probability


VIEWS = Starts(count=4, views=True)
NOISE = Starts(count=4, sigma_init=1.0, sigma_step=0.2)


@pytest.mark.parametrize("starts", [VIEWS, NOISE, replace(NOISE, select=("q",)), replace(VIEWS, select=("vote", "q"))])
def test_the_single_pass_is_reported_apart(starts, trained):
    """With several starts a solution tells what the single pass alone has come to, bit for bit that of solving without
    starts; what is chosen is never worse by the first rule.
    """
    solver = loopwise.load(trained, slots=8)
    puzzles = puzzles_of(solver, 12)
    alone, several = solver.solve(puzzles), solver.solve(puzzles, starts=starts)
    for one, best in zip(alone, several, strict=True):
        assert (one.single, one.start, one.total_steps) == (None, 0, one.steps)
        assert essence(best.single) == essence(one)
        assert best.total_steps >= best.single.steps + (best.steps if best.start else 0)
        if starts.select[0] == "verified":
            assert best.verified >= one.verified
        if starts.select[0] == "q":
            assert best.halt_probability >= one.halt_probability


def test_more_starts_never_lose_a_verified_answer(trained):
    """With 1, 2, 4, 8 starts the verified ones are ever more of the same puzzles; in all, more than with one."""
    solver = loopwise.load(trained, slots=16)
    puzzles = puzzles_of(solver, 40)
    verified = [[s.verified for s in solver.solve(puzzles, starts=count)] for count in (1, 2, 4, 8)]
    for fewer, more in pairwise(verified):
        assert all(b >= a for a, b in zip(fewer, more, strict=True))
    assert sum(verified[-1]) > sum(verified[0])


@pytest.mark.parametrize("starts", [VIEWS, NOISE])
def test_starts_come_to_the_same_in_any_company(starts, trained):
    """Which start wins, its answer, steps and belief do not depend on when a slot was free for it: with three slots for
    four starts, in 20 random orders and selections of the puzzles, they are those of the puzzle alone.
    """
    solver = loopwise.load(trained, slots=3)
    puzzles = puzzles_of(solver, 10)
    expected = [solver.solve([puzzle], "halted|verified|steps=6", starts=starts)[0] for puzzle in puzzles]
    rng = random.Random(0)
    for _ in range(20):
        chosen = rng.sample(range(10), rng.randint(2, 10))
        found = solver.solve([puzzles[i] for i in chosen], "halted|verified|steps=6", starts=starts)
        for i, solution in zip(chosen, found, strict=True):
            assert (essence(solution), solution.start) == (essence(expected[i]), expected[i].start)
            assert essence(solution.single) == essence(expected[i].single)
    assert len({solution.start for solution in expected}) > 1


class Mirrored(TrustedRows):
    """Rows whose symmetry exchanges the first two tokens and adds one to every token."""

    def augment(self, inputs, labels, rng):
        assert (labels == IGNORE_LABEL).all()
        shown = inputs + 1
        shown[:2] = shown[1::-1]
        self.shown.append(shown.tolist())

        def inverse(answer):
            back = answer.copy() - 1
            back[:2] = back[1::-1]
            return back

        return shown, labels, inverse


def mirrored():
    """A solver of rows with that symmetry."""
    task = Mirrored(RowsConfig())
    task.shown = []
    return Solver(counting_model(task), slots=4, device="cpu"), task


def test_a_view_is_shown_and_its_answer_taken_back():
    """Every start but the first sees another view; its answer is taken back before the rules judge it."""
    solver, task = mirrored()
    (solution,) = solver.solve([[9, 2, 5]], Halted() | Steps(6), starts=Starts(count=2, views=True, select=("q",)))
    assert task.shown == [[3, 10, 6]]  # which is counted up to 3
    assert (solution.start, solution.steps, solution.stopped_by) == (1, 3, "halted")
    assert (solution.tokens.tolist(), solution.puzzle.tolist()) == ([2, 2, 2], [9, 2, 5])
    assert (solution.verified, solution.single.stopped_by, solution.single.tokens.tolist()) == (False, "steps", [6] * 3)


def test_siblings_end_with_the_first_verified_one_but_for_the_single_pass():
    """As soon as one start is verified the others are given up, those that had no slot yet too; the single pass goes on
    to its own end and is reported. Without `verified` in the first place all go on.
    """

    class Lucky(TrustedRows):
        """Any answer of threes is right."""

        def verify(self, inputs, answer):
            return bool((answer == 3).all())

        def augment(self, inputs, labels, rng):
            return inputs, labels, lambda answer: answer

    budget = Verified() & Steps(3) | Halted() | Steps(12)
    for slots, starts, total in ((8, 5, 5 * 3), (2, 5, 5 * 3)):
        solver = Solver(counting_model(Lucky(RowsConfig())), slots=slots, device="cpu")
        (solution,) = solver.solve([[9, 1, 1]], budget, starts=Starts(count=starts, views=True))
        assert (solution.start, solution.steps, solution.total_steps) == (0, 3, total)
    solver, _ = mirrored()
    # The view of [8, 3, 1] is [4, 9, 2]: counted up to 4, which taken back is 3, not 8: never right.
    (solution,) = solver.solve([[8, 3, 1]], starts=Starts(count=3, views=True))
    assert (solution.start, solution.verified, solution.total_steps) == (0, True, 8 + 2 * 4)


@pytest.mark.parametrize("slots", [3, 1])
def test_siblings_get_no_more_steps_than_the_verified_one_needed(slots):
    """The single pass needs 8 steps. A view that is right after 2 ends the other start after as many, whether that was
    in a slot beside it or still waited for one; where `verified` is not the first rule it goes on.
    """

    class Easy(TrustedRows):
        """Twos are right; every view is quick."""

        def verify(self, inputs, answer):
            return bool((answer == 2).all())

        def augment(self, inputs, labels, rng):
            self.count += 1
            return np.array([2 if self.count == 1 else 7, 1, 1], np.int32), labels, lambda answer: answer

    task = Easy(RowsConfig())
    task.count = 0
    solver = Solver(counting_model(task), slots=slots, device="cpu")
    budget = Halted() | Steps(12)
    (solution,) = solver.solve([[8, 1, 1]], budget, starts=Starts(count=3, views=True))
    assert (solution.start, solution.steps, solution.verified) == (1, 2, True)
    assert (solution.single.steps, solution.single.verified) == (8, False)
    assert solution.total_steps == 8 + 2 + 2
    task.count = 0
    (solution,) = solver.solve([[8, 1, 1]], budget, starts=Starts(count=3, views=True, select=("first",)))
    assert (solution.start, solution.total_steps) == (1, 8 + 2 + 7)


def test_a_start_that_fails_leaves_it_to_the_others():
    """Where some starts come to no finite numbers the others decide; the single pass' failure is reported, and where
    all fail it is the puzzle's error.
    """

    class Detour(TrustedRows):
        """Views avoid the poison, unless told otherwise."""

        poisoned = False

        def augment(self, inputs, labels, rng):
            return np.array([4, POISON if self.poisoned else 1, 1], np.int32), labels, lambda answer: answer

    task = Detour(RowsConfig())
    solver = Solver(counting_model(task), slots=3, device="cpu")
    starts = Starts(count=2, views=True)
    (solution,) = solver.solve([[5, POISON, 1]], starts=starts)
    assert (solution.start, solution.tokens.tolist(), solution.total_steps) == (1, [4, 4, 4], 4 + 2)
    assert isinstance(solution.single, SolvingError)
    task.poisoned = True
    (error,) = solver.stream([[5, POISON, 1]], starts=starts)
    assert isinstance(error, SolvingError)
