"""The rules, asked safely: a user's code may raise, exit, or never return."""

import logging
import threading
import time

import numpy as np
import pytest

from counting import Rows, RowsConfig, TrustedRows
from loopwise.errors import ConfigError
from loopwise.solving.checking import MOST_HANGS, Checker
from loopwise.tasks.table import Table, TableConfig

PUZZLE = np.array([1, 1], np.int32)


def rules(verify):
    """A task outside loopwise with these rules."""
    task = Rows(RowsConfig())
    task.verify = verify
    return task


@pytest.mark.parametrize(
    ("says", "verdict"), [(True, True), (False, False), (None, None), (np.True_, True), (1, True), ("", False)]
)
def test_what_the_rules_say_is_passed_on(says, verdict, caplog):
    """True, false and undecided come through, as such."""
    assert Checker(rules(lambda puzzle, answer: says))(PUZZLE, PUZZLE) is verdict
    assert not caplog.records


def test_rules_of_our_own_are_asked_at_once():
    """Rules within loopwise are called in the caller's own thread, foreign ones in another."""
    threads = []
    for cls in (TrustedRows, Rows):
        task = cls(RowsConfig())
        task.verify = lambda puzzle, answer: threads.append(threading.current_thread())
        Checker(task)(PUZZLE, PUZZLE)
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("no such cell"), SystemExit(3), KeyboardInterrupt(), KeyError()])
def test_rules_that_raise_are_undecided(error, caplog):
    """Whatever the rules raise, the answer is undecided; a warning is logged, once."""

    def broken(puzzle, answer):
        raise error

    checker = Checker(rules(broken))
    assert [checker(PUZZLE, PUZZLE) for _ in range(5)] == [None] * 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "counted as undecided" in record.message


def test_rules_that_hang_are_undecided_and_given_up(caplog):
    """Rules that do not return in time are undecided; after three times they are not asked again; what they computed
    without end has ended, so that it takes no time from the solver.
    """
    calls = []

    def endless(puzzle, answer):
        calls.append(threading.current_thread())
        while True:
            pass

    checker = Checker(rules(endless), seconds=0.05)
    assert [checker(PUZZLE, PUZZLE) for _ in range(10)] == [None] * 10
    assert len(calls) == MOST_HANGS
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "longer than 0.05 s" in caplog.records[0].message
    assert "not asked again" in caplog.records[1].message
    until = time.monotonic() + 20
    while any(thread.is_alive() for thread in calls) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in calls)


def test_rules_that_are_slow_once_are_asked_again():
    """One call that takes too long harms no other."""
    slow = iter([True, False, False])

    def sometimes(puzzle, answer):
        if next(slow):
            time.sleep(0.3)
        return True

    checker = Checker(rules(sometimes), seconds=0.1)
    assert [checker(PUZZLE, PUZZLE) for _ in range(3)] == [None, True, True]


def test_a_checker_that_cannot_be_imported_is_an_error():
    """The checker of a table that is not there is no undecided answer but a mistake to mend."""
    table = Table(TableConfig(checker="no_such_module:check"))
    with pytest.raises(ConfigError, match="cannot import the checker"):
        Checker(table)(PUZZLE, PUZZLE)
