"""The library's adaptive computation time against its literal twin, which takes the rows one by one.

The reasoners under it are the looped transformer, differentiated through all its cycles, and TRM, through the last one
of each of its steps; their twins take the steps. A batch and its rows differ in how matrix products are rounded, so
nothing is equal bit for bit: tolerances are stated, in float32.
"""

import act
import looped
import pytest
import torch
import trm
from test_looped_equality import twin_name as looped_name
from test_trm_equality import SLOTS, SPEC, random_batch, twin_gradients
from test_trm_equality import twin_name as trm_name

from judging import judged
from loopwise.reasoners.gradients import FullBPTT, LastCycle
from loopwise.reasoners.halting import ACTConfig, AdaptiveComputationTime
from loopwise.reasoners.looped import Looped, LoopedConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.training.losses import answer_loss

MAX_PONDER = 6
# (the halting head's bias, epsilon): rows that stop at once beside rows that go on to the cap, and rows in between.
HEADS = {"spread": (-1.0, 0.01), "eager": (3.0, 0.25), "slow": (-1.75, 0.05)}

every_family = pytest.mark.parametrize("family", ["looped", "trm"])
every_head = pytest.mark.parametrize("head", HEADS)


def pair(family, head):
    """A library model and a twin with the same weights, with a halting head that asks for other numbers of steps."""
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2}
    options = {**sizes, "positions": "rotary", "registers": 2}
    spec = (SPEC.vocab_size, SPEC.length, SPEC.num_puzzle_ids)
    if family == "looped":
        model, name = Looped(LoopedConfig(cycles=2, **options), SPEC), looped_name
        twin = looped.LoopedTwin(*spec, cycles=2, puzzle_emb_len=2, **sizes)
    else:
        model, name = TRM(TRMConfig(H_cycles=2, L_cycles=1, **options), SPEC), trm_name
        twin = trm.TRMTwin(*spec, H_cycles=2, L_cycles=1, puzzle_emb_len=2, forward_dtype=torch.float32, **sizes)
    rng = torch.Generator().manual_seed(11)
    with torch.no_grad():
        model.puzzles.weight.normal_(0, 1, generator=rng)
        model.halt.weight.normal_(0, 32**-0.5, generator=rng)
        model.halt.weight.mul_(2.0)
        model.halt.bias.copy_(torch.tensor([HEADS[head][0], 0.0]))
    twin.load_state_dict({name(n): tensor.clone() for n, tensor in model.state_dict().items()})
    return model, twin, name, FullBPTT() if family == "looped" else LastCycle()


def policy_of(head, max_ponder=MAX_PONDER):
    return AdaptiveComputationTime(ACTConfig(max_ponder=max_ponder, epsilon=HEADS[head][1]))


def looped_step(twin, x):
    """One step of the looped twin for one row: the state is z [1, S, d]."""

    def step(z):
        z = twin.loop(z, x)
        logits, q_halt, q_continue = twin.read(z)
        return z, q_halt[0], (logits[0], q_continue[0])

    return step


def trm_step(twin, x):
    """One step of TRM's twin for one row: the state is y and z, [2, 1, S, d]. Its first cycle has no gradient."""

    def step(state):
        y, z = state
        with torch.no_grad():
            for _ in range(twin.H_cycles - 1):
                y, z = twin.cycle(y, z, x)
        y, z = twin.cycle(y, z, x)
        logits, q = twin.lm_head(y)[:, twin.P :], twin.q_head(y[:, 0])
        return torch.stack((y, z)), q[0, 0], (logits[0], q[0, 1])

    return step


def twin_ponder(twin, batch, states, head, max_ponder=MAX_PONDER):
    """Every row's ponder, from a list of the rows' states; the puzzles are embedded once for all steps."""
    step = looped_step if isinstance(twin, looped.LoopedTwin) else trm_step
    x = twin.embed(batch.inputs, batch.puzzle_ids)
    rows = [
        act.ponder(step(twin, x[b : b + 1]), states[b], max_ponder, HEADS[head][1]) for b in range(len(batch.inputs))
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def twin_states(twin):
    """The initial states of all slots, row by row."""
    initial = twin.initial_state(SLOTS)
    if isinstance(initial, tuple):
        return [torch.stack([tensor[b : b + 1] for tensor in initial]) for b in range(SLOTS)]
    return [initial[b : b + 1] for b in range(SLOTS)]


def library_state(state):
    """A library state [B, ...] in the twin's form, row by row."""
    if len(state) > 1:
        return [torch.stack([tensor[b : b + 1] for tensor in state]) for b in range(SLOTS)]
    return [state.z[b : b + 1] for b in range(SLOTS)]


LOSSES = {
    "ponder": (0.0, 1.0),
    "answer": (1.0, 0.0),
    "both": (1.0, 0.01),
}


def backward(family, head, loss, policy=None, max_ponder=MAX_PONDER):
    """(gradients of the library, gradients of the twin, number of steps of each row)."""
    model, twin, name, own = pair(family, head)
    batch = random_batch()
    weight, tau = LOSSES[loss]
    halting = policy_of(head, max_ponder)
    advance = halting.step(model, model.init_state(SLOTS, SPEC.length), batch, policy or own)
    answer, _, correct = answer_loss("stablemax", advance.prediction.logits, batch.labels)
    cost = halting.loss(judged(advance.prediction, correct, ponder=advance.ponder))
    # The continue logit has no part in this loss; with the answer it gets one, so that its mean is compared too.
    spare = advance.prediction.continue_logits.square().sum()
    (weight * (answer + spare) + tau * cost).backward()

    _, outputs, N, _, ponder, _ = twin_ponder(twin, batch, twin_states(twin), head, max_ponder)
    logits, q_continue = (torch.stack(column) for column in zip(*outputs, strict=True))
    answer = trm.stablemax_cross_entropy(logits, batch.labels)
    (weight * (answer + q_continue.square().sum()) + tau * sum(ponder)).backward()
    for p in twin.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    ours = {name(n): torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for n, p in model.named_parameters()}
    return ours, twin_gradients(twin), N


def distance(ours, theirs):
    """The largest difference of two gradients, each tensor's relative to its largest value; tensors of zeros equal."""
    assert ours.keys() == theirs.keys()
    off = 0.0
    for name, g in theirs.items():
        largest = g.abs().max().item()
        if largest == 0:
            assert not ours[name].any(), name
        else:
            off = max(off, (ours[name] - g).abs().max().item() / largest)
    return off


# ---------------------------------------------------------------- the twin by hand


def test_twin_by_hand():
    """Probabilities 1/2, 1/4, 3/4 with epsilon 0.01 stop after the third: R = 1/4, the cost is 3 1/4, and the means are
    weighted by 1/2, 1/4, 1/4; a cap of two stops after the second, with R = 1/2.
    """
    logits = torch.logit(torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)).requires_grad_(True)

    def step(state):
        n = int(state.item())
        return state + 1, logits[n], (torch.tensor(10.0**n),)

    start = torch.zeros((), dtype=torch.float64)
    state, (output,), N, R, cost, total = act.ponder(step, start, 9, 0.01)
    assert (N, R.item(), cost.item(), total.item()) == pytest.approx((3, 0.25, 3.25, 1.5))
    assert (state.item(), output.item()) == pytest.approx((0.5 + 0.5 + 0.75, 0.5 + 2.5 + 25))
    cost.backward()
    # dR/dh_n = -1 for n < N, and the sigmoid's slope is h (1 - h); the last probability has no part.
    assert logits.grad.tolist() == pytest.approx([-0.25, -0.1875, 0])
    state, (output,), N, R, cost, total = act.ponder(step, start, 2, 0.01)
    assert (N, R.item(), cost.item(), output.item()) == pytest.approx((2, 0.5, 2.5, 0.5 + 5))
    _, (output,), N, R, cost, _ = act.ponder(step, start, 9, 0.5)
    assert (N, R.item(), cost.item(), output.item()) == (1, 1, 2, 1)


# ---------------------------------------------------------------- forward


@every_family
@every_head
def test_forward_equals_the_twin(family, head):
    """In three ponders in a row, each from the state that the library's last one left, the mean state, the mean logits
    and continue values, the ponder cost and sigmoid(halting logit) = h_1 + ... + h_N, cut at one, are the twin's up to
    2e-5. The state comes back without a graph.
    """
    model, twin, _, policy = pair(family, head)
    batch, halting = random_batch(), policy_of(head)
    state, starts = model.init_state(SLOTS, SPEC.length), twin_states(twin)
    close = {"rtol": 0, "atol": 2e-5}
    for _ in range(3):
        state, prediction, ponder = halting.step(model, state, batch, policy)
        states, outputs, _, _, cost, total = twin_ponder(twin, batch, starts, head)
        starts = library_state(state)
        assert not any(tensor.requires_grad for tensor in state)
        logits, q_continue = (torch.stack(column) for column in zip(*outputs, strict=True))
        torch.testing.assert_close(torch.stack(starts), torch.stack(states), **close)
        torch.testing.assert_close(prediction.logits, logits, **close)
        torch.testing.assert_close(prediction.continue_logits, q_continue, **close)
        torch.testing.assert_close(ponder, torch.stack(cost), **close)  # N + R, of which N is the whole part or R is 1
        torch.testing.assert_close(prediction.halt_logits.sigmoid(), torch.stack(total).clamp(max=1), **close)


@every_family
@every_head
def test_forward_of_one_row_equals_the_twin_bit_for_bit(family, head):
    """In three ponders in a row of a batch of one, for each of the rows, the mean state, logits and continue value are
    the twin's bit for bit.
    """
    model, twin, _, policy = pair(family, head)
    batch, halting, starts = random_batch(), policy_of(head), twin_states(twin)
    for row in range(SLOTS):
        alone = type(batch)(*(column[row : row + 1] for column in batch))
        state, theirs = model.init_state(1, SPEC.length), starts[row : row + 1]
        for _ in range(3):
            state, prediction, _ = halting.step(model, state, alone, policy)
            theirs, ((logits, q_continue),), *_ = twin_ponder(twin, alone, theirs, head)
            ours = torch.stack(tuple(state)) if len(state) > 1 else state.z
            assert torch.equal(ours, theirs[0])
            assert torch.equal(prediction.logits[0], logits)
            assert torch.equal(prediction.continue_logits[0], q_continue)


@every_family
def test_rows_ponder_for_numbers_of_steps_of_their_own(family):
    """With these heads a batch holds rows that stop after the first step, rows that stop later by themselves, and rows
    that are stopped by the cap: the comparisons of this file see all three.
    """
    seen = set()
    for head in HEADS:
        _, twin, _, _ = pair(family, head)
        _, _, N, _, _, total = twin_ponder(twin, random_batch(), twin_states(twin), head)
        by_itself = [t.item() >= 1 - HEADS[head][1] for t in total]
        assert len(set(N)) >= (2 if head == "eager" else 3)
        seen |= {("first" if n == 1 else "later") if ended else "cap" for n, ended in zip(N, by_itself, strict=True)}
        assert all(ended or n == MAX_PONDER for n, ended in zip(N, by_itself, strict=True))
    assert seen == {"first", "later", "cap"}


# ---------------------------------------------------------------- gradients


@every_family
@every_head
@pytest.mark.parametrize("loss", LOSSES)
def test_every_gradient_equals_the_twin(family, head, loss):
    """Each gradient of the ponder cost alone, of a loss of the mean answer alone, and of their weighted sum, down to
    the rows of the puzzle table, is the twin's up to 1e-5 of the largest value of the tensor.
    """
    ours, theirs, N = backward(family, head, loss)
    assert len(set(N)) >= 2
    assert distance(ours, theirs) < 1e-5
    without = {"lm_head.weight", "q_head.weight", "q_head.bias"} if loss == "ponder" else set()
    assert all(tensor.abs().max() > 1e-4 for name, tensor in ours.items() if name not in without)
    if loss == "ponder":
        assert not ours["lm_head.weight"].any()  # the cost does not see the answer, nor the continue value
        assert ours["q_head.weight"][0].abs().max() > 1e-2
        assert not ours["q_head.weight"][1].any()


@every_family
@pytest.mark.parametrize("max_ponder", [1, 2, 3])
def test_every_gradient_equals_the_twin_at_a_cap(family, max_ponder):
    """Where the cap stops most rows each gradient is still the twin's up to 1e-5; a cap of one leaves h_1 no part."""
    ours, theirs, N = backward(family, "slow", "both", max_ponder=max_ponder)
    assert N.count(max_ponder) >= 3
    assert distance(ours, theirs) < 1e-5
    assert ours["q_head.weight"][0].any() == (max_ponder > 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_gradient_policy_is_noticed(loss):
    """With the gradient through the last of two cycles, which cuts the way from one step of a ponder to the next, some
    tensor's gradient differs from the twin's by a tenth and more of its largest value.
    """
    ours, theirs, _ = backward("looped", "spread", loss, LastCycle())
    assert distance(ours, theirs) > 0.1
