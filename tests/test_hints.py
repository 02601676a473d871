"""Hints: a second label at each position that only training sees."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from loopwise.checkpoint import load_model
from loopwise.cli import main
from loopwise.data.stream import Stream
from loopwise.reasoners.gradients import FullBPTT
from loopwise.reasoners.halting import Fixed, HaltingConfig
from loopwise.reasoners.looped import Looped, LoopedConfig
from loopwise.storage import read_tensors
from loopwise.tasks.maze import Maze, MazeConfig
from loopwise.tasks.maze_paths import PATH
from loopwise.training.config import TrainingConfig
from loopwise.training.losses import softmax_cross_entropy
from loopwise.training.trainer import Trainer
from loopwise.types import Batch

SIZE = 7

OPTIONS = f"maze --task.size {SIZE} --task.min-moves 4 --task.train 30 --task.validation 10 --task.test 10"
OPTIONS += " --reasoner looped --reasoner.hidden-size 8 --reasoner.width-multiple 8 --reasoner.num-layers 1"
OPTIONS += " --reasoner.core convolution --reasoner.registers 0"
OPTIONS += " --training.batch-size 4 --training.warmup-steps 0 --training.ema 0 --training.loss softmax --tracker none"


def train(folder, *more, steps=2):
    return ["train", *OPTIONS.split(), "--training.steps", str(steps), "--out", str(folder), *more]


def test_only_training_reads_hints():
    """A network has a head for them if its task gives any, and uses it in training alone; its answers need none."""
    told, untold = (Maze(MazeConfig(size=SIZE, hints=hints)) for hints in (2, 0))
    config = LoopedConfig(hidden_size=8, num_layers=1, core="convolution", registers=0, width_multiple=8)
    with_head, without = Looped(config, told.spec), Looped(config, untold.spec)
    assert set(with_head.state_dict()) - set(without.state_dict()) == {"hints.weight"}
    state = with_head.init_state(3, SIZE * SIZE)
    said, other = with_head.train().readout(state), without.train().readout(state)
    assert said.hint_logits.shape == (3, SIZE * SIZE, 5)
    for nothing in (other, with_head.eval().readout(state)):
        assert nothing.hint_logits.shape == (3, SIZE * SIZE, 0)
    torch.testing.assert_close(said.logits, other.logits, rtol=0, atol=0)


def test_the_loss_of_the_hints_is_added_with_its_weight(tmp_path):
    """The loss of a step is that of answer and halting plus `hint_weight` times that of the hints, which is what the
    network's head says of them; with a weight of 0 they change no weight but their own head's. (The wave of this test
    has passed everywhere after one step, so that the whole answer is asked for, as without hints.)
    """

    def losses(name, *more):
        assert main(train(tmp_path / name, *more, steps=1)) == 0
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        record = next(r for r in map(json.loads, lines) if r["kind"] == "train")
        return record, read_tensors(tmp_path / name / "model.safetensors")[0]

    none, plain = losses("none")
    half, taught = losses("half", "--task.hints", "100", "--training.hint-weight", "0.5")
    zero, untaught = losses("zero", "--task.hints", "100", "--training.hint-weight", "0")
    assert none["hint_loss"] == 0
    assert half["hint_loss"] == zero["hint_loss"] > 1
    for record, weight in ((none, 0), (half, 0.5), (zero, 0)):
        rest = record["answer_loss"] + 0.5 * record["halting_loss"]
        assert record["loss"] == pytest.approx(rest + weight * record["hint_loss"], rel=1e-5)
    for name, tensor in plain.items():
        torch.testing.assert_close(untaught[name], tensor, rtol=0, atol=0)
    assert any(not torch.equal(taught[name], tensor) for name, tensor in plain.items())


def test_the_head_of_the_hints_learns_them(tmp_path):
    """After some training the head tells the moves of mazes that it was not trained on better than chance and than
    before.
    """

    def loss(folder):
        model, _ = load_model(folder)
        data = model.task.examples("validation")
        puzzles = torch.as_tensor(data.inputs, dtype=torch.int64)
        batch = Batch.unlabelled(puzzles)
        model.reasoner.train()
        _, said = model.reasoner(model.reasoner.init_state(*puzzles.shape), batch, model.gradient)
        hints = torch.as_tensor(np.stack([model.task.hints(p, 1) for p in data.inputs]), dtype=torch.int64)
        return float(softmax_cross_entropy(said.hint_logits, hints).detach().sum() / (hints >= 0).sum())

    options = ("--task.hints", "2", "--training.lr", "5e-3", "--halting.max-steps", "1")
    assert main(train(tmp_path / "begun", *options, steps=1)) == 0
    assert main(train(tmp_path / "taught", *options, steps=80)) == 0
    assert loss(tmp_path / "taught") < 0.8 * loss(tmp_path / "begun")
    assert loss(tmp_path / "taught") < np.log(5)


class Rigged(Fixed):
    """A halting policy whose predictions say what the test wants, with the gradient of what the network said."""

    def __init__(self, said, told):
        super().__init__(HaltingConfig(max_steps=50))
        self.said, self.told = said, told

    def step(self, reasoner, state, batch, gradient):
        new = super().step(reasoner, state, batch, gradient)

        def saying(logits, wanted):
            return logits * 0 + F.one_hot(wanted.clamp(min=0), logits.shape[-1])

        rigged = saying(new.prediction.logits, self.said), saying(new.prediction.hint_logits, self.told)
        return new._replace(prediction=new.prediction._replace(logits=rigged[0], hint_logits=rigged[1]))


@pytest.mark.parametrize(("evict", "weight"), [(True, 1.0), (True, 0.0), (False, 1.0)])
def test_a_slot_that_leaves_the_trace_takes_a_fresh_puzzle(evict, weight):
    """With `evict` a slot goes on where all that is asked of the answer and of the hints by now is right, though the
    answer is not finished; one wrong position of either gives the puzzle up, of the hints only if they are taught.
    Without it none is.
    """
    task = Maze(MazeConfig(size=SIZE, min_moves=6, train=30, validation=1, test=1, hints=2))
    data = task.examples("train")
    config = LoopedConfig(hidden_size=8, num_layers=1, core="convolution", registers=0, width_multiple=8)
    options = TrainingConfig(steps=10, batch_size=3, loss="softmax", evict=evict, hint_weight=weight)
    stream = Stream(task, data, 0)
    slots = Trainer(Looped(config, task.spec), FullBPTT(), Fixed(), stream, options, Accelerator(cpu=True))
    slots.carry = slots.carry._replace(batch=slots._incoming(), halted=torch.zeros(3, dtype=torch.bool))
    for step in (1, 2):
        batch = slots.carry.batch
        rows = list(zip(batch.inputs.numpy(), batch.labels.numpy(), strict=True))
        said = torch.as_tensor(np.stack([task.known(*row, step) for row in rows]), dtype=torch.int64)
        told = torch.as_tensor(np.stack([task.hints(row[0], step) for row in rows]), dtype=torch.int64)
        assert not any(torch.equal(*pair) for pair in zip(said, batch.labels, strict=True))
        if step == 2:
            said[1, 0] = PATH
            cell = int((told[2] >= 0).nonzero()[0])
            told[2, cell] = (told[2, cell] + 1) % 5
        slots.halting = Rigged(said, told)
        slots.train_step()
        gone = step == 2 and evict
        assert slots.carry.halted.tolist() == [False, gone, gone and weight > 0]


def test_a_ponder_shares_hints_as_it_shares_answers(tmp_path):
    """Adaptive computation time takes its mean over the hints of its steps too, and learns from it."""
    assert main(train(tmp_path / "act", "--task.hints", "2", "--halting", "act", steps=1)) == 0
    assert json.loads((tmp_path / "act" / "log.jsonl").read_text().splitlines()[0])["hint_loss"] > 1


def test_weights_go_on_with_hints_and_without(terminal, tmp_path):
    """A run with hints starts from weights that never had any, and the other way round; a family that has no head for
    them says so in a line.
    """
    still = ("--training.lr", "1e-9", "--training.weight-decay", "0")
    assert main(train(tmp_path / "a", *still)) == 0
    assert main(train(tmp_path / "b", *still, "--task.hints", "2", "--training.start-from", str(tmp_path / "a"))) == 0
    assert main(train(tmp_path / "c", *still, "--training.start-from", str(tmp_path / "b"))) == 0
    first, last = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in "ac")
    assert first.keys() == last.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(last[name], tensor, rtol=0, atol=1e-6)
    lattice = ("train", "maze", "--task.hints", "2", "--reasoner", "lattice", "--out", tmp_path / "d")
    assert "evict needs hints" in terminal.refuses(*train(tmp_path / "e", "--training.evict"))
    assert "no head to learn hints" in terminal.refuses(*lattice)
    late = ("train", "--resume", tmp_path / "a", "--training.steps", "2", "--training.evict", "--tracker", "none")
    assert "evict needs hints" in terminal.refuses(*late)


def test_answers_need_no_hints(terminal, tmp_path):
    """Weights that were told hints answer the same without them, at the size that they know and at another; those that
    were told none do not mind if there are some.
    """
    assert main(train(tmp_path / "a", "--task.hints", "2")) == 0
    assert main(train(tmp_path / "b")) == 0
    for name, size in itertools.product("ab", (SIZE, SIZE + 2)):
        evaluate = ("eval", tmp_path / name, "--task.size", str(size), "--json")
        with_hints, without = (terminal.records(*evaluate, "--task.hints", hints)[0] for hints in ("2", "0"))
        assert with_hints == without
