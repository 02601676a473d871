"""The convolution core: each position hears of its neighbours, update by update, and the weights serve any size."""

import dataclasses

import pytest
import torch

from loopwise.errors import ConfigError
from loopwise.nn.layers import Convolution
from loopwise.reasoners.costs import count_flops
from loopwise.reasoners.gradients import FullBPTT
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.hrm import HRM, HRMConfig
from loopwise.reasoners.looped import Looped, LoopedConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.types import Batch, TaskSpec

SMALL = {"hidden_size": 8, "width_multiple": 8, "core": "convolution", "positions": "none", "registers": 0}


def grid(*shape):
    return TaskSpec(vocab_size=4, shape=shape, symbols=("", "a", "b", "c"))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def puzzles(spec, count=2, seed=0):
    return torch.randint(1, spec.vocab_size, (count, spec.length), generator=rng(seed))


def logits(reasoner, inputs):
    """What is said after one supervision step, without what the next rows have to do with it."""
    state = reasoner.init_state(*inputs.shape)
    return reasoner(state, Batch.unlabelled(inputs), FullBPTT())[1].logits


@pytest.mark.parametrize("shape", [(3, 4), (5, 2), (1, 1), (6,)])
def test_a_position_gets_a_linear_map_of_itself_and_its_neighbours(shape):
    """y at (r, c) is the sum of W[dr, dc] x over the cells around it, with nothing beyond the edge."""
    layer = Convolution(5, shape, rng()).double()
    rows, columns = (1, *shape)[-2:]
    x = torch.randn(2, rows * columns, 5, generator=rng(1), dtype=torch.float64)
    expected = torch.zeros_like(x)
    reach = layer.weight.shape[2] // 2
    for r in range(rows):
        for c in range(columns):
            for dr in range(-reach, reach + 1):
                for dc in (-1, 0, 1):
                    if 0 <= r + dr < rows and 0 <= c + dc < columns:
                        w = layer.weight[:, :, dr + reach, dc + 1]
                        expected[:, r * columns + c] += x[:, (r + dr) * columns + c + dc] @ w.T
    torch.testing.assert_close(layer(x), expected)


def test_its_outputs_have_the_size_of_its_inputs():
    """At first its weights keep the variance of what they are given, whether a row or a grid."""
    for shape in ((200,), (30, 30)):
        x = torch.randn(4, 900 if len(shape) == 2 else 200, 64, generator=rng(2))
        assert Convolution(64, shape, rng())(x).std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("updates", [1, 3])
def test_news_travels_one_cell_an_update(updates):
    """After k updates of one block a changed cell is felt k cells away, in all directions, and no further."""
    spec = grid(9, 9)
    reasoner = Looped(LoopedConfig(**SMALL, num_layers=1, cycles=updates), spec)
    inputs = puzzles(spec)
    other = inputs.clone()
    other[:, 40] = other[:, 40] % 3 + 1  # the middle
    felt = (logits(reasoner, inputs) != logits(reasoner, other)).any(2).view(2, 9, 9)
    away = torch.maximum(*torch.meshgrid((torch.arange(9) - 4).abs(), (torch.arange(9) - 4).abs(), indexing="ij"))
    assert torch.equal(felt, (away <= updates).expand(2, 9, 9))


@pytest.mark.parametrize("build", [(Looped, LoopedConfig), (TRM, TRMConfig), (HRM, HRMConfig)])
def test_the_weights_serve_grids_of_any_size(build):
    """Weights of a 5x5 grid load into a 12x12 one, where a pattern far from the edges is answered wherever it lies."""
    cls, config = build
    sizes = {"cycles": 2, "num_layers": 1, "H_cycles": 1, "L_cycles": 1, "H_layers": 1, "L_layers": 1}
    fields = {f.name for f in dataclasses.fields(config)}
    options = config(**SMALL, **{name: value for name, value in sizes.items() if name in fields})
    small, large = cls(options, grid(5, 5)), cls(dataclasses.replace(options, seed=1), grid(12, 12))
    large.load_state_dict(small.state_dict())
    inputs = torch.ones(2, 12, 12, dtype=torch.int64)
    pattern = puzzles(grid(2, 2), 1)[0].view(2, 2)
    inputs[0, 4:6, 4:6] = pattern
    inputs[1, 6:8, 5:7] = pattern
    said = logits(large, inputs.flatten(1)).view(2, 12, 12, 4)
    torch.testing.assert_close(said[0, 4:6, 4:6], said[1, 6:8, 5:7], rtol=1e-5, atol=1e-5)
    assert [r.accepts(144) for r in (small, large)] == [False, True]


def test_registers_have_no_place_on_the_grid():
    """Registers beside a convolution are refused, in a line that says what to do."""
    with pytest.raises(ConfigError, match="set registers to 0"):
        LoopedConfig(**{**SMALL, "registers": 2})


def test_blocks_that_take_turns_begin_as_one_block():
    """Two copies of a block that take turns compute in half of the cycles, and of its FLOPs, what the block did; then
    each is a network of its own.
    """
    spec = grid(4, 4)
    one = Looped(LoopedConfig(**SMALL, num_layers=1, cycles=4), spec)
    two = Looped(LoopedConfig(**SMALL, num_layers=2, cycles=2, inject="block"), spec)
    two.load_state_dict({name: one.state_dict()[name.replace("blocks.1.", "blocks.0.")] for name in two.state_dict()})
    inputs = puzzles(spec)
    torch.testing.assert_close(logits(two, inputs), logits(one, inputs), rtol=0, atol=0)
    flops = [count_flops(reasoner, FullBPTT(), Correctness(HaltingConfig()), 16) for reasoner in (one, two)]
    assert flops[0] == flops[1]
    with torch.no_grad():
        two.networks()[1].mlp.down.weight.add_(1)
    assert not torch.equal(logits(two, inputs), logits(one, inputs))


def test_blocks_of_untied_cycles_take_turns_too():
    """Untied networks with the weights of the tied one compute what it does, the puzzle added before each block."""
    spec = grid(4, 4)
    tied, untied = (Looped(LoopedConfig(**SMALL, cycles=2, inject="block", tied=t), spec) for t in (True, False))
    untied.load_state_dict({name: tied.state_dict()[name.replace("f.1.", "f.0.")] for name in untied.state_dict()})
    inputs = puzzles(spec)
    torch.testing.assert_close(logits(untied, inputs), logits(tied, inputs), rtol=0, atol=0)
