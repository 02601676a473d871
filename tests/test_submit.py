"""Puzzles submitted one by one, by many callers at once, to a solver that works beside them."""

import asyncio
import contextlib
import gc
import random
import threading
import time
import weakref

import pytest
import torch

from counting import POISON, RowsConfig, TrustedRows, counting_model
from loopwise.checkpoint import Model
from loopwise.errors import ConfigError, DeadlineError, PuzzleError, QueueFullError, SolvingError
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.solving.budgets import Halted, Seconds, Steps
from loopwise.solving.solver import Solver
from loopwise.solving.starts import Starts
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.tasks.sudoku import Sudoku, SudokuConfig

ENDLESS = Steps(10**9)


@pytest.fixture
def solver():
    with Solver(counting_model(), slots=3, device="cpu", max_waiting=4) as solver:
        yield solver


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "loopwise solver"]


async def until(condition):
    """Let others work until something is so."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def test_a_hundred_callers_at_once_get_what_solve_gives():
    """Puzzles of two lengths, submitted by 100 tasks in random order with other budgets among them, get the answers
    that `solve` gives, bit for bit.
    """
    task = Sorting(SortingConfig(n=6))
    config = TRMConfig(hidden_size=16, num_heads=2, H_cycles=1, L_cycles=2, registers=1, width_multiple=8)
    reasoner = TRM(config, task.spec)
    with torch.no_grad():
        reasoner.halt.weight.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    halting = Correctness(HaltingConfig(max_steps=8))
    model = Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=halting)
    rng = random.Random(0)
    puzzles = [[rng.randrange(10) for _ in range(rng.choice([4, 6]))] for _ in range(100)]
    budgets = [rng.choice([None, 3, "halted=0.5|steps=6"]) for _ in puzzles]
    starts = Starts(count=2, views=True)
    with Solver(model, slots=5, device="cpu") as solver:
        default = solver.default_budget
        expected = solver.solve(puzzles, [default if budget is None else budget for budget in budgets], starts=starts)

        async def ask(i):
            await asyncio.sleep(rng.random() / 20)
            return await solver.submit(puzzles[i], budgets[i], starts=starts)

        async def everyone():
            return await asyncio.gather(*map(ask, range(100)))

        for ours, theirs in zip(asyncio.run(everyone()), expected, strict=True):
            assert (ours.answer, ours.steps, ours.halt_probability) == (
                theirs.answer,
                theirs.steps,
                theirs.halt_probability,
            )
            assert (ours.stopped_by, ours.verified, ours.start) == (theirs.stopped_by, theirs.verified, theirs.start)


def test_the_thread_starts_with_the_first_puzzle_and_ends_with_the_solver(solver):
    """Without `submit` there is no thread, with it there is one, and none after `close`; a later puzzle starts anew."""
    assert not threads()
    assert asyncio.run(solver.submit([2, 1])).steps == 2
    assert asyncio.run(solver.submit([3, 1])).steps == 3
    assert len(threads()) == 1
    solver.close()
    assert not threads()
    assert asyncio.run(solver.submit([4, 1])).steps == 4
    solver.close()
    solver.close()
    assert not threads()


def test_a_solver_that_nobody_holds_takes_its_thread_along():
    """A solver that was dropped without `close` leaves no thread behind."""
    solver = Solver(counting_model(), slots=2, device="cpu")
    asyncio.run(solver.submit([2, 1]))
    gone = weakref.ref(solver)
    del solver
    gc.collect()
    assert gone() is None
    assert not threads()


def test_cancelling_a_task_frees_its_slot(solver):
    """Tasks that are cancelled, also by a timeout, free their slots and their places in the queue for others."""

    async def scenario():
        await solver.submit([1, 1])
        engine = solver._service.engine
        for _ in range(3):
            tasks = [asyncio.create_task(solver.submit([30, 1], ENDLESS)) for _ in range(7)]
            await until(lambda: (engine.active, engine.waiting) == (3, 4))
            for task in tasks[:5]:
                task.cancel()
            await until(lambda: (engine.active, engine.waiting) == (2, 0))
            assert (await solver.submit([2, 1])).steps == 2
            for task in tasks[5:]:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(task, 0.01)
            await until(lambda: (engine.active, engine.waiting) == (0, 0))
        assert (await solver.submit([3, 1])).steps == 3

    asyncio.run(scenario())


def test_a_full_queue_refuses(solver):
    """With all slots taken and `max_waiting` puzzles waiting, the next is refused with an error that says so, and taken
    as soon as there is room.
    """

    async def scenario():
        tasks = [asyncio.create_task(solver.submit([30, 1], ENDLESS)) for _ in range(7)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="7 puzzles are on their way"):
            await solver.submit([1, 1])
        tasks[0].cancel()
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(solver.submit([30, 1], ENDLESS)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await solver.submit([1, 1])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await solver.submit([1, 1])).steps == 1

    asyncio.run(scenario())


def test_errors_are_raised_at_their_own_caller(solver):
    """What cannot be read, asked or computed, or is too late, is raised where it was submitted; the others have their
    answers.
    """

    async def scenario():
        good = asyncio.create_task(solver.submit([8, 1]))
        with pytest.raises(PuzzleError):
            await solver.submit([99, 1])
        with pytest.raises(ConfigError, match="may never end"):
            await solver.submit([1, 1], Halted())
        with pytest.raises(ConfigError, match="at least 1"):
            await solver.submit([1, 1], starts=0)
        with pytest.raises(SolvingError, match="not finite"):
            await solver.submit([9, POISON])
        assert (await good).steps == 8
        tasks = [asyncio.create_task(solver.submit([30, 1], ENDLESS)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError):
            await solver.submit([1, 1], Seconds(0.05))
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_closing_tells_those_who_wait(solver):
    """Puzzles that are on their way when the solver is closed end with an error that says so."""

    async def scenario():
        tasks = [asyncio.create_task(solver.submit([30, 1], ENDLESS)) for _ in range(5)]
        await until(lambda: solver._service is not None and solver._service.engine.active == 3)
        solver.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, SolvingError) and "closed" in str(result) for result in results)

    asyncio.run(scenario())


class Faulty(TrustedRows):
    """Raises where it must not."""

    def format(self, answer, like):
        if like[0] == 4:
            raise RuntimeError("no way to write this")
        return super().format(answer, like)

    def augment(self, inputs, labels, rng):
        if inputs[0] == 5:
            raise RuntimeError("no way to turn this")
        return inputs, labels, lambda answer: answer


def test_a_fault_of_the_task_reaches_its_own_caller_alone():
    """Where a user's task raises, in writing an answer or in making a view, its caller gets that; others go on."""

    async def scenario(solver):
        good = asyncio.create_task(solver.submit([9, 1], Steps(200)))
        with pytest.raises(RuntimeError, match="no way to write"):
            await solver.submit([4, 1])
        with pytest.raises(RuntimeError, match="no way to turn"):
            await solver.submit([5, 1], starts=Starts(count=2, views=True))
        assert (await good).steps == 200

    with Solver(counting_model(Faulty(RowsConfig())), slots=3, device="cpu") as solver:
        asyncio.run(scenario(solver))


def test_a_fault_of_the_engine_reaches_all_callers_and_the_next_starts_anew(solver):
    """Where a step itself fails, such as for lack of memory, all who wait get that, and a later puzzle is solved."""
    step = solver.reasoner.readout

    def broken(state):
        raise MemoryError("no room")

    async def scenario():
        solver.reasoner.readout = broken
        results = await asyncio.gather(*(solver.submit([3, 1]) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, MemoryError) for result in results)
        solver.reasoner.readout = step
        assert (await solver.submit([3, 1])).steps == 3

    asyncio.run(scenario())


def test_callers_of_several_threads_share_the_engine(solver):
    """Event loops of several threads may submit to one solver, beside others that call `solve`."""
    found = {}

    async def ask(life):
        return (await solver.submit([life, 1])).steps

    def work(life):
        found[life] = (asyncio.run(ask(life)), solver.solve([[life, 1]])[0].steps)

    workers = [threading.Thread(target=work, args=(life,)) for life in range(1, 7)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == {life: (life, life) for life in range(1, 7)}


def test_the_event_loop_is_not_held_up(solver):
    """While puzzles are solved, the event loop goes on."""

    async def scenario():
        task = asyncio.create_task(solver.submit([30, 1], "seconds=0.3|steps=1000000000"))
        turns, start = 0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 10
        assert time.monotonic() - start < 30
        assert (await task).stopped_by == "seconds"

    asyncio.run(scenario())


def test_a_negative_queue_is_refused():
    """A queue has room for no puzzle, or for some."""
    with pytest.raises(ConfigError, match="max_waiting"):
        Solver(counting_model(), max_waiting=-1)


def test_the_steps_of_a_puzzle_can_be_watched(solver):
    """`watch` is shown every step of every start, from the puzzle's own side; the answers are those without it."""
    seen = []
    watched = solver.begin([3, 1], Steps(5), watch=seen.append).result()
    assert [(glimpse.start, glimpse.step, glimpse.answer.tolist()) for glimpse in seen] == [
        (0, step, [min(step, 3)] * 2) for step in range(1, 6)
    ]
    assert all(glimpse.logits is not None and glimpse.residual >= 0 for glimpse in seen)
    (alone,) = solver.solve([[3, 1]], Steps(5))
    assert (watched.answer, watched.steps, watched.halt_probability) == (
        alone.answer,
        alone.steps,
        alone.halt_probability,
    )


def test_a_view_is_watched_from_the_puzzles_own_side():
    """Where a start sees the puzzle in another symmetry, its steps are told without, and have no logits."""
    task = Sudoku(SudokuConfig(box="2x2"))
    reasoner = TRM(TRMConfig(hidden_size=16, num_heads=2, registers=1, width_multiple=8), task.spec)
    model = Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness(HaltingConfig(max_steps=4)))
    with Solver(model, slots=4, device="cpu") as solver:
        seen = []
        solution = solver.begin(
            "1...............", 3, starts=Starts(count=3, views=True, select=("first",)), watch=seen.append
        ).result()
    last = {glimpse.start: glimpse for glimpse in seen if glimpse.step == 3}
    assert set(last) == {0, 1, 2}
    assert last[0].answer.tolist() == solution.tokens.tolist()
    assert [last[start].logits is None for start in range(3)] == [False, True, True]


class Astray(Sorting):
    """A user's task whose views have no way back."""

    def augment(self, inputs, labels, rng):
        return inputs, labels, lost


def lost(answer):
    raise ValueError("lost")


@pytest.mark.parametrize("select", ["first", "verified,first"])
def test_a_view_without_a_way_back_is_an_error_of_its_own_puzzle(select, caplog):
    """Where a user's task fails to see an answer from the puzzle's side, watched or checked, its own puzzle gets the
    error, once in the log; the engine goes on for all others.
    """
    task = Astray(SortingConfig(n=6))
    reasoner = TRM(TRMConfig(hidden_size=16, num_heads=2, registers=1, width_multiple=8), task.spec)
    model = Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness(HaltingConfig(max_steps=4)))
    with Solver(model, slots=4, device="cpu") as solver:
        budget = "verified|steps=3"
        other = solver.begin([2, 1, 3], 40)
        views = Starts(count=2, views=True, select=tuple(select.split(",")))
        failing = solver.begin([3, 1, 2], budget, starts=views, watch=lambda glimpse: None)
        with contextlib.suppress(ValueError):  # unless the puzzle itself is chosen
            failing.result()
        assert other.result().steps == 40
    assert len(caplog.records) == 1


def test_the_load_is_told(solver):
    """How many passes are in slots and wait is told while they do, and is nothing again in the end."""

    async def scenario():
        assert solver.load == (0, 0, 0)
        tasks = [asyncio.create_task(solver.submit([30, 1], ENDLESS)) for _ in range(5)]
        await until(lambda: solver.load == (3, 2, 3))
        for task in tasks:
            task.cancel()
        await until(lambda: solver.load == (0, 0, 0))
        solution = await solver.submit([2, 1])
        assert 0 <= solution.waited <= solution.first_step <= solution.seconds

    asyncio.run(scenario())
