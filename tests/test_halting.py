"""The halting policies one by one, against what their definitions say, worked out by hand."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from judging import judged
from loopwise.data.stream import Stream
from loopwise.errors import ConfigError
from loopwise.reasoners.base import Reasoner, ReasonerConfig, Recursion
from loopwise.reasoners.gradients import FullBPTT, LastCycle
from loopwise.reasoners.halting import (
    ACTConfig,
    AdaptiveComputationTime,
    Correctness,
    Fixed,
    HaltingConfig,
    QLearning,
    QLearningConfig,
)
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.tasks.sorting import Sorting, SortingConfig
from loopwise.training.config import TrainingConfig
from loopwise.training.trainer import Trainer
from loopwise.types import Batch, Prediction, TaskSpec

SLOTS = 4
TASK = Sorting(SortingConfig(n=4, values=5, train=40, validation=4, test=4))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def cross_entropy(logit, target):
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(1 - sigmoid(logit))


def values(halts, continues):
    """A prediction with the given values of halting and of going on, which ask for gradients."""
    columns = [torch.tensor(v, requires_grad=True) for v in (halts, continues)]
    return Prediction(torch.zeros(len(halts), 1, 2), *columns, torch.zeros(len(halts)), torch.zeros(len(halts), 1, 0))


def trainer(halting, gradient=None, **options):
    """The real trainer of a tiny TRM."""
    config = TRMConfig(hidden_size=8, num_heads=2, num_layers=1, H_cycles=1, L_cycles=1, registers=1, width_multiple=4)
    training = TrainingConfig(batch_size=SLOTS, lr=1e-3, warmup_steps=1, loss="softmax", **options)
    stream = Stream(TASK, TASK.examples("train"), 0, augment=False, shorten=False)
    return Trainer(TRM(config, TASK.spec), gradient or LastCycle(), halting, stream, training, Accelerator(cpu=True))


# ---------------------------------------------------------------- Q-learning

HALTS, CONTINUES = [1.5, -0.5, 0.25, -2.0], [0.5, 0.75, -1.0, 1.0]
NEXT_HALTS, NEXT_CONTINUES = [0.3, -1.2, -0.4, 2.0], [-0.7, 0.9, 1.1, 0.1]
CORRECT = [True, False, False, True]
STEPS = [1, 2, 4, 4]  # of at most four: the last two have none left


def lookahead(calls=None):
    """What the next step would say; `calls` collects what was handed out."""

    def following():
        prediction = values(NEXT_HALTS, NEXT_CONTINUES)
        if calls is not None:
            calls.append(prediction)
        return prediction

    return following


def q_loss(config, *, training_step=0, calls=None):
    """(the prediction, its loss)."""
    prediction = values(HALTS, CONTINUES)
    seen = judged(prediction, torch.tensor(CORRECT), steps=torch.tensor(STEPS), following=lookahead(calls),
                  training_step=training_step)  # fmt: skip
    return prediction, QLearning(config).loss(seen)


def target(row):
    """The better of the two values after the next step; at the last step, the value of halting."""
    best = NEXT_HALTS[row] if STEPS[row] >= 4 else max(NEXT_HALTS[row], NEXT_CONTINUES[row])
    return sigmoid(best)


def test_q_learning_scores_both_values():
    """The loss is the cross-entropy of the value of halting against being right and that of the value of going on
    against its target: the better of the two next values, or the next value of halting at the last step.
    """
    _, loss = q_loss(QLearningConfig(max_steps=4))
    expected = sum(cross_entropy(HALTS[i], float(CORRECT[i])) for i in range(4))
    expected += sum(cross_entropy(CONTINUES[i], target(i)) for i in range(4))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert [target(i) for i in range(4)] == [sigmoid(v) for v in (0.3, 0.9, -0.4, 2.0)]


def test_the_target_of_q_learning_gets_no_gradient():
    """The gradient of each value is its probability minus its target; what looks ahead gets none."""
    calls = []
    prediction, loss = q_loss(QLearningConfig(max_steps=4), calls=calls)
    loss.backward()
    assert prediction.halt_logits.grad.tolist() == pytest.approx(
        [sigmoid(HALTS[i]) - CORRECT[i] for i in range(4)], abs=1e-6
    )
    assert prediction.continue_logits.grad.tolist() == pytest.approx(
        [sigmoid(CONTINUES[i]) - target(i) for i in range(4)], abs=1e-6
    )
    assert len(calls) == 1
    assert calls[0].halt_logits.grad is None
    assert calls[0].continue_logits.grad is None


@pytest.mark.parametrize("every", [1, 2, 4])
def test_q_learning_looks_ahead_at_every_so_many_steps(every):
    """With target_every k the look-ahead is computed at the training steps 0, k, 2k, ...; at the others the loss is
    that of halting alone, and the value of going on gets no gradient.
    """
    alone = sum(cross_entropy(HALTS[i], float(CORRECT[i])) for i in range(4))
    looked = []
    for step in range(9):
        calls = []
        prediction, loss = q_loss(QLearningConfig(max_steps=4, target_every=every), training_step=step, calls=calls)
        loss.backward()
        looked += [step] * len(calls)
        assert (prediction.continue_logits.grad is not None) is bool(calls)
        if not calls:
            assert loss.item() == pytest.approx(alone, rel=1e-6)
    assert looked == list(range(0, 9, every))


def test_with_one_step_there_is_no_going_on():
    """With max_steps 1 the loss is that of halting alone, and nothing looks ahead."""
    calls = []
    prediction, loss = q_loss(QLearningConfig(max_steps=1), calls=calls)
    loss.backward()
    assert loss.item() == pytest.approx(sum(cross_entropy(HALTS[i], float(CORRECT[i])) for i in range(4)), rel=1e-6)
    assert prediction.continue_logits.grad is None
    assert not calls


def test_q_learning_halts_where_that_is_worth_more():
    """A slot is done where the value of halting is the greater, whatever its sign; not where the two are equal."""
    prediction = values([1.0, -2.0, -1.0, 0.5, 3.0], [2.0, -3.0, -1.0, 0.5, -3.0])
    assert QLearning().done(prediction).tolist() == [False, True, False, False, True]


def test_q_learning_looks_ahead_from_where_the_step_came_to():
    """In the trainer, what the policy sees ahead is the prediction of the next step of the same puzzles, computed
    without gradient, with the steps of each slot counted from one; its training steps count from zero.
    """
    halting = QLearning(QLearningConfig(max_steps=3, exploration=0.0, target_every=2))
    of, seen = trainer(halting), []
    score = halting.loss

    def spy(step):
        carry, ahead = of.carry, step.following()
        now = halting.step(of.reasoner, carry.state, carry.batch, of.gradient)
        then = halting.step(of.reasoner, now.state, carry.batch, of.gradient)
        assert not any(t.requires_grad for t in ahead)
        for a, b in zip(ahead, then.prediction, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(step.steps, carry.steps + 1)
        assert torch.equal(step.ponder, torch.ones(SLOTS))
        seen.append(step.training_step)
        return score(step)

    halting.loss = spy
    for _ in range(5):
        of.train_step()
    assert seen == [0, 1, 2, 3, 4]


def test_q_learning_in_the_trainer_pays_for_the_look_ahead_only_when_it_is_due():
    """With target_every 3, the trainer takes a second step of the reasoner at every third optimizer step."""
    of, calls, counts = trainer(QLearning(QLearningConfig(max_steps=3, target_every=3))), [], []
    of.reasoner.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(7):
        calls.clear()
        of.train_step()
        counts.append(len(calls))
    assert counts == [2, 1, 1, 2, 1, 1, 2]


# ---------------------------------------------------------------- fixed depth, correctness


def test_fixed_depth_never_halts_before_its_last_step():
    """However sure the model is, a slot is given up at max_steps and at no other step."""
    halting = Fixed(HaltingConfig(max_steps=5))
    sure = values([50.0] * 4, [-50.0] * 4)
    none = torch.zeros(4, dtype=torch.int64)
    halted = [halting.halt(sure, torch.full_like(none, step), none).tolist() for step in range(1, 6)]
    assert halted == [[False] * 4] * 4 + [[True] * 4]


def test_fixed_depth_in_the_trainer():
    """Every puzzle gets max_steps supervision steps, all slots in step, and the halting head learns all the same."""
    of = trainer(Fixed(HaltingConfig(max_steps=3, exploration=0.5)))
    with torch.no_grad():
        of.reasoner.halt.bias.fill_(9.0)
    assert [of.train_step().finished for _ in range(7)] == [0, 0, SLOTS, 0, 0, SLOTS, 0]
    bias = of.reasoner.halt.bias.tolist()
    assert bias[0] < 9.0


@pytest.mark.parametrize("policy", [Fixed, Correctness])
def test_the_halting_logit_learns_to_be_right(policy):
    """The loss is the cross-entropy of the halting logit against being right; its gradient is the error of the
    probability; the value of going on has no part in it and nothing looks ahead.
    """
    prediction, calls = values(HALTS, CONTINUES), []
    loss = policy().loss(judged(prediction, torch.tensor(CORRECT), following=lookahead(calls)))
    loss.backward()
    assert loss.item() == pytest.approx(sum(cross_entropy(HALTS[i], float(CORRECT[i])) for i in range(4)), rel=1e-6)
    assert prediction.halt_logits.grad.tolist() == pytest.approx(
        [sigmoid(HALTS[i]) - CORRECT[i] for i in range(4)], abs=1e-6
    )
    assert prediction.continue_logits.grad is None
    assert not calls


# ---------------------------------------------------------------- adaptive computation time


class ScriptState(NamedTuple):
    count: Tensor  # [B], updates so far
    thought: Tensor  # [B], which grows by a factor in each update


class Scripted(Reasoner[ReasonerConfig]):
    """Says after the n-th update what stands in the n-th column of a script: halting probabilities [B, n].

    Its thought is factor^n; its answer [B, 1, 2] is (thought, n).
    """

    name = "scripted"
    Config = ReasonerConfig

    def __init__(self, chances, factor=2.0):
        super().__init__(ReasonerConfig(), TaskSpec(vocab_size=2, shape=(1,), symbols=("", "a")))
        self.chances = nn.Parameter(torch.tensor(chances))
        self.factor = nn.Parameter(torch.tensor(factor))
        self.updates = 0

    def encode(self, batch):
        return torch.zeros(len(batch.inputs), 1, 1)

    def init_state(self, batch_size, length):
        return ScriptState(torch.zeros(batch_size), torch.ones(batch_size))

    def recursion(self, x):
        def update(state):
            self.updates += 1
            return ScriptState(state.count + 1, state.thought * self.factor)

        return Recursion((update,), 1)

    def readout(self, state):
        column = state.count.long().view(-1, 1) - 1
        chance = self.chances.gather(1, column).squeeze(1)
        answer = torch.stack([state.thought, state.count], dim=1).unsqueeze(1)
        return Prediction(answer, torch.logit(chance), -state.count, torch.zeros_like(chance), answer[..., :0])

    def accepts(self, length):
        return True


def ponder(reasoner, **options):
    """The outcome of a ponder from the start."""
    rows = len(reasoner.chances)
    batch = Batch(*(torch.zeros(rows, 1, dtype=torch.int64) for _ in range(2)), torch.zeros(rows, dtype=torch.int64))
    policy = AdaptiveComputationTime(ACTConfig(**options))
    return policy.step(reasoner, reasoner.init_state(rows, 1), batch, FullBPTT())


# Halting probabilities after each of at most four steps, and by hand: the weights, of which the last is the remainder.
CHANCES = [[0.995, 0.5, 0.5, 0.5], [0.3, 0.8, 0.5, 0.5], [0.2, 0.3, 0.6, 0.5], [0.1, 0.1, 0.1, 0.1]]
WEIGHTS = [[1.0], [0.3, 0.7], [0.2, 0.3, 0.5], [0.1, 0.1, 0.1, 0.7]]
COSTS = [1 + 1.0, 2 + 0.7, 3 + 0.5, 4 + 0.7]
TOTALS = [0.995, 1.1, 1.1, 0.4]  # h_1 + ... + h_N


def mean_of(function, row):
    """The mean over the steps of a row, weighted, of what a function says of the number of the step."""
    return sum(weight * function(n) for n, weight in enumerate(WEIGHTS[row], start=1))


def test_a_ponder_by_hand():
    """Four rows that halt after one, two, three steps and not at all: the answers and the states are means with the
    halting probabilities and the remainder as weights, which add up to one, and the cost is N + R.
    """
    advance = ponder(Scripted(CHANCES), max_ponder=4)
    assert [sum(weights) for weights in WEIGHTS] == pytest.approx([1.0] * 4)
    assert advance.ponder.tolist() == pytest.approx(COSTS)
    thoughts, counts = ([mean_of(f, row) for row in range(4)] for f in (lambda n: 2.0**n, float))
    assert advance.prediction.logits.squeeze(1).tolist() == [
        pytest.approx(pair) for pair in zip(thoughts, counts, strict=True)
    ]
    assert advance.state.thought.tolist() == pytest.approx(thoughts)
    assert advance.state.count.tolist() == pytest.approx(counts)
    assert advance.prediction.continue_logits.tolist() == pytest.approx([-count for count in counts])
    assert not any(tensor.requires_grad for tensor in advance.state)


def test_the_belief_after_a_ponder():
    """The halting logit that comes out is that of h_1 + ... + h_N, kept finite: sure where the model ended by itself,
    unsure where it was cut off.
    """
    belief = ponder(Scripted(CHANCES), max_ponder=4).prediction.halt_logits
    totals = [min(total, 1 - 1e-6) for total in TOTALS]
    assert torch.sigmoid(belief).tolist() == pytest.approx(totals, rel=1e-5)
    assert torch.isfinite(belief).all()
    assert (belief > 4).tolist() == [True, True, True, False]


def test_the_gradient_of_the_ponder_cost():
    """The cost falls by one for each unit of a halting probability before the last, which have pushed the remainder
    down; the last one, and those that never came, get nothing.
    """
    reasoner = Scripted(CHANCES)
    ponder(reasoner, max_ponder=4).ponder.sum().backward()
    expected = [[-1.0 if n < len(weights) - 1 else 0.0 for n in range(4)] for weights in WEIGHTS]
    assert reasoner.chances.grad.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_the_loss_of_a_ponder_is_its_cost():
    """The halting loss is the sum of the costs, whether the answers are right or not, and nothing looks ahead."""
    advance, calls = ponder(Scripted(CHANCES), max_ponder=4), []
    for right in (True, False):
        seen = judged(advance.prediction, torch.tensor([right] * 4), ponder=advance.ponder, following=lookahead(calls))
        assert AdaptiveComputationTime().loss(seen).item() == pytest.approx(sum(COSTS))
    assert not calls


def test_the_gradient_of_an_answer_flows_through_all_steps():
    """The mean answer of each row has the gradient of each step's thought, which went through all steps before it, and
    of each weight: with thought a^n, sum over n of w_n n a^(n-1), and (thought_n - thought_N) for h_n.
    """
    reasoner = Scripted(CHANCES, factor=1.5)
    ponder(reasoner, max_ponder=4).prediction.logits[:, 0, 0].sum().backward()
    assert reasoner.factor.grad.item() == pytest.approx(
        sum(mean_of(lambda n: n * 1.5 ** (n - 1), row) for row in range(4))
    )
    expected = [[1.5**n - 1.5 ** len(weights) if n < len(weights) else 0.0 for n in range(1, 5)] for weights in WEIGHTS]
    assert reasoner.chances.grad.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_ponder_is_cut_off_at_its_limit(most):
    """With max_ponder M nobody ponders longer: the M-th step has all the weight that is left, and the cost is M + R."""
    advance = ponder(Scripted(CHANCES), max_ponder=most)
    first = CHANCES[3][: most - 1]
    assert advance.ponder[3].item() == pytest.approx(most + 1 - sum(first))
    weights = [*first, 1 - sum(first)]
    assert advance.state.count[3].item() == pytest.approx(sum(w * n for n, w in enumerate(weights, start=1)))
    assert (advance.ponder <= most + 1).all()


@pytest.mark.parametrize(("chance", "epsilon", "steps"), [(0.985, 0.01, 2), (0.985, 0.02, 1), (0.6, 0.5, 1)])
def test_epsilon_is_what_may_be_missing(chance, epsilon, steps):
    """A ponder ends at the first step at which the probabilities have come to 1 - epsilon."""
    reasoner = Scripted([[chance, 0.9, 0.9]])
    advance = ponder(reasoner, max_ponder=3, epsilon=epsilon)
    assert reasoner.updates == steps
    assert advance.ponder.item() == pytest.approx(1 + 1.0 if steps == 1 else 2 + (1 - chance))


def assert_same(one, other):
    for a, b in zip(*((*of.state, *of.prediction, of.ponder) for of in (one, other)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_an_early_end_changes_nothing(rows, monkeypatch):
    """The ponder ends when the last row has halted, and its outcome is, bit for bit, that of running on."""
    reasoner = Scripted(CHANCES[:rows])
    early = ponder(reasoner, max_ponder=4)
    assert reasoner.updates == rows
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # in a trace nothing ends early
    assert_same(ponder(reasoner, max_ponder=4), early)
    assert reasoner.updates == rows + 4


def test_rows_of_a_real_reasoner_ponder_as_long_as_each_needs(monkeypatch):
    """With a TRM whose rows halt at different steps, the early end changes no bit either, nor does what stands in the
    other rows and how long they take.
    """
    config = TRMConfig(hidden_size=16, num_heads=2, num_layers=1, H_cycles=1, L_cycles=1, registers=1, width_multiple=4)
    reasoner = TRM(config, TASK.spec)
    with torch.no_grad():
        reasoner.halt.weight.copy_(0.2 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
        reasoner.halt.bias.fill_(-3.0)
    rows = torch.as_tensor(TASK.examples("train").inputs[:16], dtype=torch.int64)
    batch = Batch(rows, rows, torch.zeros(16, dtype=torch.int64))
    state = reasoner.init_state(16, TASK.spec.length)
    policy = AdaptiveComputationTime(ACTConfig(max_ponder=16))
    early = policy.step(reasoner, state, batch, LastCycle())
    lengths = early.ponder.floor()
    assert len(set(lengths.tolist())) > 2
    assert lengths.max() < 16
    short = lengths.argmin()
    alike = batch._replace(inputs=rows[short].expand_as(rows))
    together = policy.step(reasoner, state, alike, LastCycle())
    assert together.ponder.max() < early.ponder.max()
    assert torch.equal(together.ponder[short], early.ponder[short])
    assert torch.equal(together.prediction.logits[short], early.prediction.logits[short])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_same(policy.step(reasoner, state, batch, LastCycle()), early)


@pytest.mark.parametrize("max_steps", [1, 4])
def test_every_ponder_of_training_has_a_fresh_puzzle(max_steps):
    """In the trainer every slot takes a fresh puzzle and a fresh state at each optimizer step, for a supervision step
    is a whole ponder; the loss has the mean cost in it at the weight tau, and the halting head learns from it.
    """
    halting = AdaptiveComputationTime(ACTConfig(max_steps=max_steps, max_ponder=3, weight=0.25, exploration=0.0))
    of, met = trainer(halting, FullBPTT()), []
    bias = of.reasoner.halt.bias[0].item()
    for _ in range(10):
        metrics = of.train_step()
        assert metrics.finished == SLOTS
        assert metrics.steps == SLOTS
        assert metrics.loss == pytest.approx(metrics.answer_loss + 0.25 * metrics.halting_loss, rel=1e-6)
        assert 2 <= metrics.halting_loss <= 4
        met += [tuple(row) for row in of.carry.batch.inputs.tolist()]
    wanted = [tuple(row) for row in TASK.examples("train").inputs.tolist()]
    assert sorted(met) == sorted(wanted)  # forty puzzles, ten steps of four slots: each was met once
    assert of.reasoner.halt.bias[0].item() != bias


def test_the_time_penalty_shortens_the_ponder():
    """With a heavy penalty the model learns in the trainer to ponder less; the cost falls towards the least, 2."""
    halting = AdaptiveComputationTime(ACTConfig(max_ponder=4, weight=1.0))
    of = trainer(halting, FullBPTT())
    with torch.no_grad():
        of.reasoner.halt.bias.fill_(-2.0)
    for optimizer in of.optimizers:
        for group in optimizer.param_groups:
            group["peak"] = 0.05
    costs = [of.train_step().halting_loss for _ in range(60)]
    assert costs[0] > 4
    assert np.mean(costs[-5:]) < 2.5


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (HaltingConfig, {"max_steps": 0}),
        (HaltingConfig, {"weight": -0.1}),
        (HaltingConfig, {"exploration": 1.1}),
        (QLearningConfig, {"target_every": 0}),
        (QLearningConfig, {"target_every": -4}),
        (QLearningConfig, {"target_every": 1.5}),
        (QLearningConfig, {"max_steps": 0}),
        (ACTConfig, {"max_ponder": 0}),
        (ACTConfig, {"max_ponder": -1}),
        (ACTConfig, {"max_ponder": 2.5}),
        (ACTConfig, {"epsilon": 0.0}),
        (ACTConfig, {"epsilon": 1.0}),
        (ACTConfig, {"epsilon": -0.01}),
        (ACTConfig, {"epsilon": float("nan")}),
        (ACTConfig, {"weight": -0.01}),
        (ACTConfig, {"max_steps": 0}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(f"{k}={x}" for k, x in v.items()),
)
def test_absurd_options_are_refused(config, options):
    """ConfigError, in one line that names the option."""
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        config(**options)
    assert "\n" not in str(caught.value)
