"""Budgets: what stops a puzzle, how budgets combine, and how they are written."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.errors import ConfigError
from loopwise.solving.budget_text import as_budget, parse_budget
from loopwise.solving.budgets import (
    HALT_THRESHOLD,
    AllOf,
    AnyOf,
    Converged,
    Flops,
    Halted,
    Progress,
    Seconds,
    Steps,
    Verified,
)

thorough = settings(max_examples=300, deadline=None, database=None, derandomize=True)

ATOMS = st.one_of(
    st.integers(1, 20).map(Steps),
    st.floats(0, 1).map(Halted),
    st.integers(1, 5).map(Converged),
    st.floats(1e-6, 0.9).map(Converged),
    st.just(Verified()),
    st.floats(1e-3, 20).map(Seconds),
    st.floats(1, 1e12).map(Flops),
)
BUDGETS = st.recursive(
    ATOMS,
    lambda parts: st.tuples(parts, parts, st.booleans()).map(lambda t: t[0] & t[1] if t[2] else t[0] | t[1]),
    max_leaves=8,
)
FACTS = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 25),
        "halt_probability": st.floats(0, 1),
        "unchanged": st.integers(0, 6),
        "residual": st.floats(0, 1),
        "seconds": st.floats(0, 25),
        "flops": st.floats(0, 1e13),
        "verified": st.sampled_from([True, False, None]),
    }
)


def progress(verified=None, **facts):
    """A puzzle that is so far, about whose answer the rules say `verified`."""
    return Progress(answer=np.array([1], np.int32), check=lambda answer: verified, **facts)


# ---------------------------------------------------------------- single budgets


@pytest.mark.parametrize(
    ("budget", "goes_on", "stops"),
    [
        (Steps(3), {"steps": 2}, {"steps": 3}),
        (Halted(), {"halt_probability": HALT_THRESHOLD}, {"halt_probability": HALT_THRESHOLD + 1e-9}),
        (Halted(0.5), {"halt_probability": 0.5}, {"halt_probability": 0.51}),
        (Converged(2), {"unchanged": 1, "residual": 0.0}, {"unchanged": 2}),
        (Converged(0.01), {"unchanged": 9, "residual": 0.011}, {"residual": 0.01}),
        (Verified(), {"verified": False}, {"verified": True}),
        (Verified(), {"verified": None}, {"verified": True}),
        (Seconds(1.5), {"seconds": 1.4}, {"seconds": 1.5}),
        (Flops(1e9), {"flops": 9.9e8}, {"flops": 1e9}),
    ],
)
def test_each_stops_where_it_says(budget, goes_on, stops):
    """A budget stops at its own limit, neither before it nor for another's reason, and says its name."""
    assert budget.stop(progress(**goes_on)) == ""
    assert budget.stop(progress(**stops)) == budget.name
    others = {"steps": 99, "halt_probability": 1.0, "unchanged": 99, "residual": 0.0, "seconds": 99.0, "flops": 1e99}
    assert budget.stop(progress(**({"verified": True} | others | goes_on))) == ""


def test_before_the_first_step_only_time_can_stop():
    """A puzzle that waits has no answer to be halted, converged or verified at; its deadline counts all the same."""
    waiting = Progress(seconds=9.0, check=lambda answer: True)
    for budget in (Steps(1), Halted(0.0), Converged(1), Converged(0.99), Verified(), Flops(1.0)):
        assert budget.stop(waiting) == ""
    assert Seconds(9).stop(waiting) == "seconds"


@pytest.mark.parametrize(
    ("make", "value", "says"),
    [
        (Steps, 0, "at least 1"),
        (Steps, -3, "at least 1"),
        (Steps, 2.5, "whole number"),
        (Steps, math.inf, "whole number"),
        (Steps, math.nan, "whole number"),
        (Halted, -0.1, "probability"),
        (Halted, 1.1, "probability"),
        (Halted, math.nan, "probability"),
        (Converged, 0, "residual"),
        (Converged, -1, "residual"),
        (Converged, 2.5, "whole number"),
        (Converged, math.inf, "whole number"),
        (Converged, math.nan, "whole number"),
        (Seconds, 0, "more than 0"),
        (Seconds, math.inf, "more than 0"),
        (Seconds, math.nan, "more than 0"),
        (Flops, -1, "more than 0"),
        (Flops, math.nan, "more than 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(make, value, says):
    """A limit of nothing, below nothing, without end or that is no number is one clear error."""
    with pytest.raises(ConfigError, match=says):
        make(value)


# ---------------------------------------------------------------- combinations


@thorough
@given(a=BUDGETS, b=BUDGETS, facts=FACTS)
def test_and_needs_both_and_or_either(a, b, facts):
    """a & b stops exactly where both do, under both names; a | b where either does, under the first's name."""
    at = progress(**facts)
    first, second = a.stop(at), b.stop(at)
    assert bool((a & b).stop(at)) == bool(first and second)
    assert (a | b).stop(at) == (first or second)
    if first and second and not isinstance(a, AnyOf) and not isinstance(b, AnyOf):
        assert (a & b).stop(at) == f"{first}&{second}"


@thorough
@given(budget=BUDGETS, facts=FACTS, later=FACTS)
def test_what_stops_stays_stopped(budget, facts, later):
    """A budget that stops a puzzle would also stop it with more steps, time, FLOPs and certainty: it is monotone."""
    more = {key: max(facts[key], later[key]) for key in ("steps", "halt_probability", "unchanged", "seconds", "flops")}
    more["residual"] = min(facts["residual"], later["residual"])
    more["verified"] = True if facts["verified"] else later["verified"]
    if budget.stop(progress(**facts)):
        assert budget.stop(progress(**more))


@thorough
@given(facts=FACTS, limit=st.integers(1, 20), more=st.integers(0, 20))
def test_a_greater_limit_never_stops_earlier(facts, limit, more):
    """With more steps, seconds or FLOPs allowed, a puzzle goes on at least where it went on before."""
    at = progress(**facts)
    for kind in (Steps, Seconds, Flops):
        if kind(limit + more).stop(at):
            assert kind(limit).stop(at)


HOSTILE = {"halt_probability": 0.0, "unchanged": 0, "residual": math.inf, "verified": False}
"""A model that is never sure, never settles and never right."""


@thorough
@given(budget=BUDGETS)
def test_bounded_is_what_a_hostile_model_cannot_escape(budget):
    """A budget is bounded exactly if it stops, sometime, a model that never halts, converges or is right; one that is
    not is refused with a hint.
    """
    for_ever = progress(**HOSTILE, steps=10**9, seconds=1e18, flops=1e30)
    assert budget.bounded == bool(budget.stop(for_ever))
    if budget.bounded:
        assert as_budget(budget) is budget
    else:
        with pytest.raises(ConfigError, match=r"may never end; add a limit, such as .*\|steps=64"):
            as_budget(budget)


@thorough
@given(budget=BUDGETS, facts=FACTS, other=FACTS)
def test_needs_names_all_that_is_looked_at(budget, facts, other):
    """What a budget does not say that it needs makes no difference to it, so the engine may leave it out."""
    unneeded = {"residual", "seconds", "flops"} - budget.needs
    changed = facts | {key: other[key] for key in unneeded}
    assert budget.stop(progress(**facts)) == budget.stop(progress(**changed))


def test_needs_are_no_more_than_are_looked_at():
    """A residual is computed only for who gave a tolerance, FLOPs are counted and deadlines watched where asked."""
    assert not (Halted() & Converged(3) & Verified() | Steps(3)).needs
    assert (Converged(0.1) | Seconds(3)).needs == {"residual", "seconds"}
    assert Flops(1).needs == {"flops"}


def test_the_rules_are_asked_late_and_once():
    """`halted&verified` asks the rules only where the model has halted, and once as long as the answer is the same."""
    asked = []

    def check(answer):
        asked.append(answer.tolist())
        return False

    at, budget = Progress(check=check), Halted(0.5) & Verified() | Verified() & Steps(9)
    seen = [(1, 0.1, 0), (2, 0.9, 0), (2, 0.9, 1), (3, 0.9, 0), (3, 0.1, 1)]
    for token, probability, unchanged in seen:
        at.advance(np.array([token]), probability, unchanged, seconds=0.0)
        (Halted(0.5) & Verified() | Steps(9)).stop(at)
    assert asked == [[2], [3]]
    assert budget.stop(at) == ""
    assert at.steps == len(seen)


# ---------------------------------------------------------------- writing and reading


def test_a_number_is_a_number_of_steps():
    """16 is Steps(16), alone and in a combination."""
    assert as_budget(16) == as_budget("16") == Steps(16)
    assert Halted() | 16 == Halted() | Steps(16)
    assert Halted() & 3 == AllOf((Halted(), Steps(3)))


@pytest.mark.parametrize("value", [None, 2.5, [16], {"steps": 16}, b"16"])
def test_what_is_no_budget_is_refused(value):
    """Anything but a number, a text or a budget is told what a budget is."""
    with pytest.raises(ConfigError, match="a budget is a number of steps, a text"):
        as_budget(value)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("16", Steps(16)),
        ("halted|steps=64|verified", Halted() | Steps(64) | Verified()),
        ("halted=0.9&converged=3|seconds=5", (Halted(0.9) & Converged(3)) | Seconds(5)),
        ("seconds=5|halted=0.9&converged=0.001", Seconds(5) | (Halted(0.9) & Converged(0.001))),
        ("(halted|verified)&steps=2", (Halted() | Verified()) & Steps(2)),
        (" ( ( flops=1e9 ) ) ", Flops(1e9)),
        ("verified | 8", Verified() | Steps(8)),
    ],
)
def test_text_says_the_same_as_objects(text, budget):
    """& binds tighter than |, parentheses group, spaces do not matter, a bare number is steps."""
    assert parse_budget(text) == budget


@thorough
@given(budget=BUDGETS)
def test_a_budget_is_read_back_from_what_it_writes(budget):
    """str(budget) is text that gives the same budget."""
    assert parse_budget(str(budget)) == budget


def test_chains_are_flat():
    """a | b | c has three parts, however it was put together, so that equal budgets are equal."""
    a, b, c = Steps(1), Halted(), Verified()
    assert (a | b) | c == a | (b | c) == AnyOf((a, b, c))
    assert (a & b) & c == a & (b & c) == AllOf((a, b, c))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a part is missing"),
        ("halted|", "a part is missing"),
        ("|halted", "a part is missing"),
        ("halted&&steps=3", "a part is missing"),
        ("()", "a part is missing"),
        ("(" * 5000, "too many parentheses"),
        ("(halted|steps=3", "not closed"),
        ("halted)|3", "left over"),
        ("halted steps=3", "left over"),
        ("haltet|3", "there is no 'haltet'"),
        ("steps", "makes no sense"),
        ("steps=", "makes no sense"),
        ("steps=many", "makes no sense"),
        ("verified=1", "makes no sense"),
        ("converged", "makes no sense"),
        ("steps=0", "at least 1"),
        ("halted=2", "probability"),
        ("-3", "there is no '-3'"),
        ("2.5", "there is no '2.5'"),
    ],
)
def test_unreadable_text_is_one_clear_error(text, says):
    """A mistake in a budget's text is told in one line; where a name is wrong, the known ones are named."""
    with pytest.raises(ConfigError, match=says) as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)
    if "there is no" in says:
        assert "steps, halted, converged, verified, seconds, flops" in str(caught.value)


@thorough
@given(st.text(alphabet="halted=|&()0.9 stepsvri1e", max_size=30))
def test_any_text_is_a_budget_or_a_clear_error(text):
    """Whatever is typed gives a budget or a ConfigError of one line."""
    try:
        said = str(parse_budget(text))
    except ConfigError as error:
        said = str(error)
    assert said
    assert "\n" not in said
