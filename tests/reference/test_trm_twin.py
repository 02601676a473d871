"""Claims about the slow TRM twin itself: published parameter counts, checkpoint names and hand-checked numbers."""

import math

import pytest
import torch
import trm


def small(**changes):
    options = {
        "vocab_size": 11, "seq_len": 9, "num_puzzle_ids": 4, "hidden_size": 32, "num_heads": 4, "H_cycles": 3,
        "L_cycles": 2, "puzzle_emb_len": 3, "forward_dtype": torch.float32,
    }  # fmt: skip
    options.update(changes)
    torch.manual_seed(0)
    return trm.TRMTwin(**options)


def random_rows(batch=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(1, 11, (batch, 9), generator=g),
        "labels": torch.randint(1, 11, (batch, 9), generator=g),
        "puzzle_ids": torch.randint(0, 4, (batch,), generator=g),
    }


@pytest.mark.parametrize(
    ("vocab_size", "seq_len", "core", "count"),
    [
        (11, 81, "attention", 6_828_034),
        (11, 81, "mlp", 5_028_866),
        (6, 900, "attention", 6_822_914),
        (6, 900, "mlp", 18_795_522),
        (12, 900, "attention", 6_829_058),
        (12, 900, "mlp", 18_801_666),
    ],
)
def test_trainable_parameter_counts_are_the_published_ones(vocab_size, seq_len, core, count):
    """The default sizes have exactly as many trainable parameters as the published code, on all three tasks."""
    positions = "rope" if core == "attention" else "none"
    with torch.device("meta"):
        model = trm.TRMTwin(vocab_size, seq_len, 1, core=core, positions=positions)
    assert sum(p.numel() for p in model.parameters()) == count


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    """Names and shapes of the state dict are the published layout, with the puzzle table a buffer, not a parameter."""
    S, d, w = 12, 32, 256
    shared = {
        "H_init": (d,), "L_init": (d,), "embed_tokens.embedding_weight": (11, d), "lm_head.weight": (11, d),
        "q_head.weight": (2, d), "q_head.bias": (2,), "puzzle_emb.weights": (4, d),
    }  # fmt: skip
    for i in range(2):
        shared[f"L_level.layers.{i}.mlp.gate_up_proj.weight"] = (2 * w, d)
        shared[f"L_level.layers.{i}.mlp.down_proj.weight"] = (d, w)
    attention, mixer = {"embed_pos.embedding_weight": (S, d)}, {}
    for i in range(2):
        attention[f"L_level.layers.{i}.self_attn.qkv_proj.weight"] = (3 * d, d)
        attention[f"L_level.layers.{i}.self_attn.o_proj.weight"] = (d, d)
        mixer[f"L_level.layers.{i}.mlp_t.gate_up_proj.weight"] = (2 * 256, S)
        mixer[f"L_level.layers.{i}.mlp_t.down_proj.weight"] = (S, 256)
    learned = small(positions="learned")
    mlp = small(core="mlp", positions="none")
    assert {k: tuple(v.shape) for k, v in learned.state_dict().items()} == shared | attention
    assert {k: tuple(v.shape) for k, v in mlp.state_dict().items()} == shared | mixer
    assert {"H_init", "L_init", "puzzle_emb.weights"} == {name for name, _ in mlp.named_buffers()}


def test_swiglu_width_rounds_up_to_256():
    """Widths for 512 channels, 97 positions and 916 positions are 1536, 512 and 2560; an exact multiple stays."""
    assert [trm.swiglu_width(n, 4) for n in (512, 97, 916, 96)] == [1536, 512, 2560, 256]


def test_initial_values():
    """Linears have std 1/sqrt(fan-in) within +-2.2737 std; the Q head starts at 0 and -5, the puzzle table at 0."""
    torch.manual_seed(0)
    x = trm.truncated_normal((1_000_000,), 0.5)
    assert x.std().item() == pytest.approx(0.5, rel=3e-3)
    assert x.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert x.abs().max().item() == pytest.approx(0.5 * 2.2737, rel=1e-3)
    model = small(forward_dtype=torch.bfloat16)
    assert model.L_level.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert (model.q_head.weight == 0).all()
    assert (model.q_head.bias == -5).all()
    assert (model.puzzle_emb.weights == 0).all()
    assert model.H_init.dtype is torch.bfloat16
    assert not torch.equal(model.H_init, model.L_init)
    assert all(p.dtype is torch.float32 for p in model.parameters())


def test_stablemax_by_hand():
    """Logits (0, 1, -1) have s = (1, 2, 1/2), hence probabilities 2/7, 4/7 and 1/7, in float64."""
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(1, 3, 3)
    loss = trm.stablemax_cross_entropy(logits, torch.tensor([[0, 1, 2]]))
    assert loss.dtype is torch.float64
    assert loss.item() == pytest.approx((math.log(7 / 2) + math.log(7 / 4) + math.log(7)) / 3, rel=1e-14)
    u = torch.tensor([3.0, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    trm.stablemax_s(u).sum().backward()
    assert u.grad.tolist() == [1.0, 1.0, 1.0, 0.25, 0.0625]


@pytest.mark.parametrize("loss", [trm.stablemax_cross_entropy, trm.softmax_cross_entropy])
def test_loss_is_a_mean_per_sequence_and_a_sum_over_the_batch(loss):
    """Equal logits cost log V per sequence however many tokens are labelled, and a row without labels costs 0."""
    labels = torch.tensor([[1, 2, 3], [-100, 0, -100], [-100, -100, -100]])
    assert loss(torch.zeros(3, 3, 5), labels).item() == pytest.approx(2 * math.log(5), rel=1e-14)


def test_halt_and_total_loss_by_hand():
    """The halt target is "all labelled tokens right" (true for a row without labels); total = LM + halt / 2."""
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2], [1, 2], [1, 2]]), 4).float()
    labels = torch.tensor([[1, -100], [1, 3], [-100, -100]])
    assert trm.sequence_correct(logits, labels).tolist() == [True, False, True]
    q = torch.tensor([2.0, -1.0, 0.0])
    halt = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)
    lm = math.log(5 / 2) + (math.log(5 / 2) + math.log(5)) / 2
    assert trm.halt_loss(q, trm.sequence_correct(logits, labels)).item() == pytest.approx(halt, rel=1e-6)
    assert trm.total_loss(logits, labels, q).item() == pytest.approx(lm + halt / 2, rel=1e-6)


def test_adam_atan2_by_hand():
    """The first step moves by 10 atan(0.1) = 0.997 lr whatever the gradient's size, many by pi/4 lr; decay is apart."""
    p = torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    g = torch.tensor([3.0, -1e-6, 1e5, 0.0], dtype=torch.float64)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    trm.adam_atan2_step([p], [g], [(m, v)], 1, 0.01, (0.9, 0.95), 0.0)
    move = 0.01 * 10 * math.atan(0.1)
    assert move == pytest.approx(0.997 * 0.01, rel=4e-4)
    assert p.tolist() == pytest.approx([1 - move, 1 + move, 1 - move, 2.0], rel=1e-12)
    trm.adam_atan2_step([p], [g], [(m, v)], 2, 0.01, (0.9, 0.95), 0.0)
    second = 0.01 / 0.19 * math.atan(0.19)  # a constant gradient: m = 0.19 g and the corrected root of v is |g|
    assert p.tolist() == pytest.approx([1 - move - second, 1 + move + second, 1 - move - second, 2.0], rel=1e-12)
    for step in range(3, 400):
        before = p.clone()
        trm.adam_atan2_step([p], [g], [(m, v)], step, 0.01, (0.9, 0.95), 0.0)
    assert (before - p)[0].item() == pytest.approx(math.pi / 4 * 0.01, rel=1e-6)
    only_decay = torch.tensor([2.0], dtype=torch.float64)
    zeros = torch.zeros_like(only_decay)
    trm.adam_atan2_step([only_decay], [zeros], [(zeros.clone(), zeros.clone())], 1, 0.01, (0.9, 0.95), 1.0)
    assert only_decay.item() == pytest.approx(1.98, rel=1e-12)


def test_sign_sgd_by_hand():
    """Gradients of one identifier are summed before the sign, it decays once, and other rows stay as they were."""
    table = torch.ones(4, 2, dtype=torch.float64)
    grads = torch.tensor([[3.0, 1.0], [-1.0, -1.0], [-5.0, 0.1]], dtype=torch.float64)
    trm.sign_sgd_step(table, torch.tensor([2, 2, 0]), grads, 0.1, 0.5)
    assert table.flatten().tolist() == pytest.approx([1.05, 0.85, 1.0, 1.0, 0.85, 0.95, 1.0, 1.0], rel=1e-12)


def test_ema_and_learning_rate_by_hand():
    """The EMA moves by 1 - decay; the rate climbs by 1/warm-up from step 1, then falls by a cosine to its floor."""
    shadow = torch.tensor([1.0], dtype=torch.float64)
    trm.ema_step([shadow], [torch.tensor([3.0], dtype=torch.float64)], 0.9)
    assert shadow.item() == pytest.approx(1.2, rel=1e-12)
    rates = [trm.learning_rate(t, 2.0, 10, 30, 0.1) for t in (1, 5, 10, 20, 30)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 1.1, 0.2], rel=1e-12)
    assert trm.learning_rate(50_000, 1e-4, 2000, 65104) == pytest.approx(1e-4)


def test_rotation_by_hand():
    """Position n turns component 0 towards component half by n radians, and the last pair by the smallest angle."""
    x = torch.zeros(1, 3, 1, 8)
    x[..., 0], x[..., 3] = 1.0, 1.0
    y = trm.rotate(x, 10000.0)[0, 2, 0]
    slow = 2 * 10000.0**-0.75
    expected = [math.cos(2), 0, 0, math.cos(slow), math.sin(2), 0, 0, math.sin(slow)]
    assert y.tolist() == pytest.approx(expected, abs=1e-6)


def test_token_mixing_is_normed_over_the_sequence():
    """With the channel SwiGLU silenced, the mixer block's output is that of a norm over positions, then channels."""
    model = small(core="mlp", positions="none")
    block = model.L_level.layers[0]
    with torch.no_grad():
        block.mlp_t.down_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    x = torch.randn(2, 12, 32) * torch.linspace(0.1, 3.0, 32)
    over_sequence = x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected = over_sequence / (over_sequence.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), expected)


def test_prefix_has_one_learned_position():
    """Position 0 is the identifier's vector times sqrt(d), the other prefix positions are 0, and tokens follow."""
    model = small()
    model.puzzle_emb.weights.normal_()
    rows = random_rows()
    x = model.embed(rows["inputs"], rows["puzzle_ids"])
    torch.testing.assert_close(x[:, 0], model.puzzle_emb.weights[rows["puzzle_ids"]] * 32**0.5)
    assert (x[:, 1:3] == 0).all()
    torch.testing.assert_close(x[:, 3:], model.embed_tokens.embedding_weight[rows["inputs"]] * 32**0.5)


def test_network_calls_per_step():
    """With 3 and 6 cycles one step calls the network 21 times, of which the last 7 are differentiated."""
    model = small(L_cycles=6)
    with_gradient = []
    model.L_level.register_forward_hook(lambda *_: with_gradient.append(torch.is_grad_enabled()))
    rows = random_rows()
    model(model.initial_state(3), rows["inputs"], rows["puzzle_ids"])
    assert with_gradient == [False] * 14 + [True] * 7


@pytest.mark.parametrize(("core", "positions"), [("attention", "rope"), ("attention", "learned"), ("mlp", "none")])
def test_gradient_is_that_of_the_last_cycle_alone(core, positions):
    """Gradients equal those of a one-cycle model that starts from the state which the earlier cycles reached."""
    rows = random_rows()

    def gradients(model, state):
        _, logits, q_halt, _ = model(state, rows["inputs"], rows["puzzle_ids"])
        trm.total_loss(logits, rows["labels"], q_halt).backward()
        return [p.grad for p in model.parameters()] + [model.puzzle_emb.local_rows.grad]

    three, one = (small(core=core, positions=positions, H_cycles=n) for n in (3, 1))
    one.load_state_dict(three.state_dict())
    state = one.initial_state(3)
    for _ in range(2):
        state, _, _, _ = one(state, rows["inputs"], rows["puzzle_ids"])
    for g, h in zip(gradients(three, three.initial_state(3)), gradients(one, state), strict=True):
        assert g.abs().sum() > 0
        torch.testing.assert_close(g, h, rtol=0, atol=0)


@pytest.mark.parametrize(("core", "positions"), [("attention", "rope"), ("attention", "learned"), ("mlp", "none")])
def test_bfloat16_forward_keeps_masters_and_q_in_float32(core, positions):
    """States and logits are bfloat16, Q values fp32 and -5 at the start, and every gradient fp32."""
    model = small(core=core, positions=positions, forward_dtype=torch.bfloat16)
    rows = random_rows()
    state, logits, q_halt, q_continue = model(model.initial_state(3), rows["inputs"], rows["puzzle_ids"])
    assert {state[0].dtype, state[1].dtype, logits.dtype} == {torch.bfloat16}
    assert not state[0].requires_grad
    assert logits.shape == (3, 9, 11)
    assert q_halt.dtype is torch.float32
    assert q_halt.tolist() == q_continue.tolist() == [-5.0] * 3
    trm.total_loss(logits, rows["labels"], q_halt).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_slots_keep_their_example_until_they_halt():
    """A slot takes a fresh example only after the step at which it halted, which a higher minimum delays."""
    trainer = trm.TwinTrainer(small(), batch_size=3, max_steps=2, warmup=10, total_steps=100)
    offered = [random_rows(seed=s) for s in range(5)]
    supply = iter(offered)
    history = []
    for minimum in ([0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 0]):
        trainer.train_step(lambda: next(supply), torch.tensor(minimum))
        owners = [
            next(n for n, rows in enumerate(offered) if torch.equal(trainer.data["inputs"][b], rows["inputs"][b]))
            for b in range(3)
        ]
        history.append((trainer.steps.tolist(), trainer.halted.tolist(), owners))
    assert history == [
        ([1, 1, 1], [False, False, False], [0, 0, 0]),
        ([2, 2, 2], [True, False, True], [0, 0, 0]),
        ([1, 3, 1], [False, True, False], [2, 0, 2]),
        ([2, 1, 2], [True, False, True], [2, 3, 2]),
    ]


def test_positive_halt_value_ends_an_example():
    """A slot whose halt value is above 0 halts at its first step, unless exploration asks for more."""
    model = small()
    with torch.no_grad():
        model.q_head.bias.fill_(0.5)
    trainer = trm.TwinTrainer(model, batch_size=3)
    trainer.train_step(random_rows, torch.tensor([0, 2, 1]))
    assert trainer.halted.tolist() == [True, False, True]


def test_twin_learns_one_batch():
    """A hundred steps on one fixed batch solve it, in finite numbers throughout."""
    model = small(core="mlp", positions="none")
    trainer = trm.TwinTrainer(model, batch_size=3, lr=1e-2, puzzle_lr=1e-2, weight_decay=0.1, warmup=5)
    losses = []
    for _ in range(100):
        trainer.train_step(random_rows, torch.zeros(3, dtype=torch.int64))
        losses.append(trainer.last["loss"].item())
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.last["correct"].all()
    assert losses[-1] < losses[0] / 4
    assert (model.puzzle_emb.weights[random_rows()["puzzle_ids"]] != 0).all()
