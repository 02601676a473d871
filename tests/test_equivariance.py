"""Digits may change names: the symbol-equivariant families compute the same with the names changed, by construction."""

import dataclasses
import itertools

import pytest
import torch

from loopwise.reasoners.costs import count_flops
from loopwise.reasoners.equivariant import Equivariant, EquivariantConfig
from loopwise.reasoners.equivariant_looped import EquivariantLooped, EquivariantLoopedConfig
from loopwise.reasoners.gradients import FullBPTT
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.lattice import Lattice, LatticeConfig
from loopwise.tasks.sudoku import Sudoku, SudokuConfig
from loopwise.types import Batch

SMALL = {"hidden_size": 16, "num_heads": 2, "width_multiple": 8}
FAMILIES = {
    "equivariant": (Equivariant, EquivariantConfig(**SMALL, H_cycles=2, L_cycles=2)),
    "equivariant-looped": (EquivariantLooped, EquivariantLoopedConfig(**SMALL, cycles=3)),
    "blocks in turn": (EquivariantLooped, EquivariantLoopedConfig(**SMALL, cycles=2, num_layers=2, inject="block")),
    "lattice": (Lattice, LatticeConfig(**SMALL, cycles=3)),
}
CASES = [(name, core) for name in FAMILIES for core in ("groups", "attention", "mlp")]


def board(box, puzzles):
    """(task, a batch of its puzzles with labels)"""
    task = Sudoku(SudokuConfig(box=box, train=puzzles, validation=0, test=0))
    inputs, labels, ids = (torch.tensor(column[:puzzles], dtype=torch.int64) for column in task.examples("train"))
    return task, Batch(inputs, labels, ids)


def build(name, core, spec):
    cls, config = FAMILIES[name]
    reasoner = cls(dataclasses.replace(config, core=core), spec, torch.float64).double()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in reasoner.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return reasoner


def renamed(batch, names):
    return batch._replace(inputs=names[batch.inputs], labels=names[batch.labels])


def assert_same(one, other):
    """Equal to rounding, in float64 or float32, whichever the heads and losses are computed in."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def assert_equivariant(reasoner, batch, names, steps=1):
    """Each step says the same of the renamed puzzles, under the new names; the halting logit does not change."""
    digits = torch.arange(2, len(names))
    state, other = (reasoner.init_state(*batch.inputs.shape) for _ in range(2))
    for _ in range(steps):
        state, said = reasoner(state, batch, FullBPTT())
        other, other_said = reasoner(other, renamed(batch, names), FullBPTT())
        assert_same(other_said.logits[..., names[digits]], said.logits[..., digits])
        assert_same(other_said.halt_logits, said.halt_logits)
        assert_same(other_said.own_loss, said.own_loss)


@pytest.mark.parametrize(("name", "core"), CASES)
def test_all_renamings_of_a_small_board(name, core):
    """All 24 renamings of the digits of 4x4 puzzles give the renamed answers, to rounding."""
    task, batch = board("2x2", 3)
    reasoner = build(name, core, task.spec)
    for order in itertools.permutations(range(2, 6)):
        assert_equivariant(reasoner, batch, torch.tensor([0, 1, *order]))


@pytest.mark.parametrize(("name", "core"), CASES)
def test_generators_of_all_renamings_of_the_usual_board(name, core):
    """On 9x9 puzzles the exchange of two digits and the shift of all by one give the renamed answers. All 362,880
    renamings are made of these two.
    """
    task, batch = board("3x3", 2)
    reasoner = build(name, core, task.spec)
    exchange = torch.tensor([0, 1, 3, 2, *range(4, 11)])
    shift = torch.tensor([0, 1, *range(3, 11), 2])
    for names in (exchange, shift, exchange[shift]):
        assert_equivariant(reasoner, batch, names)


@pytest.mark.parametrize("core", ["groups", "attention", "mlp"])
def test_the_recursion_keeps_it(core):
    """It holds for the states too, from step to step."""
    task, batch = board("2x2", 3)
    assert_equivariant(build("equivariant", core, task.spec), batch, torch.tensor([0, 1, 4, 2, 5, 3]), steps=4)


def test_the_groups_know_no_order():
    """With the groups core rows may change places within a band, too, and the board may be transposed."""
    task, batch = board("2x2", 3)
    reasoner = build("equivariant", "groups", task.spec)
    cells = torch.arange(16).view(4, 4)
    for moved in (cells[[1, 0, 2, 3]], cells[[2, 3, 0, 1]], cells.T):
        place = moved.flatten()
        said = reasoner(reasoner.init_state(3, 16), batch, FullBPTT())[1]
        other = reasoner(reasoner.init_state(3, 16), Batch(*(c[:, place] for c in batch[:2]), batch[2]), FullBPTT())[1]
        assert_same(other.logits, said.logits[:, place])


def test_a_network_that_knows_names_fails():
    """The check tells: with a vector of its own for each field, the same network is no longer equivariant."""
    task, batch = board("2x2", 3)
    named = build("equivariant", "groups", dataclasses.replace(task.spec, interchangeable=()))
    with pytest.raises(AssertionError):
        assert_equivariant(named, batch, torch.tensor([0, 1, 3, 2, 4, 5]))


def test_blocks_that_take_turns_begin_as_one_block():
    """Two copies of a block that take turns compute in half of the cycles, and of its FLOPs, what the block did."""
    task, batch = board("2x2", 3)
    one = EquivariantLooped(EquivariantLoopedConfig(**SMALL, cycles=4), task.spec)
    config = EquivariantLoopedConfig(**SMALL, cycles=2, num_layers=2, inject="block")
    two = EquivariantLooped(config, task.spec)
    weights = {name: one.state_dict()[name.replace(".1.", ".0.")] for name in two.state_dict()}
    two.load_state_dict(weights)
    said = [reasoner(reasoner.init_state(*batch.inputs.shape), batch, FullBPTT())[1] for reasoner in (one, two)]
    torch.testing.assert_close(said[1].logits, said[0].logits, rtol=0, atol=0)
    flops = [count_flops(reasoner, FullBPTT(), Correctness(HaltingConfig()), 16) for reasoner in (one, two)]
    assert flops[0] == flops[1]
    with torch.no_grad():
        two.f.blocks[1].mlp.down.weight.add_(1)
    other = two(two.init_state(*batch.inputs.shape), batch, FullBPTT())[1]
    assert not torch.equal(other.logits, said[0].logits)
