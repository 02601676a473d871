"""The library's HRM against its slow literal twin: predictions, states, gradients and training with Q-learning.

As for TRM, the forward pass is compared bit for bit, and gradients and training twice: with the twin as it stands, up
to rounding, and bit for bit with a twin whose few differently written operations are those of the library.
"""

import copy

import hrm
import pytest
import torch
import torch.nn.functional as F
import trm
from accelerate import Accelerator
from test_trm_equality import (
    REWRITTEN,
    SLOTS,
    SPEC,
    Shapes,
    TwinRows,
    assert_identical,
    assert_same_slots,
    random_batch,
    twin_gradients,
)

from judging import judged
from loopwise.data.stream import Stream
from loopwise.reasoners.gradients import FullBPTT, LastCycle, LastUpdates, LastUpdatesConfig
from loopwise.reasoners.halting import QLearning, QLearningConfig
from loopwise.reasoners.hrm import HRM, HRMConfig, HRMState
from loopwise.runtime import generator
from loopwise.tasks.base import TaskConfig
from loopwise.training.config import TrainingConfig
from loopwise.training.losses import answer_loss
from loopwise.training.trainer import Trainer
from loopwise.types import Prediction, TaskSpec

POSITIONS = {"rotary": "rope", "learned": "learned"}
CYCLES = ((2, 2), (3, 1), (1, 3), (1, 1))

every_position = pytest.mark.parametrize("positions", POSITIONS)
every_cycles = pytest.mark.parametrize(("H_cycles", "L_cycles"), CYCLES)


def twin_name(name: str) -> str:
    """The twin's name of a tensor of the library's HRM."""
    names = {
        "tokens": "embed_tokens.embedding_weight",
        "puzzles.weight": "puzzle_emb.weights",
        "places": "embed_pos.embedding_weight",
        "H_init": "H_init",
        "L_init": "L_init",
        "head.weight": "lm_head.weight",
        "halt.weight": "q_head.weight",
        "halt.bias": "q_head.bias",
    }
    if name in names:
        return names[name]
    parts = {"attention": "self_attn", "mlp": "mlp"}
    layers = {"qkv": "qkv_proj", "out": "o_proj", "gate_up": "gate_up_proj", "down": "down_proj"}
    network, _, block, part, layer, leaf = name.split(".")  # H.blocks.0.attention.qkv.weight
    return f"{network}_level.layers.{block}.{parts[part]}.{layers[layer]}.{leaf}"


def pair(positions, H_cycles=2, L_cycles=2, dtype=torch.float32, registers=1):
    """A library model and a twin with the same weights, none of them zero."""
    config = HRMConfig(
        hidden_size=32, num_heads=4, H_layers=1, L_layers=2, H_cycles=H_cycles, L_cycles=L_cycles, positions=positions,
        registers=registers,
    )  # fmt: skip
    model = HRM(config, SPEC, dtype)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.puzzles.weight.normal_(0, 32**-0.5, generator=rng)
        model.halt.weight.normal_(0, 32**-0.5, generator=rng)
        model.halt.bias.copy_(torch.tensor([0.5, 0.25]))
    twin = hrm.HRMTwin(
        SPEC.vocab_size, SPEC.length, SPEC.num_puzzle_ids, hidden_size=32, num_heads=4, H_layers=1, L_layers=2,
        H_cycles=H_cycles, L_cycles=L_cycles, puzzle_emb_len=registers, positions=POSITIONS[positions],
        forward_dtype=dtype,
    )  # fmt: skip
    twin.load_state_dict({twin_name(name): tensor.clone() for name, tensor in model.state_dict().items()})
    return model, twin


def random_state(model):
    """A state of the kind that some earlier step left behind."""
    rng = torch.Generator().manual_seed(2)
    shape = model.init_state(SLOTS, SPEC.length).z_H.shape
    return HRMState(*(torch.randn(shape, generator=rng).to(model.dtype) for _ in range(2)))


def backward(model, twin, policy, steps=1):
    """Gradients of the last of some supervision steps of both, each under its own loss of answer and Q-learning.

    The slots stand at different steps, some of them at their last.
    """
    batch, state = random_batch(), random_state(model)
    taken = torch.tensor([1, 2, 3, 4, 4, 1])
    theirs = tuple(state)
    for _ in range(steps - 1):
        state, _ = model(state, batch, policy)
        theirs, *_ = twin(theirs, batch.inputs, batch.puzzle_ids)
    after, prediction = model(state, batch, policy)
    answer, _, correct = answer_loss("stablemax", prediction.logits, batch.labels)

    @torch.no_grad()
    def following():
        return model(after, batch, policy)[1]

    halting = QLearning(QLearningConfig(max_steps=4))
    (answer + 0.5 * halting.loss(judged(prediction, correct, steps=taken, following=following))).backward()

    theirs, logits, q_halt, q_continue = twin(theirs, batch.inputs, batch.puzzle_ids)
    rows = twin.puzzle_emb.local_rows
    with torch.no_grad():
        _, _, next_halt, next_continue = twin(theirs, batch.inputs, batch.puzzle_ids)
    twin.puzzle_emb.local_rows = rows
    losses = trm.halt_loss(q_halt, trm.sequence_correct(logits, batch.labels))
    losses = losses + hrm.continue_loss(q_continue, hrm.continue_target(next_halt, next_continue, taken, 4))
    # `total_loss` is TRM's; HRM's is written out, and so sees what a test rewrites.
    (trm.stablemax_cross_entropy(logits, batch.labels) + 0.5 * losses).backward()
    ours = {
        twin_name(name): torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
        for name, p in model.named_parameters()
    }
    return ours, twin_gradients(twin)


def continue_loss(q_continue, target):
    """torch's own binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(q_continue, target, reduction="sum")


@pytest.fixture
def twin_rounds_alike(monkeypatch):
    """The twin, for one test, with its few operations that round differently written as in the library."""
    for function in REWRITTEN:
        monkeypatch.setattr(trm, function.__name__, function)
    monkeypatch.setattr(hrm, "continue_loss", continue_loss)


def test_the_rewritten_continue_loss_is_the_same():
    """The loss of the continue value that the bitwise tests rewrite equals the twin's, in float64."""
    rng = torch.Generator().manual_seed(0)
    q, target = torch.randn(50, dtype=torch.float64, generator=rng), torch.rand(50, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(continue_loss(9 * q, target), hrm.continue_loss(9 * q, target), rtol=1e-12, atol=0)


# ---------------------------------------------------------------- the twin itself


def test_twin_has_the_published_numbers_of_parameters():
    """The twin's default sizes have the published number of trainable parameters on Sudoku, Maze and ARC."""
    for vocab_size, seq_len, count in ((11, 81, 27_275_266), (6, 900, 27_270_146), (12, 900, 27_276_290)):
        with torch.device("meta"):
            twin = hrm.HRMTwin(vocab_size, seq_len, 1)
        assert sum(p.numel() for p in twin.parameters()) == count


def test_twin_has_the_names_and_shapes_of_the_published_checkpoints():
    """Names and shapes of the twin's state are the published layout, with H_level beside L_level."""
    _, twin = pair("learned")
    d, w = 32, 256
    expected = {
        "H_init": (d,), "L_init": (d,), "embed_tokens.embedding_weight": (11, d), "lm_head.weight": (11, d),
        "q_head.weight": (2, d), "q_head.bias": (2,), "puzzle_emb.weights": (5, d),
        "embed_pos.embedding_weight": (10, d),
    }  # fmt: skip
    for layer in ("H_level.layers.0", "L_level.layers.0", "L_level.layers.1"):
        expected[f"{layer}.self_attn.qkv_proj.weight"] = (3 * d, d)
        expected[f"{layer}.self_attn.o_proj.weight"] = (d, d)
        expected[f"{layer}.mlp.gate_up_proj.weight"] = (2 * w, d)
        expected[f"{layer}.mlp.down_proj.weight"] = (d, w)
    assert {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()} == expected


def test_twin_calls_its_networks_in_the_published_order():
    """With two cycles of two, a step calls L, L, H, L without gradient, then L and H with it."""
    _, twin = pair("rotary")
    calls = []
    twin.L_level.register_forward_hook(lambda *_: calls.append(("L", torch.is_grad_enabled())))
    twin.H_level.register_forward_hook(lambda *_: calls.append(("H", torch.is_grad_enabled())))
    batch = random_batch()
    twin(twin.initial_state(SLOTS), batch.inputs, batch.puzzle_ids)
    assert calls == [*((name, False) for name in "LLHL"), ("L", True), ("H", True)]


def test_continue_target_by_hand():
    """The target is the sigmoid of the better next value, but of the next halt value where the step was the last."""
    target = hrm.continue_target(torch.tensor([0.0, 1.0, -1.0, -1.0]), torch.tensor([2.0, -2.0, 3.0, 3.0]),
                                 torch.tensor([1, 3, 4, 5]), 4)  # fmt: skip
    assert target.tolist() == pytest.approx([0.880797, 0.731059, 0.268941, 0.268941], abs=1e-6)


# ---------------------------------------------------------------- one step, and several in a row


@every_position
@every_cycles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("registers", [1, 3])
def test_forward_equals_the_twin(positions, H_cycles, L_cycles, dtype, registers):
    """Logits, both Q values and both states of three steps in a row are the twin's, bit for bit."""
    model, twin = pair(positions, H_cycles, L_cycles, dtype, registers)
    batch = random_batch()
    ours, theirs = model.init_state(SLOTS, SPEC.length), twin.initial_state(SLOTS)
    for _ in range(3):
        ours, prediction = model(ours, batch, LastUpdates())
        theirs, *outputs = twin(theirs, batch.inputs, batch.puzzle_ids)
        for a, b in zip((*prediction[:3], *ours), (*outputs, *theirs), strict=True):
            assert a.dtype is b.dtype
            assert torch.equal(a, b)


@every_position
@every_cycles
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.usefixtures("twin_rounds_alike")
def test_every_gradient_equals_the_twin_bit_for_bit(positions, H_cycles, L_cycles, steps):
    """Each gradient of the loss of answer and Q-learning, down to the rows of the puzzle table, in the first step and
    in the third, is that of the twin with rewritten operations.
    """
    ours, theirs = backward(*pair(positions, H_cycles, L_cycles), LastUpdates(), steps)
    assert_identical(ours, theirs)
    assert all(tensor.abs().max() > 0.005 for tensor in ours.values())


@every_position
@every_cycles
def test_every_gradient_equals_the_twin(positions, H_cycles, L_cycles):
    """Each gradient is that of the twin as it stands, up to 2e-6 of the largest value of the tensor."""
    ours, theirs = backward(*pair(positions, H_cycles, L_cycles), LastUpdates())
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize(
    "policy",
    [LastCycle(), FullBPTT(), LastUpdates(LastUpdatesConfig(k=1)), LastUpdates(LastUpdatesConfig(k=3))],
    ids=["last-cycle", "full-bptt", "k=1", "k=3"],
)
@every_position
@pytest.mark.usefixtures("twin_rounds_alike")
def test_a_wrong_gradient_policy_is_noticed(positions, policy):
    """Gradients through the last cycle, all updates, one update or three differ from the twin's by a tenth and more of
    the largest value of some tensor, although the predictions are the same.
    """
    model, twin = pair(positions)
    batch, state = random_batch(), random_state(model)
    _, prediction = model(state, batch, policy)
    assert torch.equal(prediction.logits, twin(tuple(state), batch.inputs, batch.puzzle_ids)[1])
    ours, theirs = backward(model, twin, policy)
    off = {name: ((ours[name] - g).abs().max() / g.abs().max()).item() for name, g in theirs.items()}
    assert max(off.values()) > 0.1


# ---------------------------------------------------------------- twenty steps of training


class Watched(QLearning):
    """Q-learning that keeps what it sees when it looks ahead."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = []

    def loss(self, judged):
        """The loss of Q-learning."""
        self.seen.clear()

        def following():
            self.seen.append(judged.following())
            return self.seen[-1]

        return super().loss(judged._replace(following=following))


def train_both(positions, target_every):
    """After each of 20 optimizer steps: (trainer, twin trainer, metrics, what was seen ahead); data, weights and
    exploration are equal.
    """
    model, twin = pair(positions)
    task = Shapes(TaskConfig())
    config = TrainingConfig(
        steps=20, batch_size=SLOTS, lr=2**-10, warmup_steps=8, lr_end=0.25, weight_decay=0.5, puzzle_lr=2**-7,
        puzzle_weight_decay=0.25, ema=0.9, seed=5,
    )  # fmt: skip
    halting = Watched(QLearningConfig(max_steps=4, exploration=0.4, target_every=target_every))
    stream = Stream(task, task.examples("train"), config.seed)
    ours = Trainer(model, LastUpdates(), halting, stream, config, Accelerator(cpu=True))
    theirs = hrm.HRMTwinTrainer(
        twin, SLOTS, target_every=target_every, lr=2**-10, puzzle_lr=2**-7, weight_decay=0.5, puzzle_weight_decay=0.25,
        warmup=8, total_steps=20, min_ratio=0.25, ema_decay=0.9, max_steps=4, lm_loss=trm.stablemax_cross_entropy,
    )  # fmt: skip
    rows = TwinRows(Stream(task, task.examples("train"), config.seed), theirs)
    draws = generator("cpu", config.seed, 0)
    initial = copy.deepcopy(twin.state_dict())
    lengths, early = set(), 0
    for _ in range(20):
        metrics = ours.train_step()
        theirs.train_step(rows, halting.explore(SLOTS, draws))
        finished = ours.carry.steps[ours.carry.halted].tolist()
        lengths.update(finished)
        early += sum(steps < 4 for steps in finished)
        yield ours, theirs, metrics, list(halting.seen)
    # What would make the comparison empty: nothing moves, or all puzzles come and go together.
    assert len(lengths) >= 3
    assert early >= 5
    moved = {name: (tensor - initial[name]).abs().max().item() for name, tensor in twin.state_dict().items()}
    assert min(moved[name] for name in moved if not name.endswith("_init")) > 1e-3


def trained_tensors(trainer, twin_trainer):
    """Weights, puzzle table, moments, averages and states of both, under equal names."""
    ours = {twin_name(name): tensor for name, tensor in trainer.reasoner.state_dict().items()}
    theirs = dict(twin_trainer.model.state_dict())
    ours |= {f"average {twin_name(name)}": p.detach() for name, p in trainer.ema.reasoner.named_parameters()}
    theirs |= {f"average {name}": s for name, s in zip(twin_trainer.names, twin_trainer.shadow, strict=True)}
    theirs["average puzzle_emb.weights"] = theirs["puzzle_emb.weights"]
    names = {p: twin_name(name) for name, p in trainer.reasoner.named_parameters()}
    for p, state in trainer.optimizers[0].state.items():
        ours |= {f"first moment {names[p]}": state["m"], f"second moment {names[p]}": state["v"]}
    for name, (first, second) in zip(twin_trainer.names, twin_trainer.moments, strict=True):
        theirs |= {f"first moment {name}": first, f"second moment {name}": second}
    ours |= {"state H": trainer.carry.state.z_H, "state L": trainer.carry.state.z_L}
    theirs |= {"state H": twin_trainer.z_H, "state L": twin_trainer.z_L}
    return ours, theirs


def assert_same_metrics(metrics, last, rel):
    for name in ("loss", "answer_loss", "halting_loss"):
        assert getattr(metrics, name) == pytest.approx(last[name].item() / SLOTS, rel=rel)
    assert metrics.lr == pytest.approx(last["lr"], rel=1e-12)


@every_position
@pytest.mark.parametrize("target_every", [1, 4])
@pytest.mark.usefixtures("twin_rounds_alike")
def test_twenty_training_steps_equal_the_twin_bit_for_bit(positions, target_every):
    """After each of 20 optimizer steps with Q-learning slots, states, weights, moments, averages and puzzle table are
    those of the twin with rewritten operations, and so are the values seen ahead, at every step or at every fourth.
    """
    for i, (ours, theirs, metrics, seen) in enumerate(train_both(positions, target_every)):
        assert_same_slots(ours, theirs)
        assert_identical(*trained_tensors(ours, theirs))
        assert_same_metrics(metrics, theirs.last, rel=1e-6)
        assert len(seen) == (i % target_every == 0)
        for prediction in seen:
            assert not any(tensor.requires_grad for tensor in prediction)
            assert torch.equal(prediction.halt_logits, theirs.last["next_q_halt"])
            assert torch.equal(prediction.continue_logits, theirs.last["next_q_continue"])


@every_position
@pytest.mark.parametrize("target_every", [1, 4])
def test_twenty_training_steps_equal_the_twin(positions, target_every):
    """After each of 20 optimizer steps the slots are those of the twin as it stands; weights, averages and puzzle table
    are its up to 1e-5, a hundredth of what they have moved, losses up to 1e-4 of their value, and states (of mean
    square 1) up to 1e-3.
    """
    for ours, theirs, metrics, _ in train_both(positions, target_every):
        assert_same_slots(ours, theirs)
        assert_same_metrics(metrics, theirs.last, rel=1e-4)
        tensors, expected = trained_tensors(ours, theirs)
        for name, tensor in tensors.items():
            atol = 1e-3 if name.startswith("state") else 1e-5
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3 if "moment" in name else 0, atol=atol)


def test_a_slot_halts_by_the_greater_value_or_at_its_last_step():
    """A slot halts where the halt value exceeds the continue value (a tie goes on) or at the last step, but not before
    the number of steps that exploration demands.
    """
    halt = torch.tensor([1.0, 1.0, 1.0, 0.0, -2.0, -2.0, 3.0, 3.0])
    go_on = torch.tensor([0.0, 1.0, 2.0, 5.0, -3.0, -3.0, 0.0, 0.0])
    steps = torch.tensor([1, 1, 1, 4, 2, 2, 1, 3])
    least = torch.tensor([0, 0, 0, 0, 3, 2, 2, 0])
    ours = QLearning(QLearningConfig(max_steps=4)).halt(Prediction(halt, halt, go_on, halt, halt), steps, least)
    assert ours.tolist() == [True, False, False, True, False, True, False, True]


# ---------------------------------------------------------------- size


def test_hrm_published_size_has_27275266_parameters():
    """On Sudoku (11 tokens, 81 cells) the default model has 27 275 266 parameters, the puzzle table counted apart."""
    spec = TaskSpec(vocab_size=11, shape=(9, 9), symbols=[""] * 11)
    assert HRM(HRMConfig(), spec).num_parameters() == (27_275_266, 512)
