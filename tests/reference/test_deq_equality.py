"""The library's deep equilibrium model against its slow literal twin: the fixed point and the implicit gradient.

The twin iterates row by row and solves with a dense Jacobian; the library searches for all rows at once and never forms
a Jacobian. So nothing is equal bit for bit: both are compared in float32 as they stand, and in float64 with the norms
of both widened (they compute in float32), where the agreement shows that the two are the same mathematics. The weights
of f are halved and those of U taken times 1.5, so that the largest eigenvalue of each row's Jacobian is between 0.4
and 0.8: any method finds the fixed point, and it is far from that of a function which forgets z.
"""

import functools

import deq
import pytest
import torch
import trm
from test_trm_equality import SLOTS, SPEC, random_batch, twin_gradients

from loopwise.nn import layers
from loopwise.reasoners.deq import DEQ, DEQConfig, DEQState
from loopwise.reasoners.fixed_point import relative_residual
from loopwise.reasoners.gradients import (
    FixedPointConfig,
    FullBPTT,
    Implicit,
    LastCycle,
    LastUpdates,
    Phantom,
    PhantomConfig,
)
from loopwise.training.losses import answer_loss

POSITIONS = {"rotary": "rope", "learned": "learned", "none": "none"}
SOLVERS = ("plain", "anderson", "broyden")

every_position = pytest.mark.parametrize("positions", POSITIONS)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
damping = pytest.mark.parametrize("damping", [0.5, 1.0])


def twin_name(name: str) -> str:
    """The twin's name of a tensor of the library's DEQ."""
    names = {
        "tokens": "embed_tokens.embedding_weight",
        "puzzles.weight": "puzzle_emb.weights",
        "places": "embed_pos.embedding_weight",
        "z_init": "z_init",
        "U.weight": "U.weight",
        "head.weight": "lm_head.weight",
        "halt.weight": "q_head.weight",
        "halt.bias": "q_head.bias",
    }
    if name in names:
        return names[name]
    parts = {"attention": "self_attn", "mlp": "mlp"}
    layers = {"qkv": "qkv_proj", "out": "o_proj", "gate_up": "gate_up_proj", "down": "down_proj"}
    _, _, block, part, layer, leaf = name.split(".")  # f.blocks.0.attention.qkv.weight
    return f"level.layers.{block}.{parts[part]}.{layers[layer]}.{leaf}"


def pair(positions, damping=0.5, dtype=torch.float32, cycles=12):
    """A library model and a twin with the same weights, none of them zero, in the given precision."""
    config = DEQConfig(
        hidden_size=8, num_heads=2, num_layers=2, positions=positions, registers=1, damping=damping, cycles=cycles
    )
    model = DEQ(config, SPEC, dtype).to(dtype)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.f.parameters():
            p.mul_(0.5)
        model.U.weight.mul_(1.5)
        model.puzzles.weight.normal_(0, 8**-0.5, generator=rng)
        model.halt.weight.normal_(0, 8**-0.5, generator=rng)
        model.halt.bias.normal_(0.5, 0.1, generator=rng)
    twin = deq.DEQTwin(
        SPEC.vocab_size, SPEC.length, SPEC.num_puzzle_ids, hidden_size=8, num_heads=2, num_layers=2, puzzle_emb_len=1,
        positions=POSITIONS[positions], forward_dtype=dtype,
    ).to(dtype)  # fmt: skip
    twin.load_state_dict({twin_name(name): tensor.clone() for name, tensor in model.state_dict().items()})
    return model, twin


def fixed_points(solver, dtype):
    """A search as near as the precision allows."""
    return FixedPointConfig(solver=solver, tolerance=1e-11 if dtype is torch.float64 else 3e-7, max_cycles=300)


def tolerance(dtype):
    """How little the twin's fixed point may move in an iteration."""
    return 1e-12 if dtype is torch.float64 else 1e-6


def answer_and_values(batch):
    """A loss of answer and halting values. It is linear in the latter, of which the library keeps 32 bits only."""

    def loss(logits, q_halt, q_continue):
        return trm.stablemax_cross_entropy(logits, batch.labels) + (0.5 * q_halt - 0.25 * q_continue).sum()

    return loss


def library_backward(model, policy, steps=1, start=None):
    """The state before the last step, the state behind it, and every gradient of the last step under twin names."""
    batch = random_batch()
    state = model.init_state(SLOTS, SPEC.length) if start is None else DEQState(start)
    for _ in range(steps):
        before = state
        state, prediction = model(before, batch, policy)
    answer, _, _ = answer_loss("stablemax", prediction.logits, batch.labels)
    (answer + (0.5 * prediction.halt_logits - 0.25 * prediction.continue_logits).sum()).backward()
    return before, state, {twin_name(name): p.grad.to_dense() for name, p in model.named_parameters()}


@functools.cache
def twin_backward(positions, dtype):
    """The fixed points and every gradient of the twin."""
    _, twin = pair(positions, dtype=dtype)
    batch = random_batch()
    z, radii = twin.backward(batch.inputs, batch.puzzle_ids, tolerance(dtype), answer_and_values(batch))
    # What would make the comparison empty: a function that forgets z, whose gradient is that of one update.
    assert min(radii) > 0.4
    assert max(radii) < 0.8
    return z, twin_gradients(twin)


def distance(ours, theirs):
    """The largest difference of two gradients, each tensor's relative to its largest value."""
    assert ours.keys() == theirs.keys()
    return max(((ours[name] - g).abs().max() / g.abs().max()).item() for name, g in theirs.items())


@pytest.fixture
def wide_norms(monkeypatch):
    """The norms of library and twin, for one test, in the precision of what they are given."""

    def rms_norm(x, eps):
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)

    monkeypatch.setattr(layers, "rms_norm", rms_norm)
    monkeypatch.setattr(trm, "rms_norm", rms_norm)


def test_twin_gradient_is_that_of_the_fixed_point(wide_norms):
    """The twin's own gradient agrees with finite differences of the loss at the fixed point, to six digits: in a random
    direction of all parameters and puzzle vectors together.
    """
    _, twin = pair("learned", dtype=torch.float64)
    batch = random_batch()
    loss = answer_and_values(batch)
    _, gradients = twin_backward("learned", torch.float64)
    rng = torch.Generator().manual_seed(4)
    tensors = {name: tensor for name, tensor in twin.state_dict().items() if name != "z_init"}
    direction = {name: torch.randn(t.shape, generator=rng, dtype=t.dtype) * t.std() for name, t in tensors.items()}

    @torch.no_grad()
    def loss_at(step):
        for name, tensor in tensors.items():
            tensor.add_(direction[name], alpha=step)
        z, logits, _, _ = twin(batch.inputs, batch.puzzle_ids, 1e-12)
        q = z[:, 0] @ twin.q_head.weight.T + twin.q_head.bias  # not rounded to float32
        value = loss(logits, q[:, 0], q[:, 1]).item()
        for name, tensor in tensors.items():
            tensor.sub_(direction[name], alpha=step)
        return value

    slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    expected = sum((gradients[name] * direction[name]).sum().item() for name in tensors)
    assert abs(expected) > 0.1
    assert slope == pytest.approx(expected, rel=1e-6)


@every_position
@every_solver
@damping
def test_forward_equals_the_twin(positions, solver, damping):
    """In three steps in a row the state, the logits and the halting logits are those of the twin's fixed point up to
    2e-5, whatever the method of search and the damping of the update, which the twin's function does not have.
    """
    model, twin = pair(positions, damping)
    batch = random_batch()
    z, *outputs = twin(batch.inputs, batch.puzzle_ids, tolerance(torch.float32))
    state = model.init_state(SLOTS, SPEC.length)
    assert (state.z - z).abs().max() > 1
    for _ in range(3):
        state, prediction = model(state, batch, Implicit(fixed_points(solver, torch.float32)))
        for ours, theirs in zip((*state, *prediction[:3]), (z, *outputs), strict=True):
            assert ours.dtype is theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@every_position
@every_solver
@damping
def test_every_gradient_equals_the_twin(positions, solver, damping):
    """Each gradient, down to the rows of the puzzle table, is that of the dense solve up to 3e-5 of the largest value
    of the tensor, in float32 as both stand.
    """
    model, _ = pair(positions, damping)
    _, _, ours = library_backward(model, Implicit(fixed_points(solver, torch.float32)))
    _, theirs = twin_backward(positions, torch.float32)
    assert distance(ours, theirs) < 3e-5
    assert all(tensor.abs().max() > 1e-3 for tensor in ours.values())


@pytest.mark.parametrize("positions", ["learned", "none"])
@every_solver
@damping
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.usefixtures("wide_norms")
def test_every_gradient_equals_the_twin_in_float64(positions, solver, damping, steps):
    """In float64 each gradient is that of the dense solve up to 1e-8 of the largest value of the tensor, and the fixed
    point is the twin's up to 1e-9; in the first supervision step and in the second, which starts from the fixed point.
    Rotary positions, which are computed in float32, are left out.
    """
    model, _ = pair(positions, damping, torch.float64)
    before, after, ours = library_backward(model, Implicit(fixed_points(solver, torch.float64)), steps)
    z, theirs = twin_backward(positions, torch.float64)
    if steps == 2:
        torch.testing.assert_close(before.z, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.z, z, rtol=0, atol=1e-9)
    assert distance(ours, theirs) < 1e-8


@every_position
@pytest.mark.parametrize(
    "policy",
    [LastCycle(), LastUpdates(), FullBPTT(), Phantom(PhantomConfig(tolerance=1e-6, max_cycles=200))],
    ids=lambda policy: policy.name,
)
def test_a_wrong_gradient_policy_is_noticed(positions, policy):
    """From the fixed point itself, where all policies predict the same, gradients through the last cycle, the last two,
    four, or damped ones after a search differ from the twin's by a fifth and more of the largest value of some tensor.
    """
    model, _ = pair(positions, cycles=4)
    z, theirs = twin_backward(positions, torch.float32)
    _, after, ours = library_backward(model, policy, start=z)
    torch.testing.assert_close(after.z, z, rtol=0, atol=2e-5)
    assert distance(ours, theirs) > 0.2


@pytest.mark.usefixtures("wide_norms")
def test_backpropagation_through_enough_cycles_comes_to_the_implicit_gradient():
    """Full backpropagation through 100 updates from the fixed point gives the twin's gradient up to 1e-8: the
    implicit gradient is the limit of what the other policies cut short.
    """
    model, _ = pair("learned", damping=1.0, dtype=torch.float64, cycles=100)
    z, theirs = twin_backward("learned", torch.float64)
    _, _, ours = library_backward(model, FullBPTT(), start=z)
    assert distance(ours, theirs) < 1e-8


def test_a_row_alone_has_the_fixed_point_it_has_among_others():
    """A row solved for alone and among five others has the same fixed point up to 2e-5: no row waits for another."""
    model, twin = pair("rotary")
    batch = random_batch()
    policy = Implicit(fixed_points("anderson", torch.float32))
    together, _ = model(model.init_state(SLOTS, SPEC.length), batch, policy)
    for row in range(SLOTS):
        alone, _ = model(model.init_state(1, SPEC.length), type(batch)(*(c[row : row + 1] for c in batch)), policy)
        torch.testing.assert_close(alone.z[0], together.z[row], rtol=0, atol=2e-5)
        x = twin.embed(batch.inputs[row : row + 1], batch.puzzle_ids[row : row + 1])[0]
        torch.testing.assert_close(alone.z[0], twin.equilibrium(x, 1e-6), rtol=0, atol=2e-5)


def test_anderson_solves_what_the_others_solve():
    """A map on which unguarded mixing wanders for 400 updates at a residual of 2e-3: each solver arrives within 200."""
    model = DEQ(DEQConfig(hidden_size=8, num_heads=2, positions="none", registers=2), SPEC)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.f.parameters():
            parameter.mul_(0.5)
        model.puzzles.weight.copy_(torch.empty(5, 8).normal_(0, 8**-0.5, generator=rng))
        recursion = model.recursion(model.encode(random_batch()))
        for method in ("anderson", "broyden"):
            policy = Implicit(FixedPointConfig(solver=method, tolerance=1e-6, max_cycles=200))
            found = policy(recursion, model.init_state(6, 9))
            again = recursion.cycle[0](found)
            assert relative_residual(again.z, found.z).max() <= 2e-6
