"""What a run costs: the estimate against closed formulas of the models' shapes, and against what a step really does."""

import dataclasses
import json

import pytest
import torch

from loopwise.cli import main
from loopwise.estimate import Cost, estimate
from loopwise.reasoners.costs import Meter
from loopwise.reasoners.hrm import HRMConfig
from loopwise.reasoners.trm import TRMConfig
from loopwise.recipes import find, with_parts
from loopwise.runs import build
from loopwise.runtime import Ceilings, keep_freed_memory, measure_ceilings
from loopwise.types import Batch

CPU = torch.device("cpu")


def sized(reasoner="trm", batch=6, **options):
    """Sorting rows of 10 with 2 registers, D 32."""
    config = with_parts(find("sorting-10"), reasoner=reasoner)
    small = {"hidden_size": 32, "registers": 2, **options}
    return dataclasses.replace(
        config,
        reasoner_config=dataclasses.replace(config.reasoner_config, **small),
        training=dataclasses.replace(config.training, batch_size=batch, device="cpu", dtype="float32"),
    )


def block_macs(c, length):
    """Multiply-adds of one block on one puzzle: attention or token mixing, then the SwiGLU."""
    size = c.hidden_size
    positions = c.registers + length

    def swiglu(width):
        inner = -(-round(c.expansion * width * 2 / 3) // c.width_multiple) * c.width_multiple
        return 3 * width * inner

    mixing = (
        swiglu(positions) * size if c.core == "mlp" else positions * 4 * size * size + 2 * positions * positions * size
    )
    return mixing + positions * swiglu(size)


def head_macs(c, length, symbols):
    """Multiply-adds of reading the answer, registers included, and the two halting values."""
    return (c.registers + length) * c.hidden_size * symbols + 2 * c.hidden_size


@pytest.mark.parametrize("core", ["mlp", "attention"])
def test_solving_flops_of_trm_are_those_of_its_shapes(core):
    """A solving step is H (L + 1) applications of the network and one readout; each multiply-add counts as two."""
    config = sized(core=core, positions="none" if core == "mlp" else "rotary", num_heads=4)
    c, spec = config.reasoner_config, build(config).task.spec
    assert isinstance(c, TRMConfig)
    macs = c.H_cycles * (c.L_cycles + 1) * c.num_layers * block_macs(c, spec.length)
    macs += head_macs(c, spec.length, spec.vocab_size)
    assert estimate(config).solving.flops == 2 * macs * config.training.batch_size


@pytest.mark.parametrize("core", ["mlp", "attention"])
def test_training_flops_of_trm_are_those_of_its_shapes(core):
    """Training adds twice the products of the last cycle and of the readout: for the weights and for the inputs."""
    config = sized(core=core, positions="none" if core == "mlp" else "rotary", num_heads=4)
    c, spec = config.reasoner_config, build(config).task.spec
    block = block_macs(c, spec.length)
    calls = c.H_cycles * (c.L_cycles + 1) + 2 * (c.L_cycles + 1)
    macs = calls * c.num_layers * block + 3 * head_macs(c, spec.length, spec.vocab_size)
    assert estimate(config).training.flops == 2 * macs * config.training.batch_size


def test_flops_of_hrm_are_those_of_its_shapes():
    """H applications of the slow network, H L of the fast one, and gradient through the last of each."""
    config = sized("hrm", num_heads=4)
    config = dataclasses.replace(config, halting="correctness", halting_config=find("sorting-10").halting_config)
    c, spec = config.reasoner_config, build(config).task.spec
    assert isinstance(c, HRMConfig)
    block, head = block_macs(c, spec.length), head_macs(c, spec.length, spec.vocab_size)
    calls = c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers)
    cost = estimate(config)
    assert cost.solving.flops == 2 * 6 * (calls * block + head)
    assert cost.training.flops == 2 * 6 * ((calls + 2 * (c.L_layers + c.H_layers)) * block + 3 * head)


def test_a_batch_costs_what_the_straight_line_says():
    """Traffic and memory of 24 puzzles, told from those of a few, are within 5 % of what a step of 24 really takes."""
    config = sized(batch=24)
    told = estimate(config).solving
    model = build(config)
    tokens = torch.zeros(24, model.task.spec.length, dtype=torch.int64)
    with torch.no_grad(), Meter() as meter:
        model.step(model.reasoner.init_state(*tokens.shape), Batch(tokens, tokens, tokens[:, 0]))
    assert told.calls == meter.calls
    assert told.traffic == pytest.approx(meter.traffic, rel=0.05)
    assert told.memory == pytest.approx(meter.peak, rel=0.05)


def test_steps_without_gradient_are_counted():
    """With `progressive` a training step costs half of that many solving steps more, what is drawn on average."""
    plain = sized()
    ahead = estimate(dataclasses.replace(plain, training=dataclasses.replace(plain.training, progressive=3)))
    without = estimate(plain)
    assert ahead.training.flops == pytest.approx(without.training.flops + 1.5 * without.solving.flops)
    assert ahead.training.memory == pytest.approx(without.training.memory)
    assert ahead.solving == without.solving


def test_starts_that_do_not_learn_are_counted():
    """With `starts` a training step is a solving step of every slot, and one with gradient of its share of them."""
    plain = sized(batch=8)
    training = dataclasses.replace(plain.training, starts=4, random_init=1.0)
    race = estimate(dataclasses.replace(plain, training=training))
    without = estimate(plain)
    assert race.training.flops == pytest.approx(without.solving.flops + without.training.flops / 4)
    assert race.solving == without.solving


def test_the_meter_counts_bytes_that_can_be_counted_by_hand():
    """Element by element: two tensors read and one written, in one call; products and views are no traffic."""
    a, b = torch.ones(10, 10), torch.ones(10, 10)
    with Meter() as meter:
        c = a + b
        d = c.t()
        e = d @ b
    assert (meter.calls, meter.traffic) == (2, 3 * 400)
    assert meter.alive == meter.peak == 2 * 400
    with Meter() as meter:
        for _ in range(3):
            c = a + b
    assert meter.peak == 2 * 400, "the old result lives until the new one has its name"
    del d, e


def test_time_is_the_sum_of_its_terms():
    """FLOPs, bytes and calls, each by its own ceiling."""
    assert Cost(6e9, 4e9, 100, 0).seconds(Ceilings(2e9, 1e9, 0.01)) == pytest.approx((3, 4, 1))


def test_ceilings_are_measured():
    """All three are positive, and a call is shorter than a millisecond."""
    ceilings = measure_ceilings(CPU, torch.float32)
    assert ceilings.flops > 1e8
    assert ceilings.traffic > 1e7
    assert 0 < ceilings.call < 1e-3


def test_an_estimate_of_every_family(capsys):
    """The command estimates any reasoner with any policy, also where data decide, and its JSON adds up."""
    for line in ("--reasoner hrm", "--reasoner rnn", "--reasoner deq", "--halting act", "--training.optimizer muon"):
        assert main(["estimate", "sorting-10", *line.split(), "--training.batch-size", "4", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["total_flops"] == record["steps"] * record["training_step"]["flops"]
        assert record["training_step"]["flops"] > record["solving_step"]["flops"] > 0


def test_asking_the_c_library_to_keep_memory_changes_no_result():
    """Where there is glibc it agrees, elsewhere it says no; numbers stay what they are."""
    x = torch.arange(12.0).view(3, 4)
    before = x @ x.t()
    assert keep_freed_memory() in {True, False}
    assert torch.equal(before, x @ x.t())
