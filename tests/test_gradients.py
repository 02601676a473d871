"""Gradient policies and the search for fixed points, against closed forms, torchdeq, finite differences and each other.

The systems are small and their fixed points are known: z = W z + U x + b, whose every derivative is a formula, and
z = tanh(W z + x), where x is chosen for the fixed point. |W| < 1 in the 2-norm, so that |z - z*| <= |F(z) - z| / (1 -
|W|) turns the tolerance of a residual into one of the point.
"""

import dataclasses
import weakref
from typing import NamedTuple

import pytest
import torch
import torchdeq
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import loopwise.reasoners
from loopwise.reasoners.base import Reasoner, Recursion
from loopwise.reasoners.fixed_point import METHODS, relative_residual, solve
from loopwise.reasoners.gradients import (
    Checkpointed,
    FixedPointConfig,
    FullBPTT,
    Implicit,
    LastCycle,
    LastUpdates,
    LastUpdatesConfig,
    Phantom,
    PhantomConfig,
)
from loopwise.reasoners.rnn import RNN, RNNConfig
from loopwise.registry import discover
from loopwise.types import Batch, TaskSpec

ROWS, SIZE, INPUTS = 3, 6, 4
PRECISE = {"tolerance": 1e-12, "max_cycles": 300}

every_method = pytest.mark.parametrize("method", METHODS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def matrix(norm, size=SIZE, seed=0, dtype=torch.float64):
    """A matrix of the given 2-norm, far from symmetric."""
    w = normal(size, size, seed=seed)
    return (norm * w / torch.linalg.matrix_norm(w, 2)).to(dtype)


# ---------------------------------------------------------------- solve


class Counted:
    """A function that remembers the points at which it was called."""

    def __init__(self, function):
        self.function = function
        self.points = []

    def __call__(self, z):
        self.points.append(z.clone())
        return self.function(z)


def linear(norm, dtype=torch.float64):
    """(F, its fixed point [ROWS, SIZE]) with F(z) = W z + c."""
    w, c = matrix(norm, dtype=dtype), normal(ROWS, SIZE, seed=1, dtype=dtype)
    inverse = torch.linalg.inv(torch.eye(SIZE, dtype=torch.float64) - w.double())
    return Counted(lambda z: z @ w.T + c), c.double() @ inverse.T


def tanh(norm, dtype=torch.float64):
    """(F, its fixed point [ROWS, SIZE]) with F(z) = tanh(W z + x)."""
    w, point = matrix(norm, dtype=dtype), torch.tanh(normal(ROWS, SIZE, seed=1))
    x = (torch.atanh(point) - point @ w.double().T).to(dtype)
    return Counted(lambda z: torch.tanh(z @ w.T + x)), point


@every_method
@pytest.mark.parametrize("system", [linear, tanh])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=str)
def test_the_fixed_point_is_found(method, system, dtype, tolerance):
    """Each method finds the fixed point of a linear and of a nonlinear contraction: the residual is within the
    tolerance and so, by the contraction, is the point; before the updates are used up; in the format it was given.
    """
    norm = 0.8
    function, point = system(norm, dtype)
    found = solve(function, torch.zeros(ROWS, SIZE, dtype=dtype), method, tolerance, 300)
    assert found.z.dtype is dtype
    assert (found.residual <= tolerance).all()
    assert len(function.points) < 300
    # x is rounded to the dtype: a shift of the fixed point that the search cannot know of.
    rounding = 8 * torch.finfo(dtype).eps
    bound = (1.01 * tolerance + rounding) * point.norm(dim=1) / (1 - norm)
    assert ((found.z.double() - point).norm(dim=1) <= bound).all()


@pytest.mark.parametrize("method", ["anderson", "broyden"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_acceleration_on_a_slow_contraction(method, dtype):
    """Where the spectral radius is 0.95 and plain iteration needs more than a hundred calls of the function, Anderson
    and Broyden need less than a third of them, for the same residual.
    """
    basis, _ = torch.linalg.qr(normal(SIZE, SIZE, seed=2))
    w = (basis * torch.tensor([0.95, 0.9, 0.7, 0.3, -0.2, -0.5], dtype=torch.float64) @ basis.T).to(dtype)
    c = normal(ROWS, SIZE, seed=1, dtype=dtype)
    calls = {}
    for name in ("plain", method):
        function = Counted(lambda z: z @ w.T + c)
        found = solve(function, torch.zeros(ROWS, SIZE, dtype=dtype), name, 1e-5, 1000)
        assert (found.residual <= 1e-5).all()
        calls[name] = len(function.points)
    assert calls["plain"] > 100
    assert 3 * calls[method] < calls["plain"]


@every_method
def test_a_row_does_not_depend_on_its_neighbours(method):
    """A row's point and residual are the same bits beside healthy rows and beside one of NaN, one that diverges and one
    that is at its fixed point from the start; a row without a finite residual gives back its start.
    """
    w, c = matrix(0.8), normal(4, SIZE, seed=1)
    kind = torch.arange(4).view(-1, 1)

    def healthy(z):
        return z @ w.T + c

    def sick(z):
        value = torch.where(kind == 1, torch.nan, healthy(z))
        value = torch.where(kind == 2, 1e30 * z.abs() + 1, value)
        return torch.where(kind == 3, z, value)

    start = normal(4, SIZE, seed=3)
    expected = solve(healthy, start, method, 1e-10, 60)
    found = solve(sick, start, method, 1e-10, 60)
    assert torch.equal(found.z[0], expected.z[0])
    assert torch.equal(found.residual[0], expected.residual[0])
    assert torch.equal(found.z[[1, 3]], start[[1, 3]])
    assert found.residual[[1, 3]].tolist() == [torch.inf, 0]
    assert torch.isfinite(found.z[2]).all()


@every_method
def test_a_row_that_converges_early_is_frozen(method):
    """From the first point whose residual is within the tolerance on, a row is asked for at this point only, and this
    is its result, although the search goes on for another row.
    """
    w, c = matrix(0.9), normal(ROWS, SIZE, seed=1)
    fast = torch.tensor([False, True, False]).view(-1, 1)
    function = Counted(lambda z: torch.where(fast, 0.1 * z, z @ w.T) + c)
    found = solve(function, torch.zeros(ROWS, SIZE, dtype=torch.float64), method, 1e-8, 500)
    points = torch.stack(function.points)[:, 1]
    residuals = torch.stack([relative_residual(function.function(z), z)[1] for z in function.points])
    first = int((residuals <= 1e-8).nonzero()[0])
    assert 0 < first < len(points) - 2
    assert torch.equal(points[first:], points[first].expand_as(points[first:]))
    assert torch.equal(found.z[1], points[first])
    assert (found.residual <= 1e-8).all()


@every_method
@pytest.mark.parametrize("most", [1, 2, 7])
def test_no_more_updates_than_allowed(method, most):
    """A search that does not converge calls the function as often as it may; one that has converged stops at once."""
    function, point = linear(0.95)
    solve(function, torch.zeros(ROWS, SIZE, dtype=torch.float64), method, 0.0, most)
    assert len(function.points) == most
    function.points.clear()
    assert (solve(function, point, method, 1e-12, most).residual <= 1e-12).all()
    assert len(function.points) == 1


@every_method
def test_the_residual_is_that_of_the_point(method):
    """The residual told is |F(z) - z| / |F(z)| at the point told, and the smallest of all points that were tried."""

    def rotate(z):
        """Turns by more than it shrinks: the residual goes up and down under acceleration."""
        return torch.tanh(2.5 * z @ matrix(1.0, seed=5).T + c)

    c = 0.3 * normal(ROWS, SIZE, seed=4)
    function = Counted(rotate)
    found = solve(function, torch.zeros(ROWS, SIZE, dtype=torch.float64), method, 0.0, 25)
    value = rotate(found.z)
    expected = (value - found.z).norm(dim=1) / value.norm(dim=1)
    torch.testing.assert_close(found.residual, expected, rtol=1e-9, atol=1e-15)
    tried = torch.stack([relative_residual(rotate(z), z) for z in function.points])
    assert torch.equal(found.residual, tried.min(dim=0).values)
    best = torch.stack(function.points)[tried.argmin(dim=0), torch.arange(ROWS)]
    assert torch.equal(found.z, best)


def literal_anderson(function, z, count):
    """The points of Anderson's method for one row z [N]: of the last five values the mix, with weights that sum to one,
    whose mixed residual is the smallest, by a Lagrange multiplier.
    """
    values, residuals, points = [], [], [z]
    for _ in range(count - 1):
        values, residuals = [*values, function(z)][-5:], [*residuals, function(z) - z][-5:]
        r = torch.stack(residuals)
        ones = torch.ones(len(r), 1, dtype=r.dtype)
        gram = r @ r.T + 1e-6 * r.square().sum(1).mean() * torch.eye(len(r), dtype=r.dtype)
        system = torch.cat([torch.cat([gram, ones], 1), torch.cat([ones.T, torch.zeros(1, 1, dtype=r.dtype)], 1)])
        right = torch.tensor([0.0] * len(r) + [1.0], dtype=r.dtype)
        z = torch.linalg.solve(system, right)[:-1] @ torch.stack(values)
        points.append(z)
    return torch.stack(points)


def literal_broyden(function, z, count):
    """The points of Broyden's first method for one row z [N], with the inverse Jacobian H of F(z) - z as a matrix."""
    inverse, g, points = -torch.eye(len(z), dtype=z.dtype), function(z) - z, [z]
    for _ in range(count - 1):
        dz = -inverse @ g
        z = z + dz
        dg = function(z) - z - g
        g = g + dg
        inverse = inverse + torch.outer(dz - inverse @ dg, dz @ inverse) / (dz @ inverse @ dg)
        points.append(z)
    return torch.stack(points)


@pytest.mark.parametrize(("method", "literal"), [("anderson", literal_anderson), ("broyden", literal_broyden)])
def test_the_methods_are_their_equations(method, literal):
    """The first eight points of each row are those of the textbook's equations for this row alone, to 1e-9."""
    w, x = matrix(0.9), normal(ROWS, SIZE, seed=1)
    function = Counted(lambda z: torch.tanh(z @ w.T + x))
    start = normal(ROWS, SIZE, seed=14)
    solve(function, start, method, 0.0, 8)
    for row in range(ROWS):
        expected = literal(lambda z, c=x[row]: torch.tanh(w @ z + c), start[row], 8)
        torch.testing.assert_close(torch.stack(function.points)[:, row], expected, rtol=1e-9, atol=1e-10)


@every_method
def test_a_traced_search_has_the_same_result(method):
    """Under torch.compile, where all updates are made, point and residual are the same bits as without."""
    w, c = matrix(0.3), normal(ROWS, SIZE, seed=1)

    def search(z):
        return tuple(solve(lambda z: torch.tanh(z @ w.T + c), z, method, 1e-5, 9))

    start = torch.zeros(ROWS, SIZE, dtype=torch.float64)
    traced = torch.compile(search, backend="eager", fullgraph=True)(start)
    assert (traced[1] <= 1e-5).all()
    for a, b in zip(traced, search(start), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- implicit


class One(NamedTuple):
    z: Tensor


class Two(NamedTuple):
    y: Tensor  # [ROWS, 2, 2]
    z: Tensor  # [ROWS, SIZE]


def parameters(norm=0.7):
    """W, U, b and x, as leaves of a graph."""
    values = {
        "W": matrix(norm),
        "U": normal(SIZE, INPUTS, seed=6),
        "b": normal(SIZE, seed=7),
        "x": normal(ROWS, INPUTS, seed=8),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def affine(p, z):
    return z @ p["W"].T + p["x"] @ p["U"].T + p["b"]


def squash(p, z):
    return torch.tanh(affine(p, z))


def recursion(function, p, num_cycles=1):
    return Recursion((lambda state: One(function(p, state.z)),), num_cycles)


def zeros():
    return One(torch.zeros(ROWS, SIZE, dtype=torch.float64))


def loss_of(z):
    """Weighs every entry of the outcome differently, and not linearly."""
    weights = normal(*z.shape, seed=9)
    return (weights * z.double()).sum() + (weights.abs() * z.double().square()).sum() / 2


def gradients(p, z):
    return torch.autograd.grad(loss_of(z), list(p.values()))


def assert_close(found, expected, rtol):
    """Each tensor within `rtol` of the other's largest entry."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


@every_method
def test_implicit_is_the_closed_form_of_a_linear_system(method):
    """z* = (I - W)^-1 (U x + b), and with g = (I - W)^-T dL/dz* the gradients are g z*^T, g x^T, g and U^T g: to 1e-9,
    from a start that is not the fixed point.
    """
    p = parameters()
    z = Implicit(FixedPointConfig(solver=method, **PRECISE))(recursion(affine, p), zeros()).z
    with torch.no_grad():
        inverse = torch.linalg.inv(torch.eye(SIZE, dtype=torch.float64) - p["W"])
        point = (p["x"] @ p["U"].T + p["b"]) @ inverse.T
    torch.testing.assert_close(z.detach(), point, rtol=1e-10, atol=1e-11)
    leaf = point.clone().requires_grad_()
    (v,) = torch.autograd.grad(loss_of(leaf), leaf)
    with torch.no_grad():
        g = v @ inverse
        expected = (g.T @ point, g.T @ p["x"], g.sum(0), g @ p["U"])
    assert_close(gradients(p, z), expected, 1e-9)


@every_method
@pytest.mark.parametrize("function", [affine, squash])
def test_implicit_is_the_limit_of_full_bptt(method, function):
    """The gradient of the fixed point is that of 200 cycles with backpropagation through all of them, to 1e-9."""
    p = parameters(0.8)
    z = Implicit(FixedPointConfig(solver=method, **PRECISE))(recursion(function, p), zeros()).z
    unrolled = FullBPTT()(recursion(function, p, 200), zeros()).z
    torch.testing.assert_close(z, unrolled, rtol=1e-10, atol=1e-11)
    assert_close(gradients(p, z), gradients(p, unrolled), 1e-9)


@every_method
def test_implicit_passes_finite_differences(method):
    """The gradient is the slope of the fixed point itself, by torch's gradcheck in float64."""
    p = parameters()
    policy = Implicit(FixedPointConfig(solver=method, tolerance=1e-13, max_cycles=100))

    def fixed_point(*values):
        return policy(recursion(squash, dict(zip(p, values, strict=True))), zeros()).z

    # An undefined gradient, which gradcheck would try as well, reaches no state in a backward pass of ours.
    assert torch.autograd.gradcheck(fixed_point, tuple(p.values()), rtol=1e-6, atol=1e-8, check_undefined_grad=False)


def deq(function, p, **options):
    """The outcome of torchdeq 0.1.0 on the same function."""
    layer = torchdeq.get_deq(
        core="indexing", f_max_iter=300, f_tol=1e-12, f_stop_mode="rel", b_max_iter=300, b_tol=1e-12,
        b_stop_mode="rel", **options,
    )  # fmt: skip
    outcomes, _ = layer(lambda z: function(p, z), zeros().z)
    return outcomes[-1]


@every_method
@pytest.mark.parametrize("theirs", ["fixed_point_iter", "anderson", "broyden"])
def test_implicit_agrees_with_torchdeq(method, theirs):
    """Value and gradient are those of torchdeq's implicit differentiation, with either library's three solvers: to
    1e-7 (torchdeq's Broyden keeps part of its state in float32).
    """
    p = parameters()
    z = Implicit(FixedPointConfig(solver=method, **PRECISE))(recursion(squash, p), zeros()).z
    other = deq(squash, p, ift=True, f_solver=theirs, b_solver=theirs)
    torch.testing.assert_close(z, other, rtol=1e-7, atol=1e-8)
    assert_close(gradients(p, z), gradients(p, other), 1e-7)


def two_recursion(p, num_cycles=1):
    """A cycle of two updates on a state of two tensors of different shapes; all in float64, whatever the state."""
    a, b = matrix(0.6, SIZE, seed=10), 0.3 * normal(4, SIZE, seed=11)

    def think(state):
        y, z = state.y.double().flatten(1), state.z.double()
        return state._replace(z=torch.tanh(0.5 * affine(p, z) + y @ b).to(state.z.dtype))

    def answer(state):
        told = 0.5 * state.y.double().flatten(1) + state.z.double() @ a.T[:, :4]
        return state._replace(y=torch.tanh(told + p["b"][2:]).view(ROWS, 2, 2).to(state.y.dtype))

    return Recursion((think, answer), num_cycles)


def two(y=torch.float64, z=torch.float64):
    return Two(torch.zeros(ROWS, 2, 2, dtype=y), torch.zeros(ROWS, SIZE, dtype=z))


def outcome(state):
    return torch.cat([state.y.double().flatten(1), state.z.double()], dim=1)


@every_method
def test_implicit_of_a_state_of_two_tensors(method):
    """With two updates and two tensors the gradient is that of 200 cycles of full BPTT, to 1e-9; shapes and formats of
    the state are kept.
    """
    p = parameters()
    state = Implicit(FixedPointConfig(solver=method, **PRECISE))(two_recursion(p), two())
    assert [(type(t), t.shape, t.dtype) for t in state] == [(type(t), t.shape, t.dtype) for t in two()]
    unrolled = FullBPTT()(two_recursion(p, 200), two())
    torch.testing.assert_close(tuple(state), tuple(unrolled), rtol=1e-10, atol=1e-11)
    assert_close(gradients(p, outcome(state)), gradients(p, outcome(unrolled)), 1e-9)


@every_method
@pytest.mark.parametrize("formats", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_implicit_of_a_state_of_two_formats(method, formats):
    """With one tensor in bfloat16 and one in float32 each keeps its format, and the gradient is within 2 % of the one
    in float64: bfloat16 carries three digits.
    """
    p = parameters()
    policy = Implicit(FixedPointConfig(solver=method, tolerance=1e-3, max_cycles=50))
    state = policy(two_recursion(p), two(*formats))
    assert (state.y.dtype, state.z.dtype) == formats
    unrolled = FullBPTT()(two_recursion(p, 200), two())
    assert_close(gradients(p, outcome(state)), gradients(p, outcome(unrolled)), 2e-2)


@every_method
@pytest.mark.parametrize("at_the_point", [True, False])
def test_implicit_when_traced(method, at_the_point):
    """Compiled in one graph the value is the same, and the gradient is within 1e-9 of the one without, whether the
    search starts at the fixed point or finds it.
    """
    p = parameters(0.1)  # few cycles, as tracing takes time for each
    policy = Implicit(FixedPointConfig(solver=method, tolerance=1e-11, max_cycles=11))
    start = policy(recursion(squash, p), zeros()) if at_the_point else zeros()
    start = One(start.z.detach())

    def step(p, state):
        return policy(recursion(squash, p), state).z

    traced = torch.compile(step, backend="eager", fullgraph=True)(p, start)
    z = step(p, start)
    torch.testing.assert_close(traced, z, rtol=0, atol=1e-12)
    assert_close(gradients(p, traced), gradients(p, z), 1e-9)


def test_implicit_does_not_use_the_number_of_cycles():
    """Value and gradient are the same bits whatever the recursion's own number of cycles."""
    p = parameters()
    a, b = (Implicit()(recursion(squash, p, n), zeros()).z for n in (1, 5))
    assert torch.equal(a, b)
    for x, y in zip(gradients(p, a), gradients(p, b), strict=True):
        assert torch.equal(x, y)


# ---------------------------------------------------------------- phantom


@every_method
@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (4, 0.5), (3, 0.2)])
def test_phantom_is_its_equation(method, steps, damping):
    """z* cut from the graph, then z <- damping F(z) + (1 - damping) z, `steps` times, and the gradient through these
    and no more: to 1e-10. torchdeq's phantom gradient agrees.
    """
    p = parameters(0.8)
    options = {"solver": method, "steps": steps, "damping": damping, **PRECISE}
    z = Phantom(PhantomConfig(**options))(recursion(squash, p), zeros()).z
    with torch.no_grad():
        literal = FullBPTT()(recursion(squash, p, 200), zeros()).z
    for _ in range(steps):
        literal = damping * squash(p, literal) + (1 - damping) * literal
    torch.testing.assert_close(z, literal, rtol=1e-10, atol=1e-11)
    found = gradients(p, z)
    assert_close(found, gradients(p, literal), 1e-10)
    assert_close(found, gradients(p, deq(squash, p, grad=steps, tau=damping)), 1e-10)


def test_phantom_where_the_search_has_not_converged():
    """Damped cycles that start off the fixed point move the state too: with one plain update allowed the start is where
    they begin.
    """
    p = parameters()
    c = PhantomConfig(solver="plain", max_cycles=1, steps=2, damping=0.3)
    start = One(normal(ROWS, SIZE, seed=12))
    literal = start.z
    for _ in range(2):
        literal = 0.3 * squash(p, literal) + 0.7 * literal
    z = Phantom(c)(recursion(squash, p), start).z
    torch.testing.assert_close(z, literal, rtol=1e-12, atol=1e-13)
    assert_close(gradients(p, z), gradients(p, literal), 1e-12)


def test_phantom_tends_to_implicit():
    """Without damping the error of the gradient falls with the number of steps, to less than 1e-9 after 100."""
    p = parameters(0.8)
    exact = gradients(p, Implicit(FixedPointConfig(**PRECISE))(recursion(squash, p), zeros()).z)
    errors = []
    for steps in (1, 4, 16, 100):
        c = PhantomConfig(steps=steps, damping=1.0, **PRECISE)
        found = gradients(p, Phantom(c)(recursion(squash, p), zeros()).z)
        errors.append(max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-9


# ---------------------------------------------------------------- truncations, on every reasoner

REASONERS = discover(loopwise.reasoners.__name__, Reasoner)
SPEC = TaskSpec(vocab_size=5, shape=(4,), symbols=("", *"abcd"), num_puzzle_ids=3)
SMALL = {"hidden_size": 16, "num_heads": 2, "registers": 1, "width_multiple": 8, "H_layers": 1, "L_layers": 1}
ALL = 10_000

every_reasoner = pytest.mark.parametrize("name", REASONERS)
# The lattice has a loss after every update, so that a policy sees them one by one.
every_schedule = pytest.mark.parametrize("name", [name for name, cls in REASONERS.items() if not cls.search])


def build(name, **options):
    cls = REASONERS[name]
    names = {field.name for field in dataclasses.fields(cls.Config)}
    model = cls(cls.Config(**{k: v for k, v in {**SMALL, **options}.items() if k in names}), SPEC)
    with torch.no_grad():  # the halting head starts at zero, and lets no gradient through
        model.halt.weight.copy_(normal(*model.halt.weight.shape, seed=13))
    return model


def batch(rows=2):
    tokens = torch.arange(rows * SPEC.length).view(rows, -1) % SPEC.vocab_size
    return Batch(tokens, tokens, torch.arange(rows) % SPEC.num_puzzle_ids)


def step(model, policy):
    """(the state behind a step, its loss)."""
    state, prediction = model(model.init_state(2, SPEC.length), batch(), policy)
    return state, loss_of(prediction.logits) + prediction.halt_logits.square().sum()


def bits(model, policy):
    """The gradients of a step, of all parameters; None where there is none."""
    found = torch.autograd.grad(step(model, policy)[1], list(model.parameters()), allow_unused=True)
    return [None if g is None else g.to_dense() for g in found]


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def last(k):
    return LastUpdates(LastUpdatesConfig(k=k))


def cycle_of(model):
    return model.recursion(model.encode(batch()))


@every_reasoner
def test_checkpointed_is_full_bptt(name):
    """Each update computed a second time gives the same gradients, bit for bit."""
    model = build(name)
    assert same(bits(model, Checkpointed()), bits(model, FullBPTT()))


@every_schedule
def test_all_updates_are_full_bptt(name):
    """`last-updates` with as many updates as there are, or more, gives the gradients of full BPTT, bit for bit; with
    one less it does not.
    """
    model = build(name)
    cycle, num_cycles = cycle_of(model)
    full, count = bits(model, FullBPTT()), len(cycle) * num_cycles
    assert same(bits(model, last(count)), full)
    assert same(bits(model, last(ALL)), full)
    assert not same(bits(model, last(count - 1)), full)


@every_schedule
def test_a_cycle_of_updates_is_the_last_cycle(name):
    """`last-updates` with the updates of one cycle gives the gradients of `last-cycle`, bit for bit; with one more it
    does not.
    """
    model = build(name)
    cycle, num_cycles = cycle_of(model)
    assert num_cycles > 1
    expected = bits(model, LastCycle())
    assert same(bits(model, last(len(cycle))), expected)
    assert not same(bits(model, last(len(cycle) + 1)), expected)


@every_schedule
def test_the_last_of_one_cycle_is_all(name):
    """With a single cycle `last-cycle` gives the gradients of full BPTT, bit for bit; with several it does not."""
    one, several = build(name, H_cycles=1, cycles=1), build(name)
    assert same(bits(one, LastCycle()), bits(one, FullBPTT()))
    assert not same(bits(several, LastCycle()), bits(several, FullBPTT()))


@every_reasoner
def test_truncation_leaves_the_state_alone(name):
    """Which updates the gradient flows through changes no bit of the state or of the loss, nor does its absence."""
    model = build(name)
    expected_state, expected_loss = step(model, FullBPTT())
    for policy in (LastCycle(), last(1), last(2), last(ALL), FullBPTT(), Checkpointed()):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                state, loss = step(model, policy)
            assert loss.requires_grad is enabled
            assert torch.equal(loss, expected_loss)
            assert same(state, expected_state)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_last_updates_is_its_equation(k):
    """The state before the last k updates is cut from the graph, and these are differentiated as they stand."""
    p = parameters()
    cycle = two_recursion(p).cycle
    state = two()
    for i in range(6):
        state = cycle[i % 2](Two(*(t.detach() for t in state)) if i == 6 - k else state)
    found = last(k)(two_recursion(p, 3), two())
    grads = [torch.autograd.grad(loss_of(outcome(s)), list(p.values()), allow_unused=True) for s in (found, state)]
    assert same(*grads)
    assert any(g is not None for g in grads[0])


@pytest.mark.parametrize("policy", [FullBPTT(), Checkpointed()], ids=lambda policy: policy.name)
def test_full_bptt_passes_finite_differences(policy):
    """By torch's gradcheck in float64 the gradients of all parameters of a reasoner are the slopes of its logits.

    The reasoner is the RNN: the norms of the others compute in float32 whatever their format, too coarse for
    differences.
    """
    config = RNNConfig(hidden_size=2, registers=0, cycles=2, positions="learned")
    model = RNN(config, SPEC, torch.float64).double()
    inside = [p for name, p in model.named_parameters() if not name.startswith("halt")]

    def logits(*_):
        return model(model.init_state(2, SPEC.length), batch(), policy)[1].logits

    assert torch.autograd.gradcheck(logits, tuple(inside), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- memory


class Memory(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, whoever holds them, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        held = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in held:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        if storage not in self.known:
            self.known.add(storage)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size):
        self.bytes -= size


class Usage(NamedTuple):
    saved: int  # bytes that autograd saved for the backward pass
    kept: int  # bytes alive between the passes
    peak: int  # most bytes alive in both


def usage(policy, H_cycles):
    """Memory of a step of a TRM with so many cycles, and the bytes of its state."""
    model = build("trm", H_cycles=H_cycles, hidden_size=32, registers=0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step(model, policy)[1]
    del loss
    held.clear()
    with Memory() as memory:
        loss = step(model, policy)[1]
        kept = memory.bytes
        loss.backward()
    return Usage(sum(seen.values()), kept, memory.peak)


STATE = 2 * 2 * SPEC.length * 32 * 4
"""Bytes of the two tensors of the state of that TRM, float32."""


def test_memory_of_full_bptt_and_checkpointed():
    """What full BPTT saves grows by the activations of one cycle with each cycle, no more and no less; what
    `checkpointed` holds, and its peak in both passes, grows by at most one state with each update, and between the
    two lies less than the activations of two updates and the gradients of the weights.
    """
    counts = (2, 3, 6)
    full = [usage(FullBPTT(), n) for n in counts]
    check = [usage(Checkpointed(), n) for n in counts]
    updates = [7 * n for n in counts]
    weights = sum(p.nbytes for p in build("trm", hidden_size=32, registers=0).parameters())
    cycle = full[1].saved - full[0].saved
    assert cycle > 7 * 10 * STATE
    for n, used in zip(counts, full, strict=True):
        assert used.saved - full[0].saved == (n - 2) * cycle
        assert used.kept - full[0].kept == pytest.approx((n - 2) * cycle, rel=0.02)
        assert used.peak - full[0].peak == pytest.approx((n - 2) * cycle, rel=0.02)
    for n, used in zip(updates, check, strict=True):
        assert used.peak - used.kept < 2 * cycle / 7 + weights
        assert used.kept - check[0].kept <= (n - updates[0]) * STATE
        assert used.peak - check[0].peak <= (n - updates[0]) * STATE
    for a, b in zip(check, full, strict=True):
        assert a.peak < b.peak
    assert 4 * check[-1].peak < full[-1].peak


FEW = PhantomConfig(max_cycles=4)


@pytest.mark.parametrize("policy", [LastCycle(), last(2), Implicit(FEW), Phantom(FEW)], ids=lambda policy: policy.name)
def test_memory_that_does_not_grow(policy):
    """What the other policies save, hold and need at their peak does not depend on the number of cycles."""
    assert usage(policy, 2) == usage(policy, 4)


@pytest.mark.parametrize("policy", [Implicit, Phantom], ids=lambda policy: policy.name)
def test_memory_of_a_longer_search(policy):
    """A plain search of more cycles saves nothing more, and neither holds more nor needs more at its peak."""
    options = {"solver": "plain", "tolerance": 0.0}
    few, many = (usage(policy(policy.Config(max_cycles=n, **options)), 2) for n in (2, 5))
    assert few == many


@every_method
def test_a_search_does_not_depend_on_the_scale(method):
    """The same equation in units 2^40 times as large takes as many calls of the function, to the same point."""
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 8, generator=rng)
    matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)
    shift = torch.randn(3, 8, generator=rng)
    found = {}
    for unit in (1.0, 2.0**-40):
        calls = []

        def function(z, unit=unit, calls=calls):
            calls.append(1)
            return z @ matrix.T + unit * shift

        found[unit] = solve(function, torch.zeros(3, 8), method, 1e-3, 200), len(calls)
    (large, many), (small, few) = found[1.0], found[2.0**-40]
    assert many == few < 200
    torch.testing.assert_close(small.z * 2.0**40, large.z)


@every_method
def test_a_backward_solve_without_solution_stays_bounded(method):
    """Where I - J^T has no bounded inverse (an eigenvalue of 1), what comes back is no worse than where it began, in
    units of v: running away is not taken for arriving.
    """
    matrix = torch.diag(torch.tensor([1.0, 0.5, -0.9, 0.99, 1.3]))
    v = torch.tensor([[1.0, 2.0, -1.0, 0.5, 1.0]])
    found = solve(lambda g: v + g @ matrix, v, method, 1e-6, 60, v.norm(dim=1))
    start = (v @ matrix).norm() / v.norm()
    assert found.residual <= start
    torch.testing.assert_close((v + found.z @ matrix - found.z).norm() / v.norm(), found.residual[0])
