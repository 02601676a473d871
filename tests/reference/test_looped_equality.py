"""The library's looped transformer against its slow literal twin: predictions, states and every gradient."""

import looped
import pytest
import torch
import trm
from test_trm_equality import REWRITTEN, SLOTS, SPEC, assert_identical, random_batch, twin_gradients

from judging import judged
from loopwise.reasoners.gradients import Checkpointed, FullBPTT, LastCycle, LastUpdates
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.looped import Looped, LoopedConfig, LoopedState
from loopwise.training.losses import answer_loss

POSITIONS = {"rotary": "rope", "learned": "learned", "none": "none"}

every_architecture = pytest.mark.parametrize(
    ("positions", "cycles", "tied"), [(p, c, t) for p in POSITIONS for c, t in ((1, True), (4, True), (3, False))]
)


def twin_name(name: str) -> str:
    """The twin's name of a tensor of the library's looped transformer."""
    names = {
        "tokens": "embed_tokens.embedding_weight",
        "puzzles.weight": "puzzle_emb.weights",
        "places": "embed_pos.embedding_weight",
        "z_init": "z_init",
        "head.weight": "lm_head.weight",
        "halt.weight": "q_head.weight",
        "halt.bias": "q_head.bias",
    }
    if name in names:
        return names[name]
    parts = {"attention": "self_attn", "mlp": "mlp"}
    layers = {"qkv": "qkv_proj", "out": "o_proj", "gate_up": "gate_up_proj", "down": "down_proj"}
    _, cycle, _, block, part, layer, leaf = name.split(".")  # f.0.blocks.0.attention.qkv.weight
    return f"levels.{cycle}.layers.{block}.{parts[part]}.{layers[layer]}.{leaf}"


def pair(positions, cycles, tied, dtype=torch.float32, registers=1):
    """A library model and a twin with the same weights, none of them zero."""
    config = LoopedConfig(
        hidden_size=32, num_heads=4, num_layers=2, cycles=cycles, tied=tied, positions=positions, registers=registers
    )
    model = Looped(config, SPEC, dtype)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.puzzles.weight.normal_(0, 32**-0.5, generator=rng)
        model.halt.weight.normal_(0, 32**-0.5, generator=rng)
        model.halt.bias.normal_(0.5, 0.1, generator=rng)
    twin = looped.LoopedTwin(
        SPEC.vocab_size, SPEC.length, SPEC.num_puzzle_ids, hidden_size=32, num_heads=4, num_layers=2, cycles=cycles,
        tied=tied, puzzle_emb_len=registers, positions=POSITIONS[positions], forward_dtype=dtype,
    )  # fmt: skip
    twin.load_state_dict({twin_name(name): tensor.clone() for name, tensor in model.state_dict().items()})
    return model, twin


def backward(model, twin, policy, steps):
    """Gradients of the last of some supervision steps of both, each under its own loss."""
    batch, rng = random_batch(), torch.Generator().manual_seed(2)
    z = torch.randn(model.init_state(SLOTS, SPEC.length).z.shape, generator=rng)
    ours, theirs = LoopedState(z), z.clone()
    for step in range(steps):
        ours, prediction = model(ours, batch, policy)
        theirs, logits, q_halt, q_continue = twin(theirs, batch.inputs, batch.puzzle_ids)
        assert step < steps - 1 or not ours.z.requires_grad
    answer, _, correct = answer_loss("stablemax", prediction.logits, batch.labels)
    halting = Correctness(HaltingConfig()).loss(judged(prediction, correct))
    # The continue logit has no part in this loss; the last term gives it one, so that its gradient is compared too.
    (answer + 0.5 * halting + prediction.continue_logits.square().sum()).backward()
    halting = trm.halt_loss(q_halt, trm.sequence_correct(logits, batch.labels))
    (trm.stablemax_cross_entropy(logits, batch.labels) + 0.5 * halting + q_continue.square().sum()).backward()
    return {twin_name(name): p.grad.to_dense() for name, p in model.named_parameters()}, twin_gradients(twin)


@pytest.fixture
def twin_rounds_alike(monkeypatch):
    """The twin, for one test, with its few operations that round differently written as in the library."""
    for function in REWRITTEN:
        monkeypatch.setattr(trm, function.__name__, function)


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_equals_the_twin(positions, cycles, tied, dtype):
    """Logits, both halting logits and the state of three supervision steps in a row are the twin's, bit for bit."""
    model, twin = pair(positions, cycles, tied, dtype, registers=3)
    batch = random_batch()
    ours, theirs = model.init_state(SLOTS, SPEC.length), twin.initial_state(SLOTS)
    for _ in range(3):
        ours, prediction = model(ours, batch, FullBPTT())
        theirs, *outputs = twin(theirs, batch.inputs, batch.puzzle_ids)
        for a, b in zip((*prediction[:3], *ours), (*outputs, theirs), strict=True):
            assert a.dtype is b.dtype
            assert torch.equal(a, b)


@every_architecture
@pytest.mark.parametrize("policy", [FullBPTT(), Checkpointed()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.usefixtures("twin_rounds_alike")
def test_every_gradient_equals_the_twin_bit_for_bit(positions, cycles, tied, policy, steps):
    """Backpropagation through all cycles of a step, in the first step and in the third, gives each parameter, down to
    the rows of the puzzle table, the gradient of the twin with rewritten operations; with recomputation too.
    """
    ours, theirs = backward(*pair(positions, cycles, tied), policy, steps)
    assert_identical(ours, theirs)
    assert all(tensor.abs().max() > 0.005 for tensor in ours.values())


@every_architecture
def test_every_gradient_equals_the_twin(positions, cycles, tied):
    """Each gradient is that of the twin as it stands, up to 2e-6 of the largest value of the tensor."""
    ours, theirs = backward(*pair(positions, cycles, tied), FullBPTT(), steps=1)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("policy", [LastCycle(), LastUpdates()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_wrong_gradient_policy_is_noticed(positions, policy):
    """Gradients through the last cycle or two of four differ from the twin's by a tenth and more of the largest value
    of some tensor.
    """
    ours, theirs = backward(*pair(positions, 4, True), policy, steps=1)
    off = {name: ((ours[name] - g).abs().max() / g.abs().max()).item() for name, g in theirs.items()}
    assert max(off.values()) > 0.1


def test_untied_cycles_have_their_own_weights():
    """Untied, a model of three cycles has three times the network parameters of the tied one and computes otherwise."""
    sizes = {}
    for tied in (True, False):
        model, _ = pair("rotary", 3, tied)
        sizes[tied] = sum(p.numel() for network in model.networks() for p in network.parameters())
        same_weights = {name: p.clone() for name, p in model.f[0].named_parameters()}
    assert sizes[False] == 3 * sizes[True]
    assert all(not torch.equal(p, same_weights[name]) for name, p in model.f[1].named_parameters())
