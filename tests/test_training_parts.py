"""The parts of training one by one: losses, optimizers, average, carry, halting, stream, trainer, cost, options."""

import copy
import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from judging import judged
from loopwise.config import from_json, to_json
from loopwise.data.stream import Stream
from loopwise.errors import ConfigError, DataError, TrainingError
from loopwise.reasoners.carry import disturb, empty_carry, refill
from loopwise.reasoners.costs import count_flops
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.lattice import LatticeState
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.runtime import generator
from loopwise.storage import read_tensors, write_tensors
from loopwise.tasks.base import Task, TaskConfig
from loopwise.training.config import TrainingConfig
from loopwise.training.ema import MovingAverage
from loopwise.training.losses import LOSSES, answer_loss, softmax_cross_entropy, stablemax_cross_entropy
from loopwise.training.optimizers import AdamATan2, SparseSignSGD, learning_rate
from loopwise.training.trainer import Trainer
from loopwise.types import IGNORE_LABEL, Batch, Examples, Prediction, TaskSpec

SLOTS = 4


class Toy(Task[TaskConfig]):
    """Reverse a row; three identities; a shift of the row is a shift of the answer."""

    name = "toy"
    Config = TaskConfig
    spec = TaskSpec(vocab_size=7, shape=(6,), symbols=("", *"abcdef"), num_puzzle_ids=3)

    def __init__(self, count=20):
        super().__init__(TaskConfig())
        self.count = count

    def examples(self, split):
        rng = np.random.default_rng(0)
        inputs = rng.integers(1, 7, size=(self.count, 6)).astype(np.int32)
        inputs[:, 0] = np.arange(self.count)  # a serial number; as a token it is taken modulo the vocabulary
        return Examples(inputs, inputs[:, ::-1].copy(), (np.arange(self.count) % 3).astype(np.int32))

    def augment(self, inputs, labels, rng):
        turns = int(rng.integers(1, 6))
        return np.roll(inputs, turns), np.roll(labels, -turns), lambda answer: np.roll(answer, turns)

    parse = format = render = NotImplemented


# ---------------------------------------------------------------- losses

EXTREME = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-7, -1e-7, 1e4, -1e4, 1e30, -1e30, 3.4e38, -3.4e38)


@pytest.mark.parametrize("label", range(len(EXTREME)))
def test_stablemax_is_finite_at_extreme_logits(label):
    """Whatever the logits and the label, loss and gradient are finite, the loss in float64 and not negative."""
    logits = torch.tensor(EXTREME).view(1, 1, -1).requires_grad_()
    loss = stablemax_cross_entropy(logits, torch.tensor([[label]]))
    assert loss.dtype is torch.float64
    assert torch.isfinite(loss).all()
    assert loss.item() >= 0
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_stablemax_by_hand():
    """Shares of (0, 1, -1) are 1, 2, 1/2, so that p is 2/7, 4/7, 1/7; the gradient is s'/sum(s) - s'/s at the label,
    with s' = 1 from 0 on and 1 / (1 - u)^2 below.
    """
    logits = torch.tensor([0.0, 1.0, -1.0]).repeat(1, 3, 1).requires_grad_()
    loss = stablemax_cross_entropy(logits, torch.tensor([[0, 1, 2]]))
    expected = torch.tensor([[math.log(7 / 2), math.log(7 / 4), math.log(7)]], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    loss.sum().backward()
    slope, share = torch.tensor([1, 1, 1 / 4]), torch.tensor([1, 2, 1 / 2])
    expected = (slope / 3.5).repeat(3, 1) - torch.diag(slope / share)
    torch.testing.assert_close(logits.grad[0], expected)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_ignored_positions_cost_nothing(loss):
    """Where the label is IGNORE_LABEL loss and gradient are exactly zero, elsewhere neither is."""
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[0, 1, IGNORE_LABEL, 4], [IGNORE_LABEL] * 4, [3, 3, 3, 3]])
    values = loss(logits, labels)
    assert torch.equal(values == 0, labels == IGNORE_LABEL)
    values.sum().backward()
    assert torch.equal((logits.grad == 0).all(-1), labels == IGNORE_LABEL)


def test_softmax_is_that_of_torch():
    """The softmax variant, values and gradients, is -log_softmax at the label in float32, also for bfloat16 logits."""
    wide = 10 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, IGNORE_LABEL, 4], [IGNORE_LABEL] * 4, [3, 2, 1, 0]])
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (wide.clone().to(dtype).requires_grad_() for _ in range(2))
        ours = softmax_cross_entropy(a, labels)
        picked = F.log_softmax(b.float(), -1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        theirs = torch.where(labels == IGNORE_LABEL, 0.0, -picked)
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_answer_loss_is_a_mean_per_row_and_a_sum_over_rows(loss):
    """Equal logits cost log V a row, however many positions it asks for; a row that asks for none costs nothing."""
    labels = torch.tensor([[1, 2, 3], [IGNORE_LABEL, 0, IGNORE_LABEL], [IGNORE_LABEL] * 3])
    total, _, _ = answer_loss(loss, torch.zeros(3, 3, 5), labels)
    assert total.item() == pytest.approx(2 * math.log(5), rel=1e-6)


def test_accuracies_of_an_answer():
    """A position is right where it is asked for and the largest logit is its label, a row where all that it asks is."""
    logits = F.one_hot(torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]), 4).float()
    labels = torch.tensor([[1, 2, 3], [1, 2, 0], [IGNORE_LABEL, 2, IGNORE_LABEL], [IGNORE_LABEL] * 3])
    _, right, correct = answer_loss("stablemax", logits, labels)
    assert right.tolist() == [[True] * 3, [True, True, False], [False, True, False], [False] * 3]
    assert correct.tolist() == [True, False, True, True]


# ---------------------------------------------------------------- optimizers


def optimize(optimizer, steps, gradient):
    """`gradient(parameter, step)` at each step; None leaves the parameter without one."""
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = gradient(p, step)
        optimizer.step()


def parameters(*sizes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=rng)) for size in sizes]


def wave(p, step):
    """A gradient that depends on the parameter, the position and the step."""
    return torch.sin(p.detach() + step * torch.arange(1.0, p.numel() + 1).view_as(p))


def test_first_step_of_adam_atan2():
    """The first step moves by lr 10 atan(1/10) against the gradient, whatever its size; no gradient, no move."""
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    gradient = torch.tensor([3.0, -1e-6, 1e5, 0.0], dtype=torch.float64)
    optimize(AdamATan2([p], lr=0.01, weight_decay=0.0), 1, lambda *_: gradient)
    move = 0.01 * 10 * math.atan(0.1)
    assert p.tolist() == pytest.approx([1 - move, 1 + move, 1 - move, 1.0], rel=1e-12)


def test_adam_atan2_follows_its_equation():
    """Ten steps equal the equation of the docstring, term by term, in float64."""
    lr, beta1, beta2, decay = 0.03, 0.8, 0.9, 0.2
    p = nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    q, m, v = p.detach().clone(), 0.0, 0.0
    gradients = torch.randn(10, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimize(AdamATan2([p], lr, (beta1, beta2), decay), 10, lambda _, step: gradients[step - 1].clone())
    for t, g in enumerate(gradients, start=1):
        q = q * (1 - lr * decay)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        q = q - lr / (1 - beta1**t) * torch.atan2(m, torch.sqrt(v / (1 - beta2**t)))
    torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**30])
def test_adam_atan2_ignores_the_scale_of_the_gradient(scale):
    """Gradients multiplied by a power of two lead to the same weights, bit for bit."""
    (a,), (b,) = parameters(9), parameters(9)
    optimize(AdamATan2([a]), 10, lambda p, step: wave(torch.arange(9.0), step))
    optimize(AdamATan2([b]), 10, lambda p, step: scale * wave(torch.arange(9.0), step))
    assert torch.equal(a, b)


def test_adam_atan2_treats_each_parameter_by_itself():
    """A parameter moves as it would alone, in whatever order it stands and from whatever step it has a gradient."""
    first_step = {3: 1, 4: 3, 5: 1}

    def gradient(p, step):
        return wave(p, step) if step >= first_step[p.numel()] else None

    alone = parameters(3, 4, 5)
    for p in alone:
        optimize(AdamATan2([p], lr=0.1), 6, gradient)
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        together = parameters(3, 4, 5)
        optimize(AdamATan2([together[i] for i in order], lr=0.1), 6, gradient)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a, b)


def test_adam_atan2_continues_from_its_state():
    """Saved after five steps and loaded, it takes the same next five, bit for bit."""
    straight, parted = parameters(3, 4), parameters(3, 4)
    optimize(AdamATan2(straight, lr=0.1), 10, wave)
    first = AdamATan2(parted, lr=0.1)
    optimize(first, 5, wave)
    second = AdamATan2(parted, lr=9.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimize(second, 5, lambda p, step: wave(p, step + 5))
    for a, b in zip(straight, parted, strict=True):
        assert torch.equal(a, b)


def test_adam_atan2_decays_every_parameter():
    """With a gradient of zero a weight shrinks by 1 - lr wd a step, biases included; without a gradient it stays."""
    matrix, bias, idle = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamATan2([matrix, bias, idle], lr=0.1, weight_decay=0.5)
    optimize(optimizer, 3, lambda p, _: None if p is idle else torch.zeros_like(p))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95**3))
    torch.testing.assert_close(bias.detach(), torch.full((2,), 0.95**3))
    assert torch.equal(idle, torch.ones(2))


def test_sign_sgd_changes_the_touched_rows_only():
    """A row that stands in several slots takes the sign of its summed gradient and decays once; other rows stay."""
    table = nn.Embedding(5, 2, sparse=True)
    with torch.no_grad():
        table.weight.fill_(1.0)
    optimizer = SparseSignSGD([table.weight], lr=0.1, weight_decay=0.5)
    slots = torch.tensor([3, 0, 3, 4])
    gradients = torch.tensor([[3.0, -1.0], [-5.0, 0.1], [-1.0, 4.0], [0.0, 1e-9]])
    (table(slots) * gradients).sum().backward()
    optimizer.step()
    expected = torch.tensor([[1.05, 0.85], [1, 1], [1, 1], [0.85, 0.85], [0.95, 0.85]])
    torch.testing.assert_close(table.weight.detach(), expected)
    assert torch.equal(table.weight[1:3], torch.ones(2, 2))
    optimizer.zero_grad()
    optimizer.step()
    torch.testing.assert_close(table.weight.detach(), expected)


def test_learning_rate_schedule():
    """It climbs by peak/warm-up a step from step 1 to the peak, falls by a cosine to end x peak at `total` and stays;
    with end = 1 it stays at the peak; without warm-up it starts there.
    """
    rates = [learning_rate(t, 2.0, 10, 30, 0.1) for t in (1, 5, 10, 20, 30, 31, 1000)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 1.1, 0.2, 0.2, 0.2], rel=1e-12)
    falling = [learning_rate(t, 2.0, 10, 30, 0.1) for t in range(10, 31)]
    assert falling == sorted(falling, reverse=True)
    assert {learning_rate(t, 2.0, 10, 30, 1.0) for t in range(10, 60)} == {2.0}
    assert learning_rate(1, 2.0, 0, 30, 0.0) == pytest.approx(2.0, rel=1e-2)
    assert learning_rate(5, 2.0, 10, 5, 0.0) == pytest.approx(1.0)


# ---------------------------------------------------------------- reasoner, average, carry, halting


def reasoner(**options):
    small = {"hidden_size": 16, "num_heads": 2, "H_cycles": 2, "L_cycles": 2, "registers": 2, "width_multiple": 8}
    return TRM(TRMConfig(**{**small, **options}), Toy.spec)


def test_moving_average():
    """The average starts at the initial weights and follows e <- d e + (1 - d) p; decay 0 is the weights themselves."""
    model = reasoner()
    average, copycat = MovingAverage(model), MovingAverage(model)
    expected = {name: p.detach().clone() for name, p in model.named_parameters() if name != "puzzles.weight"}
    assert all(torch.equal(average.reasoner.get_parameter(name), p) for name, p in expected.items())
    for step in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(wave(p, step))
        average.update(0.9)
        copycat.update(0.0)
        for name, value in expected.items():
            value.mul_(0.9).add_(model.get_parameter(name).detach(), alpha=0.1)
            torch.testing.assert_close(average.reasoner.get_parameter(name).detach(), value)
            torch.testing.assert_close(copycat.reasoner.get_parameter(name), model.get_parameter(name))
            assert average.reasoner.get_parameter(name) is not model.get_parameter(name)
    assert not average.reasoner.training
    assert model.training


def test_the_puzzle_table_is_shared_not_averaged():
    """The average and the original hold the same table, so that a change of it is seen by both at once."""
    model = reasoner()
    average = MovingAverage(model)
    assert average.reasoner.puzzle_table() is model.puzzle_table()
    with torch.no_grad():
        model.puzzle_table().fill_(3.0)
    average.update(0.9)
    assert (average.reasoner.puzzle_table() == 3.0).all()
    assert MovingAverage(reasoner(registers=0)).reasoner.puzzle_table() is None


def batch_of(value):
    tokens = torch.full((SLOTS, 6), value)
    return Batch(tokens, tokens + 1, tokens[:, 0] % 3)


def test_refill_replaces_fresh_rows_only():
    """Fresh slots get the incoming puzzle, the initial state, no steps and are busy; the others keep theirs; a NaN in
    what a fresh slot held does not survive; neither argument is changed.
    """
    model = reasoner()
    old = empty_carry(model, batch_of(1))
    assert old.halted.all()
    state = type(old.state)(*(torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in old.state))
    for tensor in state:
        tensor[1], tensor[3] = float("nan"), float("inf")
    fresh = torch.tensor([False, True, False, True])
    old = old._replace(state=state, steps=torch.tensor([5, 6, 7, 8]), halted=fresh)
    before = copy.deepcopy(old)
    new = refill(model, old, batch_of(4), fresh)
    for kept, was, start in zip(new.state, old.state, model.init_state(SLOTS, 6), strict=True):
        assert torch.equal(kept[[0, 2]], was[[0, 2]])
        assert torch.equal(kept[[1, 3]], start[[1, 3]])
    assert new.steps.tolist() == [5, 0, 7, 0]
    assert not new.halted.any()
    assert new.batch.inputs[:, 0].tolist() == [1, 4, 1, 4]
    assert new.batch.labels[:, 0].tolist() == [2, 5, 2, 5]
    assert new.batch.puzzle_ids.tolist() == [1, 1, 1, 1]
    assert (new.batch.inputs.dtype, new.steps.dtype, new.halted.dtype) == (torch.int64, torch.int64, torch.bool)
    torch.testing.assert_close((old.steps, old.batch), (before.steps, before.batch))
    torch.testing.assert_close(tuple(old.state), tuple(before.state), equal_nan=True)


def test_noise_is_normal_and_stays_in_its_rows():
    """Noise has the stated deviation; added it leaves the mean, in place of a state it leaves nothing of it; other rows
    and tensors of whole numbers keep their bits.
    """
    everything = torch.ones(4, 500, 3, dtype=torch.bool)
    state = LatticeState(
        possible=everything,
        base=everything,
        believed=torch.zeros(4, 500, 3),
        guesses=torch.zeros(4, dtype=torch.int64),
        z=torch.full((4, 500, 3, 8), 5.0),
        dice=torch.zeros(4),
        steps=torch.arange(4),
    )
    rows = torch.tensor([True, False, False, True])
    added = disturb(state, 0.5, generator("cpu", 1))
    put = disturb(state, 2.0, generator("cpu", 1), instead=rows)
    assert added.z.mean().item() == pytest.approx(5, abs=0.02)
    assert added.z.std().item() == pytest.approx(0.5, abs=0.02)
    assert put.z[rows].mean().item() == pytest.approx(0, abs=0.1)
    assert put.z[rows].std().item() == pytest.approx(2, abs=0.1)
    assert torch.equal(put.z[~rows], state.z[~rows])
    for new in (added, put):
        assert torch.equal(new.possible, state.possible)
        assert torch.equal(new.steps, state.steps)


def test_training_starts_from_random_states_and_adds_noise():
    """With `random_init` slots with a fresh puzzle start elsewhere than the reasoner would, each somewhere else; with
    `noise` every slot is pushed before a step.
    """
    quiet, random, noisy = (trainer(**options) for options in ({}, {"random_init": 1.0}, {"noise": 0.1}))
    usual, starts, pushed = (t._start_step().state.z for t in (quiet, random, noisy))
    assert torch.equal(usual[0], usual[1])
    assert not torch.equal(starts[0], starts[1])
    assert starts.std().item() == pytest.approx(1, abs=0.1)
    assert (pushed - usual).std().item() == pytest.approx(0.1, abs=0.01)
    for t in (random, noisy):
        t.carry = t.carry._replace(halted=torch.zeros_like(t.carry.halted), state=quiet.carry.state)
    assert torch.equal(random._start_step().state.z, quiet.carry.state.z)
    assert not torch.equal(noisy._start_step().state.z, quiet.carry.state.z)


def test_of_several_starts_the_one_nearest_to_right_learns():
    """With `starts` as many slots hold a puzzle, from states of their own. A step moves the weights as one of the best
    slot of each puzzle alone would; all the slots have thought on, and those of a puzzle halt together, with the best.
    """
    race = trainer(starts=2, random_init=1.0)
    race.carry = race._start_step()._replace(steps=torch.tensor([0, 0, 1, 1]))  # they end at different steps
    met, ended = set(), 0
    for _ in range(20):
        race.carry = slots = race._start_step()
        for column in (*slots.batch, slots.steps):
            assert torch.equal(column[0::2], column[1::2])
        assert not torch.equal(slots.state.z[0], slots.state.z[1])
        with torch.no_grad():
            state, prediction = race.reasoner(slots.state, slots.batch, race.gradient)
        losses = LOSSES["stablemax"](prediction.logits, slots.batch.labels).mean(-1).view(2, 2)
        best = torch.tensor([0, 2]) + losses.argmin(-1)
        met |= {(puzzle, row % 2) for puzzle, row in enumerate(best.tolist())}
        alone = trainer(slots=2)
        alone.load_state(*twin(race, best))
        race._start_step = lambda slots=slots: slots
        metrics = race.train_step()
        assert metrics == alone.train_step()
        for a, b in zip(race.reasoner.parameters(), alone.reasoner.parameters(), strict=True):
            assert torch.equal(a, b)
        del race._start_step
        torch.testing.assert_close(tuple(race.carry.state), tuple(state))
        assert torch.equal(race.carry.halted, alone.carry.halted.repeat_interleave(2))
        assert torch.equal(race.carry.steps, alone.carry.steps.repeat_interleave(2))
        ended += metrics.finished
    assert len(met) == 4
    assert ended > 4


def twin(race, rows):
    """All that `race` knows, with these rows alone of its slots."""
    tensors, numbers = everything(race)
    taken = {name: tensor[rows] for name, tensor in tensors.items() if name.startswith("carry.")}
    return {**tensors, **taken}, numbers


def test_starts_that_cannot_differ_are_refused():
    """Several starts of a puzzle need something that tells them apart, and slots that they fill evenly."""
    with pytest.raises(ConfigError, match="random_init"):
        TrainingConfig(starts=2)
    with pytest.raises(ConfigError, match="no multiple of the 5 starts"):
        TrainingConfig(starts=5, random_init=1.0)
    assert TrainingConfig(starts=4, noise=0.1).starts == 4


def test_progressive_training_meets_each_puzzle_once_at_a_random_depth():
    """With `progressive` every optimizer step takes fresh puzzles, which have had 0 to so many steps of the weights of
    today, without gradient: the states are those of that many plain steps from the start, each number equally often.
    """
    ahead = trainer(progressive=2)
    puzzles, depths = [], []
    for _ in range(60):
        ahead.carry = ahead._start_step()
        puzzles.append(ahead.carry.batch.inputs)
        state, found = ahead.reasoner.init_state(*ahead.carry.batch.inputs.shape), None
        for depth in range(3):
            if torch.allclose(state.z, ahead.carry.state.z, atol=1e-6):
                found = depth
            state, _ = ahead.reasoner(state, ahead.carry.batch, ahead.gradient)
        depths.append(found)
        assert (ahead.carry.steps == found).all()
        assert not ahead.carry.state.z.requires_grad
        ahead.carry = ahead._advance(ahead.carry, ahead.carry.state, ahead.reasoner.readout(ahead.carry.state))
        assert ahead.carry.halted.all()
    assert set(depths) == {0, 1, 2}
    assert min(map(depths.count, range(3))) >= 10
    assert not torch.equal(puzzles[0], puzzles[1])


def test_exploration_has_the_stated_probability_and_range():
    """A slot explores with the given probability, and then every minimum from 2 to max_steps is equally likely."""
    policy = Correctness(HaltingConfig(max_steps=16, exploration=0.1))
    draws = policy.explore(200_000, generator("cpu", 0))
    counts = torch.bincount(draws, minlength=17)
    assert draws.dtype is torch.int64
    assert counts.shape == (17,)
    assert counts[1] == 0
    assert (draws > 0).float().mean().item() == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 200_000))
    expected = 20_000 / 15
    assert (counts[2:] - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("max_steps", "exploration", "possible"), [(1, 1.0, {0}), (2, 1.0, {2}), (4, 0.0, {0}), (4, 1.0, {2, 3, 4})]
)
def test_exploration_at_its_edges(max_steps, exploration, possible):
    """Never with probability 0 or a single step, always with probability 1."""
    policy = Correctness(HaltingConfig(max_steps=max_steps, exploration=exploration))
    assert set(policy.explore(200, generator("cpu", 0)).tolist()) == possible


def prediction(halt_logits):
    logits = torch.tensor(halt_logits)
    nothing = torch.zeros_like(logits)
    return Prediction(torch.zeros(len(logits), 6, 7), logits, nothing, nothing, torch.zeros(len(logits), 6, 0))


def test_halting():
    """A slot halts when the model is satisfied or the steps are spent, but not before the minimum of exploration."""
    policy = Correctness(HaltingConfig(max_steps=4))
    cases = [  # halting logit, steps, minimum, halts
        (-5.0, 1, 0, False),
        (0.0, 1, 0, False),
        (0.1, 1, 0, True),
        (0.1, 1, 2, False),
        (0.1, 2, 2, True),
        (-5.0, 3, 0, False),
        (-5.0, 4, 0, True),
        (-5.0, 4, 4, True),
        (5.0, 3, 4, False),
    ]
    logits, steps, minimum, halts = zip(*cases, strict=True)
    assert policy.halt(prediction(logits), torch.tensor(steps), torch.tensor(minimum)).tolist() == list(halts)


def test_halting_loss_is_a_cross_entropy_summed():
    """-log sigmoid(q) of a right answer, -log(1 - sigmoid(q)) of a wrong one, summed over the slots."""
    loss = Correctness(HaltingConfig()).loss(judged(prediction([2.0, -1.0, 0.0]), torch.tensor([True, False, True])))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2), rel=1e-6)


# ---------------------------------------------------------------- stream


def numbered(count):
    """Examples whose first token is their number."""
    data = Toy(count).examples("train")
    for column in data:
        column.setflags(write=False)
    return data


def plain(task, data, seed=0, **options):
    return Stream(task, data, seed, augment=False, **options)


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (3, 3), (17, 4)])
def test_every_example_comes_once_an_epoch(count, world):
    """In each epoch the ranks together take every example once, none twice; the order differs from epoch to epoch and
    from seed to seed, and does not depend on how many are taken at a time.
    """
    task, data = Toy(count), numbered(count)
    streams = [plain(task, data, rank=rank, world=world) for rank in range(world)]
    shares = [len(range(rank, count, world)) for rank in range(world)]
    epochs = []
    for _ in range(4):
        taken = [stream.take(share).inputs[:, 0].tolist() for stream, share in zip(streams, shares, strict=True)]
        epochs.append(tuple(map(tuple, taken)))
        assert sorted(itertools.chain(*taken)) == list(range(count))
    assert len(set(epochs)) > 1
    one_by_one = plain(task, data, world=world)
    assert [one_by_one.take(1).inputs[0, 0] for _ in range(4 * shares[0])] == [n for epoch in epochs for n in epoch[0]]
    if count > 5:
        assert (
            plain(task, data, seed=1).take(count).inputs[:, 0].tolist()
            != plain(task, data).take(count).inputs[:, 0].tolist()
        )


@pytest.mark.parametrize("augment", [True, False])
def test_a_stream_continues_from_its_state(augment):
    """From a position that went through JSON, at a random place of a random epoch, come the same examples."""
    task, data = Toy(13), numbered(13)
    rng = np.random.default_rng(0)
    places = [0, 1, 12, 13, 14, 26, *rng.integers(0, 100, size=20).tolist()]
    for place in places:
        stream = Stream(task, data, 5, rank=0, world=1, augment=augment)
        for size in (place // 2, place - place // 2):
            stream.take(size)
        state = json.loads(json.dumps(stream.state_dict()))
        again = Stream(task, data, 5, rank=0, world=1, augment=augment)
        again.take(int(rng.integers(0, 30)))
        again.load_state_dict(state)
        for size in (1, 0, 20):
            for a, b in zip(stream.take(size), again.take(size), strict=True):
                assert np.array_equal(a, b)


def test_ranks_draw_different_augmentations():
    """Ranks at the same place of the same seed do not draw the same symmetries."""
    task = Toy(64)
    drawn = []
    for rank in range(2):
        rows = Stream(task, numbered(64), 0, rank=rank, world=2).take(32)
        bare = plain(task, numbered(64), rank=rank, world=2).take(32)
        drawn.append([next(n for n in range(6) if np.array_equal(np.roll(b, n), a))
                      for a, b in zip(rows.inputs, bare.inputs, strict=True)])  # fmt: skip
    assert drawn[0] != drawn[1]


def test_augmentation_is_used():
    """Each example taken is a symmetry of the one that stands there, labels along with inputs, drawn anew each time;
    the data stays as it was; with augment off the example itself is taken.
    """
    task, data = Toy(13), numbered(13)
    augmented, bare = Stream(task, data, 0), plain(task, data)
    turns = []
    for _ in range(3):
        rows, originals = augmented.take(13), bare.take(13)
        assert np.array_equal(rows.puzzle_ids, originals.puzzle_ids)
        for i in range(13):
            turn = next(n for n in range(6) if np.array_equal(np.roll(originals.inputs[i], n), rows.inputs[i]))
            assert np.array_equal(np.roll(originals.labels[i], -turn), rows.labels[i])
            turns.append(turn)
    assert set(turns) == {1, 2, 3, 4, 5}
    for column, fresh in zip(data, Toy(13).examples("train"), strict=True):
        assert np.array_equal(column, fresh)


def test_too_few_examples_are_refused():
    """Fewer examples than processes raise DataError."""
    with pytest.raises(DataError, match="2 training examples are too few for 3 processes"):
        Stream(Toy(2), numbered(2), 0, world=3)


# ---------------------------------------------------------------- trainer


def trainer(optimizer="adam-atan2", dtype=torch.float32, seed=0, count=20, slots=SLOTS, **options):
    task = Toy(count)
    data = task.examples("train")
    data = Examples(data.inputs % 7, data.labels % 7, data.puzzle_ids)
    config = TrainingConfig(
        steps=100, batch_size=slots, optimizer=optimizer, lr=3e-3, warmup_steps=5, ema=0.8, seed=seed, **options
    )
    model = reasoner()
    model.dtype = dtype
    halting = Correctness(HaltingConfig(max_steps=3, exploration=0.5))
    return Trainer(
        model, LastCycle(), halting, Stream(task, data, seed, augment=config.augment), config, Accelerator(cpu=True)
    )


def everything(of):
    """All that a trainer knows, as tensors by name and as numbers."""
    tensors, numbers = of.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(numbers)


def assert_same(a, b):
    (tensors, numbers), (others, other_numbers) = a, b
    assert tensors.keys() == others.keys()
    assert numbers == other_numbers
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("optimizer", ["adam-atan2", "adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "noise",
    [{}, {"random_init": 1.0, "noise": 0.1}, {"random_init": 1.0, "starts": 2}],
    ids=["quiet", "noise", "starts"],
)
def test_a_run_continues_bit_for_bit(optimizer, dtype, noise, tmp_path):
    """Saved to a file after seven steps and loaded into a new trainer, a run takes the same next ten: metrics, weights,
    moments, average, table, slots, position in the data and random numbers.
    """
    straight = trainer(optimizer, dtype, **noise)
    for _ in range(7):
        straight.train_step()
    write_tensors(tmp_path / "state.safetensors", *straight.state())
    resumed = trainer(optimizer, dtype, seed=9, **noise)
    for _ in range(2):
        resumed.train_step()
    resumed.stream.seed = straight.stream.seed  # the seed of the data belongs to the config, not to the position
    resumed.load_state(*read_tensors(tmp_path / "state.safetensors"))
    assert_same(everything(straight), everything(resumed))
    for _ in range(10):
        assert straight.train_step() == resumed.train_step()
        assert_same(everything(straight), everything(resumed))
    assert resumed.ema.reasoner.puzzle_table() is resumed.reasoner.puzzle_table()


def test_every_part_of_the_state_is_needed():
    """With any one kind of thing left as it was in a new trainer, the continued run differs."""
    straight = trainer()
    for _ in range(7):
        straight.train_step()
    tensors, numbers = everything(straight)
    later = [straight.train_step() for _ in range(6)] and everything(straight)
    fresh_tensors, fresh_numbers = everything(trainer(seed=1))
    for part in ("model.", "ema.", "optimizer.", "carry.state", "carry.steps", "carry.batch", "rng"):
        resumed = trainer()
        resumed.train_step()
        spoiled = {n: fresh_tensors[n] if n.startswith(part) and n in fresh_tensors else t for n, t in tensors.items()}
        if part == "optimizer.":
            spoiled = {n: torch.zeros_like(t) if n.startswith(part) else t for n, t in tensors.items()}
        resumed.load_state(spoiled, numbers)
        for _ in range(6):
            resumed.train_step()
        with pytest.raises(AssertionError):
            assert_same(everything(resumed), later)
    for part in ("step", "stream"):
        resumed = trainer()
        resumed.load_state(tensors, {**numbers, part: fresh_numbers[part]})
        for _ in range(6):
            resumed.train_step()
        with pytest.raises(AssertionError):
            assert_same(everything(resumed), later)


def test_a_late_average_starts_from_the_weights_of_its_step():
    """Until `ema_from` the average is the weights themselves; from then on it trails them."""
    late = trainer(ema_from=2)
    name = next(name for name, p in late.reasoner.named_parameters() if p is not late.reasoner.puzzle_table())
    average, weights = late.ema.reasoner.get_parameter(name), late.reasoner.get_parameter(name)
    for _ in range(2):
        late.train_step()
        assert torch.equal(average, weights)
    before = weights.detach().clone()
    late.train_step()
    torch.testing.assert_close(average, 0.8 * before + 0.2 * weights)
    assert not torch.equal(average, weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_touches_nothing(value):
    """TrainingError, in one line that names the step, leaves weights, moments, average and table as they were, and no
    gradient behind; the trainer can go on from its last good state.
    """
    of = trainer()
    for _ in range(4):
        of.train_step()
    good = everything(of)
    with torch.no_grad():
        of.carry.state.z[of.carry.halted.logical_not()] = value
        assert not of.carry.halted.all()
    with pytest.raises(TrainingError, match="at step 5") as caught:
        of.train_step()
    assert "\n" not in str(caught.value)
    tensors, numbers = everything(of)
    assert numbers["step"] == 4
    for name, tensor in tensors.items():
        if name.startswith(("model.", "ema.", "optimizer.")):
            assert torch.equal(tensor, good[0][name])
    assert all(p.grad is None or not p.grad.to_dense().any() for p in of.reasoner.parameters())
    of.load_state(*good)
    straight = trainer()
    for _ in range(4):
        straight.train_step()
    for _ in range(3):
        assert of.train_step() == straight.train_step()


def test_metrics_count_the_slots_that_halted():
    """The numbers of a step are those that a count over its halted slots gives, and the loss is per slot."""
    of = trainer()
    seen = 0
    for _ in range(12):
        metrics = of.train_step()
        halted = of.carry.halted
        seen += metrics.finished
        assert metrics.finished == halted.sum()
        assert metrics.steps == of.carry.steps[halted].sum()
        assert 0 <= metrics.exact <= metrics.finished
        assert 0 <= metrics.halting_right <= metrics.finished
        assert 0 <= metrics.tokens <= metrics.finished
        assert metrics.loss == pytest.approx(metrics.answer_loss + 0.5 * metrics.halting_loss)
    assert seen > SLOTS


def test_training_learns():
    """A hundred steps on eight puzzles bring the loss of the answer below three quarters of where it began."""
    of = trainer(count=8, augment=False)
    losses = [of.train_step().answer_loss for _ in range(100)]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("core", ["attention", "mlp"])
def test_flops_are_two_for_each_multiply_add(core):
    """A step costs T (n + 1) times f and the heads; training adds twice what is differentiated, n + 1 times f and the
    heads.
    """
    D, layers, T, n, R, L, V, multiple = 16, 3, 2, 4, 2, 6, 7, 8
    model = reasoner(core=core, num_layers=layers, H_cycles=T, L_cycles=n, registers=R)
    S = R + L

    def swiglu(rows, size):
        width = math.ceil(round(4 * size * 2 / 3) / multiple) * multiple
        return rows * size * 2 * width + rows * width * size

    mixing = S * S * D + S * S * D if core == "attention" else 0  # scores, and the sum that they weigh
    linear = swiglu(S, D) + (S * D * 3 * D + S * D * D if core == "attention" else swiglu(D, S))
    heads = S * D * V + D * 2
    solving = T * (n + 1) * layers * (linear + mixing) + heads
    backward = 2 * ((n + 1) * layers * (linear + mixing) + heads)
    assert model.training
    assert count_flops(model, LastCycle(), Correctness(), L) == (2 * solving, 2 * (solving + backward))
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- options


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    count: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    kind: Literal["x", "y"] = "x"
    shape: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "b")
    limit: int | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(count=-3, rate=1e-300, name="ü", on=True, kind="y"),
        Options(shape=(), pair=(0, ""), limit=4, inner=Inner(width=9)),
        TrainingConfig(),
        TrainingConfig(lr=3e-3, optimizer="muon", compile="on"),
        TRMConfig(core="mlp", positions="fixed"),
        HaltingConfig(max_steps=3),
    ],
    ids=lambda options: type(options).__name__,
)  # fmt: skip
def test_options_survive_json(options):
    """What went to JSON and back is equal, types included."""
    again = from_json(type(options), json.loads(json.dumps(to_json(options))))
    assert again == options
    assert repr(again) == repr(options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config must be an object"),
        (None, "config must be an object"),
        ({"cuont": 1}, "unknown option 'cuont'"),
        ({"count": 1.5}, "config.count cannot be 1.5"),
        ({"count": True}, "config.count"),
        ({"count": "1"}, "config.count"),
        ({"count": None}, "config.count"),
        ({"rate": "fast"}, "config.rate"),
        ({"rate": float("nan")}, "config.rate"),
        ({"rate": float("inf")}, "config.rate"),
        ({"rate": False}, "config.rate"),
        ({"on": 1}, "config.on"),
        ({"kind": "z"}, "one of 'x', 'y'"),
        ({"kind": ["x"]}, "config.kind"),
        ({"shape": 3}, "config.shape"),
        ({"shape": [1, "2"]}, "config.shape"),
        ({"pair": [1]}, "config.pair"),
        ({"limit": "4"}, "config.limit"),
        ({"inner": {"widht": 3}}, "config.inner has an unknown option 'widht'"),
        ({"inner": {"width": "3"}}, "config.inner.width"),
        ({"inner": 3}, "config.inner must be an object"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, message):
    """Anything but the options and their types raises ConfigError, in one line that names the key."""
    with pytest.raises(ConfigError) as caught:
        from_json(Options, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_serve_as_floats():
    """JSON does not tell 1 from 1.0; an option that is a float comes back as one."""
    assert isinstance(from_json(Options, {"rate": 1}).rate, float)


QUANTITIES = [
    field.name
    for field in dataclasses.fields(TrainingConfig)
    if type(field.default) in {int, float} and field.name not in {"seed", "stop_at"}
]


@pytest.mark.parametrize("name", QUANTITIES)
def test_absurd_training_options_are_refused(name):
    """A negative or infinite quantity, or one that is no number, raises ConfigError that names the option."""
    default = getattr(TrainingConfig(), name)
    for value in [-1] if isinstance(default, int) else [-1.0, float("nan"), float("inf")]:
        with pytest.raises(ConfigError, match=name):
            TrainingConfig(**{name: value})
