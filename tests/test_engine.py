"""The slot engine: who is in which slot when, and that nobody notices the others."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counting import POISON, Clock, counting_model
from loopwise.checkpoint import Model
from loopwise.errors import DeadlineError, SolvingError
from loopwise.reasoners.fixed_point import relative_residual
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.solving.budgets import Converged, Flops, Halted, Seconds, Steps, Verified
from loopwise.solving.engine import LANES, Engine
from loopwise.solving.noise import Noise, add_noise
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.types import IGNORE_LABEL, Batch

thorough = settings(max_examples=150, deadline=None, database=None, derandomize=True)

USUAL = Halted() | Steps(8)


def row(life, *others):
    """A puzzle that takes `life` steps."""
    return np.array([life, *(others or (1, 1))], np.int32)


def drain(engine, most=10_000):
    """Step until nothing is left; the passes in the order in which they ended."""
    ended = []
    for _ in range(most):
        if not engine.active + engine.waiting:
            return ended
        ended += engine.step()
    raise AssertionError("the engine never ends")


@pytest.fixture(scope="module")
def counting():
    return counting_model()


@pytest.fixture(scope="module")
def trm():
    """A TRM with random weights and a random halting head: some puzzles stop at once, some never."""
    task = Sorting(SortingConfig(n=6))
    config = TRMConfig(hidden_size=16, num_heads=2, H_cycles=1, L_cycles=2, registers=1, width_multiple=8)
    reasoner = TRM(config, task.spec).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        reasoner.halt.weight.normal_(0, 3, generator=rng)
        reasoner.halt.bias.fill_(-3.0)
    return Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness(HaltingConfig(max_steps=8)))


# ---------------------------------------------------------------- slots


def test_a_finished_row_leaves_at_once_and_a_waiting_one_takes_its_slot(counting):
    """With two slots, puzzles of 4, 1, 1 and 2 steps take four steps in all: the three short ones one after the other
    beside the long one.
    """
    engine = Engine(counting, slots=2)
    for name, life in zip("abcd", (4, 1, 1, 2), strict=True):
        engine.submit(row(life), USUAL, key=name)
    assert (engine.active, engine.waiting) == (0, 4)
    ended = [[work.key for work in engine.step()] for _ in range(4)]
    assert ended == [["b"], ["c"], [], ["a", "d"]]
    assert (engine.active, engine.waiting) == (0, 0)


def test_every_row_has_its_own_budget(counting):
    """Puzzles of one batch end each by its own budget, named, also beyond the steps of training."""
    engine = Engine(counting, slots=8, step_flops=lambda length: 10.0 * length)
    budgets = {
        Steps(2): ("steps", 2),
        Steps(20): ("steps", 20),
        Halted() | Steps(20): ("halted", 5),
        Converged(2) | Steps(20): ("converged", 7),
        Converged(0.21) | Steps(20): ("converged", 5),  # 1 / 4 is more, 1 / 5 less
        Flops(70) | Halted(): ("flops", 3),
        Halted() & Converged(1) | Steps(20): ("halted&converged", 6),
    }
    for budget in budgets:
        engine.submit(row(5), budget, key=budget)
    got = {work.key: (work.stopped_by, work.progress.steps) for work in drain(engine)}
    assert got == budgets


def test_a_newcomers_first_answer_is_a_change(counting):
    """Who takes a slot with the same answer as the one that left it has not converged by that."""
    engine = Engine(counting, slots=2)
    engine.submit(row(9), Steps(9))  # keeps the slots from being made anew
    for _ in range(3):
        engine.submit(row(1), Converged(1) | Steps(9))
    ended = [(work.stopped_by, work.progress.steps) for work in drain(engine)]
    assert ended == [("converged", 2)] * 3 + [("steps", 9)]


def test_the_rules_stop_a_row_as_soon_as_they_accept(counting):
    """Under Verified a row ends with the first answer that `check` accepts, whatever the model believes."""
    engine = Engine(counting, slots=2)
    engine.submit(row(9), Verified() | Steps(20), check=lambda answer: bool(answer[0] == 3))
    engine.submit(row(9), Verified() | Steps(20), check=lambda answer: None)
    first, second = drain(engine)
    assert (first.stopped_by, first.progress.steps, first.progress.answer.tolist()) == ("verified", 3, [3, 3, 3])
    assert (second.stopped_by, second.progress.steps) == ("steps", 20)


def test_an_empty_engine_is_at_rest(counting):
    """Without puzzles a step does nothing, and asks for some."""
    engine = Engine(counting, slots=3)
    assert engine.step() == []
    assert engine.hungry
    assert (engine.active, engine.waiting) == (0, 0)


def test_hungry_means_that_a_slot_would_stay_idle(counting):
    """An engine is hungry until some length's slots are all spoken for; another length makes it hungry again."""
    engine = Engine(counting, slots=2)
    engine.submit(row(3), USUAL)
    assert engine.hungry
    engine.submit(row(3), USUAL)
    assert not engine.hungry
    engine.step()
    assert not engine.hungry
    engine.submit(row(3, 1), USUAL)
    assert engine.hungry


def test_cancelling_frees_the_slot_for_the_next(counting):
    """A cancelled puzzle is not heard of again, whether it waits or works; the next takes its slot. One that has ended
    cannot be cancelled any more.
    """
    engine = Engine(counting, slots=1)
    passes = {name: engine.submit(row(5), USUAL, key=name) for name in "abcd"}
    engine.step()
    engine.cancel(passes["a"])
    engine.cancel(passes["c"])
    assert (engine.active, engine.waiting) == (0, 2)
    assert [work.key for work in drain(engine)] == ["b", "d"]
    engine.cancel(passes["b"])
    assert [passes[name].stopped_by for name in "abcd"] == ["cancelled", "halted", "cancelled", "halted"]
    assert passes["b"].progress.steps == 5


# ---------------------------------------------------------------- lengths


def test_lengths_take_turns(counting):
    """Two lengths in slots are stepped by turns, neither before the other has had its step."""
    engine = Engine(counting, slots=2)
    passes = [engine.submit(np.full(length, 9, np.int32), USUAL) for length in (2, 2, 5)]
    for turn in range(1, 7):
        engine.step()
        assert [work.progress.steps for work in passes] == [(turn + 1) // 2, (turn + 1) // 2, turn // 2]


def test_the_number_of_lengths_in_slots_is_bounded_and_nobody_starves(counting):
    """However many lengths come, at most LANES are in slots; and while puzzles of LANES lengths come without end,
    faster than they are solved, one of another length is not overtaken by what came after it.
    """
    engine = Engine(counting, slots=3)
    lives = itertools.cycle([2, 3, 5, 7])  # so that the slots of a length are not free all at once

    def crowd():
        for length in range(1, LANES + 1):
            engine.submit(np.full(length, next(lives), np.int32), USUAL)
        next(lives)

    for _ in range(3):
        crowd()
    engine.step()
    other = engine.submit(np.full(50, 2, np.int32), USUAL)
    for _ in range(LANES * 20):
        crowd()
        engine.step()
        assert engine.active <= 3 * LANES
        if other.stopped_by:
            break
    assert other.stopped_by == "halted"
    for length in range(60, 60 + 5 * LANES):
        engine.submit(np.full(length, 1, np.int32), USUAL)
    assert len(drain(engine)) > 5 * LANES


# ---------------------------------------------------------------- equal answers


def outcome(work):
    """All that a pass came to."""
    p = work.progress
    return p.answer.tolist(), p.steps, p.halt_probability, p.unchanged, p.residual, work.stopped_by


def test_an_answer_depends_on_no_neighbour_and_no_order_of_arrival(trm):
    """Over 1,000 random orders of arrival, with random pauses, other lengths, other budgets, noise in other rows and
    cancelled neighbours, a puzzle gets the same answer, steps, halting probability and residual bit for bit.
    """
    rng = random.Random(0)
    budgets = [USUAL, Steps(3), Halted(0.5) & Converged(1) | Steps(5), Converged(0.3) | Steps(7)]
    noise = Noise(seed=3, start=1, sigma_init=0.5, random_init=False, sigma_step=0.1)
    jobs = [
        (np.array([rng.randint(1, 10) for _ in range(length)], np.int32), budgets[i % 4], noise if i % 5 == 4 else None)
        for i, length in enumerate([6] * 14 + [4] * 4)
    ]
    expected = {}
    for order in range(1_001):
        engine = Engine(trm, slots=5)
        size = len(jobs) if order == 0 else rng.randint(3, 8)
        todo = rng.sample(range(len(jobs)), size)
        results, strangers = {}, []
        while todo or engine.active + engine.waiting:
            for _ in range(rng.choice([0, 1, 3])):
                if todo:
                    tokens, budget, pushed = jobs[todo[-1]]
                    engine.submit(tokens, budget, noise=pushed, needs_residual=True, key=todo.pop())
            if rng.random() < 0.3:
                strangers.append(engine.submit(jobs[rng.randrange(18)][0], Steps(9), key="stranger"))
            if strangers and rng.random() < 0.3:
                engine.cancel(strangers.pop())
            for work in engine.step():
                results[work.key] = outcome(work)
        if order == 0:
            expected = results
        assert len(results.keys() - {"stranger"}) == size
        for key in results.keys() - {"stranger"}:
            assert results[key] == expected[key]
    assert len({steps for _, steps, *_ in expected.values()}) >= 4


@pytest.mark.parametrize("slots", [2, 3, 8, 15, 33])
@pytest.mark.parametrize("core", ["attention", "mlp"])
def test_an_answer_does_not_depend_on_the_slot(core, slots):
    """The same puzzle in every slot comes to the same bit for bit, for slot counts and sizes where the processor's
    library rounds rows by their place.
    """
    task = Sorting(SortingConfig(n=9))
    config = TRMConfig(hidden_size=64, num_heads=2, H_cycles=1, L_cycles=1, core=core, width_multiple=8)
    reasoner = TRM(config, task.spec).eval()
    with torch.no_grad():
        reasoner.halt.weight.normal_(generator=torch.Generator().manual_seed(1))
    model = Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness())
    engine = Engine(model, slots=slots)
    for _ in range(slots):
        engine.submit(np.array([3, 1, 4, 1, 5, 9, 2, 6, 5], np.int32), Steps(2), needs_residual=True)
    assert len({str(outcome(work)) for work in drain(engine)}) == 1


def test_slots_make_no_difference_to_what_is_counted(counting):
    """Where rounding plays no part, any number of slots gives the same."""
    lives = [3, 1, 4, 1, 5, 9, 2, 6]
    for slots in (1, 2, 3, 64):
        engine = Engine(counting, slots=slots)
        for life in lives:
            engine.submit(row(life), Halted() | Steps(7), key=life)
        assert {work.key: work.progress.steps for work in drain(engine)} == {life: min(life, 7) for life in lives}


def test_residuals_are_those_of_the_whole_state(trm):
    """The residual of a step is |new - old| / |new| over all tensors of the state together."""
    tokens = np.array([3, 1, 4, 1, 5, 9], np.int32)
    inputs = torch.tensor(tokens).long().repeat(5, 1)
    batch = Batch(inputs, torch.full_like(inputs, IGNORE_LABEL), inputs[:, 0] * 0)
    engine = Engine(trm, slots=5)
    work = engine.submit(tokens, Steps(3), needs_residual=True)
    state = trm.reasoner.init_state(5, 6)
    with torch.inference_mode():
        for _ in range(3):
            engine.step()
            old, (state, _, _) = state, trm.step(state, batch)
            new, before = (torch.cat([t[:1].flatten(1) for t in side], dim=1) for side in (state, old))
            assert work.progress.residual == pytest.approx(float(relative_residual(new, before)[0]), rel=1e-5)


# ---------------------------------------------------------------- deadlines


def test_a_deadline_counts_from_the_arrival_and_ends_with_a_step(counting):
    """A puzzle in a slot ends with the step in which its time passes, and has its answer; time spent waiting counts,
    and so does what passed before it was submitted.
    """
    clock = Clock()
    engine = Engine(counting, slots=2, clock=clock)
    budget = Seconds(3) | Steps(99)
    now = engine.submit(row(20), budget)
    clock.now = 1.0
    early = engine.submit(row(20), budget, arrival=-1.0)
    ended = []
    for _ in range(5):
        clock.now += 0.75
        ended.append([(work.stopped_by, work.progress.seconds) for work in engine.step()])
    assert ended == [[], [("seconds", 3.5)], [("seconds", 3.25)], [], []]
    assert (early.progress.steps, now.progress.steps) == (2, 3)
    assert now.progress.answer.tolist() == [3, 3, 3]


def test_a_deadline_that_passes_in_the_queue_is_an_error(counting):
    """A puzzle whose time is over before it finds a slot comes back at the next step, with an error that says so; who
    comes after it is not delayed.
    """
    clock = Clock()
    engine = Engine(counting, slots=1, clock=clock)
    engine.submit(row(4), USUAL, key="long")
    late = engine.submit(row(1), Seconds(2) | Steps(9), key="late")
    engine.submit(row(1), Seconds(99) | Steps(1), key="after")
    engine.step()
    clock.now = 2.0
    assert engine.step() == [late]
    assert isinstance(late.error, DeadlineError)
    assert (late.stopped_by, late.progress.answer, late.progress.steps) == ("seconds", None, 0)
    assert [work.key for work in drain(engine)] == ["long", "after"]


@thorough
@given(limits=st.lists(st.floats(0.5, 20), min_size=1, max_size=8), tick=st.floats(0.2, 3), slots=st.integers(1, 4))
def test_no_deadline_is_missed_by_more_than_a_step(limits, tick, slots):
    """With a clock that goes on by a tick a step, each puzzle ends by its deadline, at it or less than a tick later."""
    clock = Clock()
    engine = Engine(counting_model(), slots=slots, clock=clock)
    for limit in limits:
        engine.submit(row(30), Seconds(limit) | Steps(10_000))
    ended = []
    while engine.active + engine.waiting:
        clock.now += tick
        ended += engine.step()
    assert len(ended) == len(limits)
    for work in ended:
        assert work.stopped_by == "seconds"
        assert 0 <= work.progress.seconds - work.budget.parts[0].limit < tick + 1e-9


# ---------------------------------------------------------------- faults


def test_numbers_that_are_not_finite_end_their_own_row_alone(counting):
    """A row that is not finite ends with an error that names the step; its neighbours and those who take its slot get
    their answers, and nothing of it stays in the slots.
    """
    engine = Engine(counting, slots=2)
    bad = engine.submit(row(9, POISON), USUAL)
    good = engine.submit(row(6, 1), USUAL)
    engine.step()
    assert engine.step() == [bad]
    assert isinstance(bad.error, SolvingError)
    assert "not finite after step 2" in str(bad.error)
    (lane,) = engine._lanes.values()
    assert all(tensor.isfinite().all() for tensor in lane.state)
    assert not (lane.batch.inputs == POISON).any()
    after = engine.submit(row(3, 1), USUAL)
    assert drain(engine) == [after, good]
    assert (good.progress.steps, good.stopped_by, good.progress.answer.tolist()) == (6, "halted", [6, 6])
    assert (after.progress.steps, after.stopped_by, after.progress.answer.tolist()) == (3, "halted", [3, 3])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_halting_logit_that_is_not_finite_is_an_error_too(number):
    """So is a halting logit that is no finite number, though there is an answer."""
    model = counting_model()
    model.reasoner.sure = number
    engine = Engine(model, slots=2)
    engine.submit(row(2), USUAL, key="bad")
    engine.submit(row(9), Steps(3), key="good")
    assert {work.key: work.stopped_by for work in drain(engine)} == {"bad": "error", "good": "steps"}


# ---------------------------------------------------------------- noise


NOISE = Noise(seed=1, start=2, sigma_init=1.0, random_init=False, sigma_step=0.5)


def noisy(trm, noise, slots=4, neighbours=0):
    """The answer and halting probability of a noisy pass beside others."""
    engine = Engine(trm, slots=slots)
    for _ in range(neighbours):
        engine.submit(np.array([9, 9, 1, 1, 2, 3], np.int32), Steps(4), noise=NOISE, key="other")
    engine.submit(np.array([3, 1, 4, 1, 5, 9], np.int32), Steps(3), noise=noise, key="it")
    (it,) = [work for work in drain(engine) if work.key == "it"]
    return it.progress.answer.tolist(), it.progress.halt_probability


def test_noise_is_fixed_by_seed_start_and_step_alone(trm):
    """A noisy pass comes to the same whatever its slot and neighbours, and to something else with another seed, start
    or sigma.
    """
    plain = noisy(trm, None)
    found = noisy(trm, NOISE)
    assert found == noisy(trm, NOISE, neighbours=3) == noisy(trm, NOISE, neighbours=9)
    changes = [{"seed": 7}, {"start": 3}, {"sigma_init": 0.3}, {"sigma_step": 0.0}, {"random_init": True}]
    values = vars(NOISE)
    others = [noisy(trm, Noise(**values | change)) for change in changes]
    assert len({str(result) for result in [plain, found, *others]}) == 7
    assert noisy(trm, Noise(**values | {"sigma_init": 0.0, "sigma_step": 0.0})) == plain


def test_noise_has_the_size_that_was_asked_for():
    """Noise is normal with the standard deviation asked for, is added to its own rows only, to none of whole numbers,
    and stands in place of the initial state where that is random.
    """
    empty = counting_model().reasoner.init_state(3, 1)
    state = empty._replace(count=torch.full((3, 50_000), 2.0))
    pushed = add_noise(state, [(1, NOISE, 0), (2, NOISE, 7)])
    torch.testing.assert_close(pushed.count[0], state.count[0], rtol=0, atol=0)
    torch.testing.assert_close(pushed.life, state.life, rtol=0, atol=0)
    for line, sigma in ((1, 1.0), (2, 0.5)):
        assert pushed.count[line].mean() == pytest.approx(2.0, abs=0.02)
        assert pushed.count[line].std() == pytest.approx(sigma, rel=0.02)
    random_start = Noise(**vars(NOISE) | {"random_init": True})
    replaced = add_noise(state, [(1, random_start, 0), (2, random_start, 7)])
    assert replaced.count[1].mean() == pytest.approx(0.0, abs=0.02)
    torch.testing.assert_close(replaced.count[1], pushed.count[1] - 2.0)
    torch.testing.assert_close(replaced.count[2], pushed.count[2], rtol=0, atol=0)


# ---------------------------------------------------------------- no slot is lost


class Ledger:
    """An engine, and what must be true of it after every event."""

    def __init__(self, slots):
        self.slots = slots
        self.clock = Clock()
        self.engine = Engine(counting_model(), slots=slots, clock=self.clock)
        self.open = []
        self.told = Counter()
        self.submitted = 0

    def submit(self, length, life, kind):
        tokens = np.full(length, life, np.int32)
        if kind == "poison":
            tokens[-1:] = POISON
            tokens[:1] = life
        budget = {"deadline": Seconds(3) | Steps(30), "short": Steps(1)}.get(kind, USUAL)
        self.open.append(self.engine.submit(tokens, budget, key=self.submitted))
        self.submitted += 1

    def cancel(self, which):
        if self.open:
            self.engine.cancel(self.open.pop(which % len(self.open)))

    def step(self):
        self.clock.now += 0.25
        for work in self.engine.step():
            self.told[work.key] += 1
            self.open.remove(work)

    def check(self):
        """Everyone is in one place, nobody was told of twice, and no slot is idle that somebody may take."""
        engine = self.engine
        assert engine.active + engine.waiting == len(self.open)
        assert len(engine._lanes) <= LANES
        assert max(self.told.values(), default=1) == 1
        for lane in engine._lanes.values():
            seated = [(slot, work) for slot, work in enumerate(lane.passes) if work]
            assert lane.active == len(seated) <= self.slots
            assert all(work.slot == slot and not work.stopped_by for slot, work in seated)

    def finish(self):
        """Nothing is left, and all slots are there: as many puzzles as slots are at work at once."""
        for _ in range(100_000):
            if not self.open:
                break
            self.step()
        assert (self.engine.active, self.engine.waiting, self.engine.step()) == (0, 0, [])
        for _ in range(self.slots + 1):
            self.submit(3, 9, "usual")
        self.step()
        assert (self.engine.active, self.engine.waiting) == (self.slots, 1)


KINDS = ("usual", "usual", "usual", "deadline", "short", "poison")


def test_no_slot_is_lost_in_ten_thousand_random_events():
    """After 10,000 random submissions, cancellations and steps, of more lengths than there are lanes, with deadlines
    and faults among them, each puzzle was cancelled or told of once, and all slots are there.
    """
    rng = random.Random(5)
    ledger = Ledger(slots=4)
    for _ in range(10_000):
        event = rng.random()
        if event < 0.4:
            ledger.submit(rng.choice([2, 2, 3, *range(2, 15)]), rng.randint(1, 6), rng.choice(KINDS))
        elif event < 0.5:
            ledger.cancel(rng.randrange(10**6))
        else:
            ledger.step()
        ledger.check()
    ledger.finish()
    assert ledger.submitted > 3_500
    assert len(ledger.told) > 2_000


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 12), st.integers(1, 9), st.sampled_from(KINDS)),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
        st.tuples(st.just("step")),
    ),
    max_size=60,
)


@thorough
@given(events=EVENTS, slots=st.integers(1, 5))
def test_no_slot_is_lost_in_any_order_of_events(events, slots):
    """The same for whatever order of events a search for counter-examples comes up with, none among them."""
    ledger = Ledger(slots)
    for name, *arguments in events:
        getattr(ledger, name)(*arguments)
        ledger.check()
    ledger.finish()
