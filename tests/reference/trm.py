"""A slow, literal twin of the published Tiny Recursive Model (TRM, arXiv 2510.04871), for comparison in tests.

It transcribes the project's fact sheet on the published model and shares no code with the library it checks: only
`torch` and `math` are imported. "facts N.M" in a comment names the item of that sheet which the line transcribes,
"facts 0.N" one of its numbered list of easily mistaken facts. Shapes: B batch, L tokens, P prefix positions,
S = P + L, d hidden size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = -100  # facts 1.5: the label that takes no part in loss or correctness


# ---------------------------------------------------------------- initialisation and elementary pieces


def truncated_normal(shape, std):
    """Draw a normal cut at +-2 sigma whose realised standard deviation is `std` (facts 1.1, init of linears)."""
    inside = math.erf(2.0 / math.sqrt(2.0))  # probability mass within +-2 sigma
    density = math.exp(-0.5 * 2.0**2) / math.sqrt(2.0 * math.pi)
    shrink = math.sqrt(1.0 - 2.0 * 2.0 * density / inside)  # 0.87963: the std of a unit normal cut at +-2
    u = torch.rand(shape, dtype=torch.float32) * (2.0 * inside) - inside  # uniform in (-inside, inside)
    z = math.sqrt(2.0) * torch.erfinv(u)  # a unit normal cut at +-2
    return torch.clamp(z, -2.0, 2.0) * (std / shrink)  # sigma x 1.13685, hard limits +-2.2737 std


def swiglu_width(d, expansion):
    """Return round(expansion * d * 2/3), rounded up to a multiple of 256 (facts 1.1, SwiGLU)."""
    return math.ceil(round(expansion * d * 2 / 3) / 256) * 256


def rms_norm(x, eps):
    """Root-mean-square norm over the last axis, in fp32 and without a learnable scale (facts 0.4)."""
    x32 = x.to(torch.float32)
    return (x32 * torch.rsqrt((x32 * x32).mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x, base):
    """Turn x [B, S, heads, head_dim] by its position, "rotate-half" layout, in fp32 (facts 1.1, RoPE)."""
    _, S, _, head_dim = x.shape
    half = head_dim // 2
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=x.device) / head_dim
    frequency = 1.0 / (base**exponent)  # [half]
    position = torch.arange(S, dtype=torch.float32, device=x.device)  # the prefix is counted too
    angle = position[:, None] * frequency[None, :]  # [S, half]
    angle = torch.cat([angle, angle], dim=-1)[None, :, None, :]  # first half and second half turn alike
    x32 = x.to(torch.float32)
    first, second = x32[..., :half], x32[..., half:]
    turned = torch.cat([-second, first], dim=-1)
    return (x32 * torch.cos(angle) + turned * torch.sin(angle)).to(x.dtype)


# ---------------------------------------------------------------- modules, named as in the published checkpoints


class TwinLinear(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(truncated_normal((d_out, d_in), 1.0 / math.sqrt(d_in)))  # facts 1.1: [out, in]

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))  # facts 1.1, precision: fp32 weight cast at the call; no bias


class TwinQHead(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, d))  # facts 1.1, Q head: zero weight; row 0 halt, row 1 continue
        self.bias = nn.Parameter(torch.full((2,), -5.0))  # facts 1.1, Q head: bias -5 for both

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).to(torch.float32)  # output cast to fp32


class TwinEmbedding(nn.Module):
    def __init__(self, rows, d):
        super().__init__()
        self.embedding_weight = nn.Parameter(truncated_normal((rows, d), 1.0 / math.sqrt(d)))  # facts 1.1: fp32 master


class TwinPuzzleTable(nn.Module):
    """The identifiers' vectors: a buffer, not a parameter (facts 0.8).

    `lookup` copies the batch's rows into the leaf `local_rows`, whose `.grad` holds one gradient per batch slot after
    a backward pass; `local_ids` says which table row each slot took.
    """

    def __init__(self, num_puzzle_ids, d):
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_puzzle_ids, d))  # facts 1.1: fp32, zero init, persistent
        self.local_rows, self.local_ids = None, None

    def lookup(self, ids):
        self.local_ids = ids.detach().clone()
        self.local_rows = self.weights[ids.long()].detach().clone().requires_grad_(True)
        return self.local_rows


class TwinSwiGLU(nn.Module):
    def __init__(self, d, expansion):
        super().__init__()
        width = swiglu_width(d, expansion)
        self.gate_up_proj = TwinLinear(d, 2 * width)
        self.down_proj = TwinLinear(width, d)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # facts 5: gate first, then up
        return self.down_proj(F.silu(gate) * up)  # facts 1.1, SwiGLU


class TwinAttention(nn.Module):
    def __init__(self, d, num_heads, rope_base):
        super().__init__()
        self.num_heads, self.rope_base = num_heads, rope_base  # rope_base None: no rotation
        self.qkv_proj = TwinLinear(d, 3 * d)
        self.o_proj = TwinLinear(d, d)

    def forward(self, x):
        B, S, d = x.shape
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)  # facts 5: q, k, v stacked in this order
        heads = (B, S, self.num_heads, d // self.num_heads)  # facts 5: heads contiguous
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        if self.rope_base is not None:
            q = rotate(q, self.rope_base)
            k = rotate(k, self.rope_base)
        # facts 1.1, attention: all positions see each other, no mask, no dropout, scale 1/sqrt(head_dim)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(mixed.transpose(1, 2).reshape(B, S, d))


class TwinBlock(nn.Module):
    def __init__(self, d, S, num_heads, expansion, core, rope_base, eps):
        super().__init__()
        self.core = core
        self.eps = eps
        if core == "attention":
            self.self_attn = TwinAttention(d, num_heads, rope_base)
        else:
            self.mlp_t = TwinSwiGLU(S, expansion)  # token mixing: a SwiGLU along the sequence
        self.mlp = TwinSwiGLU(d, expansion)

    def forward(self, x):
        if self.core == "attention":
            x = rms_norm(x + self.self_attn(x), self.eps)  # facts 1.1: post-norm
        else:
            t = x.transpose(1, 2)  # [B, d, S]
            t = rms_norm(t + self.mlp_t(t), self.eps)  # facts 0.5: normed over S, while transposed
            x = t.transpose(1, 2)
        return rms_norm(x + self.mlp(x), self.eps)


class TwinLevel(nn.Module):
    """The one network f of the paper: the injection is added to the state, then the blocks follow (facts 1.1)."""

    def __init__(self, blocks):
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, state, injection):
        x = state + injection
        for block in self.layers:
            x = block(x)
        return x


class TRMTwin(nn.Module):
    # core: "attention" | "mlp"; positions: "rope" | "learned" | "none"; the defaults are facts 1.1
    def __init__(
        self, vocab_size, seq_len, num_puzzle_ids, hidden_size=512, num_heads=8, num_layers=2, expansion=4.0,
        H_cycles=3, L_cycles=6, puzzle_emb_len=16, core="attention", positions="rope",
        forward_dtype=torch.bfloat16, rope_base=10000.0, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        assert core in ("attention", "mlp")
        assert positions in ("rope", "learned", "none")
        self.d, self.P, self.S = hidden_size, puzzle_emb_len, puzzle_emb_len + seq_len
        self.H_cycles, self.L_cycles = H_cycles, L_cycles
        self.positions, self.forward_dtype = positions, forward_dtype

        self.embed_tokens = TwinEmbedding(vocab_size, hidden_size)
        if positions == "learned":
            self.embed_pos = TwinEmbedding(self.S, hidden_size)  # facts 1.1: a table [S, d], the prefix included
        self.puzzle_emb = TwinPuzzleTable(num_puzzle_ids, hidden_size)
        rope = rope_base if positions == "rope" else None
        block = (hidden_size, self.S, num_heads, expansion, core, rope, eps)
        self.L_level = TwinLevel([TwinBlock(*block) for _ in range(num_layers)])
        self.lm_head = TwinLinear(hidden_size, vocab_size)  # facts 1.1: not tied to the token embedding
        self.q_head = TwinQHead(hidden_size)
        # facts 0.3: fixed random vectors, never learned, kept in the checkpoint in the forward dtype
        self.register_buffer("H_init", truncated_normal((hidden_size,), 1.0).to(forward_dtype))
        self.register_buffer("L_init", truncated_normal((hidden_size,), 1.0).to(forward_dtype))

    def initial_state(self, batch_size):
        """Return z_H and z_L [B, S, d]: the two initial vectors, the same in every row and position (facts 0.3)."""
        z_H = self.H_init[None, None, :].expand(batch_size, self.S, self.d).clone()
        z_L = self.L_init[None, None, :].expand(batch_size, self.S, self.d).clone()
        return z_H, z_L

    def embed(self, inputs, puzzle_ids):
        """Return x [B, S, d]: the prefix and the tokens, scaled by sqrt(d) (facts 1.1)."""
        B = inputs.shape[0]
        # facts 1.1: cast at lookup; here the table is cast first, so its gradient adds up in the forward dtype
        tokens = F.embedding(inputs.long(), self.embed_tokens.embedding_weight.to(self.forward_dtype))  # [B, L, d]
        learned = self.puzzle_emb.lookup(puzzle_ids).to(self.forward_dtype)[:, None, :]  # [B, 1, d]
        zeros = torch.zeros(B, self.P - 1, self.d, dtype=self.forward_dtype, device=tokens.device)
        x = torch.cat([learned, zeros, tokens], dim=1)  # facts 0.6: only position 0 carries the learned vector
        if self.positions == "learned":
            x = (x + self.embed_pos.embedding_weight.to(self.forward_dtype)) * (1.0 / math.sqrt(2.0))
        return x * math.sqrt(self.d)  # the prefix is scaled too

    def cycle(self, y, z, x):
        """One cycle of the paper: z is refined L_cycles times, then y once; x does not enter y (facts 1.3)."""
        for _ in range(self.L_cycles):
            z = self.L_level(z, y + x)  # z <- f(z, y + x)
        y = self.L_level(y, z)  # y <- f(y, z)
        return y, z

    def forward(self, state, inputs, puzzle_ids):
        """One supervision step: the new detached state, logits [B, L, V], and q_halt and q_continue [B] in fp32."""
        y, z = state[0].detach(), state[1].detach()
        x = self.embed(inputs, puzzle_ids)  # facts 1.3: with gradient
        with torch.no_grad():  # facts 0.2: all cycles but the last run without gradient
            for _ in range(self.H_cycles - 1):
                y, z = self.cycle(y, z, x)
        y, z = self.cycle(y, z, x)  # facts 0.2: all L_cycles + 1 calls of the last cycle are differentiated
        logits = self.lm_head(y)[:, self.P :]  # facts 1.1: read from z_H, prefix positions dropped
        q = self.q_head(y[:, 0])  # facts 0.6: the Q head reads position 0
        return (y.detach(), z.detach()), logits, q[:, 0], q[:, 1]


# ---------------------------------------------------------------- losses (facts 1.5)


def stablemax_s(u):
    """Return u + 1 for u >= 0, and 1 / (1 - u + 1e-30) for u < 0."""
    return torch.where(u >= 0, u + 1.0, 1.0 / (1.0 - u + 1e-30))


def _mean_per_sequence_then_sum(token_loss, labels):
    """Mean over each sequence's labelled tokens (divisor at least 1), then the sum over the batch."""
    total = torch.zeros((), dtype=token_loss.dtype, device=token_loss.device)
    for b in range(labels.shape[0]):
        valid = labels[b] != IGNORE
        total = total + token_loss[b][valid].sum() / max(int(valid.sum()), 1)
    return total


def _label_or_zero(labels):
    return torch.where(labels == IGNORE, torch.zeros_like(labels), labels).long()[..., None]


def stablemax_cross_entropy(logits, labels):
    s = stablemax_s(logits.to(torch.float64))
    p = s / s.sum(dim=-1, keepdim=True)
    token_loss = -torch.log(p.gather(-1, _label_or_zero(labels))[..., 0])
    return _mean_per_sequence_then_sum(token_loss, labels)


def softmax_cross_entropy(logits, labels):
    log_p = torch.log_softmax(logits.to(torch.float64), dim=-1)
    token_loss = -log_p.gather(-1, _label_or_zero(labels))[..., 0]
    return _mean_per_sequence_then_sum(token_loss, labels)


def sequence_correct(logits, labels):
    """Bool [B]: whether all labelled tokens are right by argmax; a row without labels counts as right."""
    return ((logits.argmax(dim=-1) == labels) | (labels == IGNORE)).all(dim=-1)


def halt_loss(q_halt, correct):
    """Binary cross-entropy of sigmoid(q_halt) against "the whole sequence is right", summed over the batch."""
    target = correct.to(q_halt.dtype)
    return (-target * F.logsigmoid(q_halt) - (1.0 - target) * F.logsigmoid(-q_halt)).sum()


def total_loss(logits, labels, q_halt, lm_loss=stablemax_cross_entropy):
    """Return LM + 0.5 * halt, summed over the batch: the caller divides by the global batch size."""
    return lm_loss(logits, labels) + 0.5 * halt_loss(q_halt, sequence_correct(logits, labels))


# ---------------------------------------------------------------- optimisation (facts 1.6)


@torch.no_grad()
def adam_atan2_step(params, grads, moments, step, lr, betas=(0.9, 0.95), weight_decay=0.1):
    """Update `params` and `moments` (a list of (m, v)) in place; `step` is 1 at the first call."""
    beta1, beta2 = betas
    for p, g, (m, v) in zip(params, grads, moments, strict=True):
        p.copy_(p * (1.0 - lr * weight_decay))  # facts 0.7: on every parameter
        m.copy_(m + (1.0 - beta1) * (g - m))  # lerp(m, g, 1 - beta1)
        v.copy_(v + (1.0 - beta2) * (g * g - v))  # lerp(v, g^2, 1 - beta2)
        denominator = torch.sqrt(v) / math.sqrt(1.0 - beta2**step)
        p.copy_(p - lr / (1.0 - beta1**step) * torch.atan2(m, denominator))  # first correction outside the atan2


@torch.no_grad()
def sign_sgd_step(table, ids, row_grads, lr, weight_decay):
    """Update the touched rows of `table` in place, after summing the gradients of equal ids."""
    summed = {}
    for slot in range(len(ids)):
        i = int(ids[slot])
        summed[i] = summed[i] + row_grads[slot] if i in summed else row_grads[slot].clone()
    for i, g in summed.items():
        table[i] = table[i] * (1.0 - lr * weight_decay) - lr * torch.sign(g)


@torch.no_grad()
def ema_step(shadow, params, decay=0.999):
    """Move each shadow towards its parameter, in place."""
    for s, p in zip(shadow, params, strict=True):
        s.copy_(decay * s + (1.0 - decay) * p)


def learning_rate(step, base, warmup, total, min_ratio=1.0):
    """Linear warm-up (`step` is 1 at the first update), then a cosine down to min_ratio * base at `total`."""
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


# ---------------------------------------------------------------- carry and training step (facts 1.4)


class TwinTrainer:
    """Batch slots that keep their example until it halts; one optimizer step per supervision step (facts 0.1).

    Slot fields: z_H, z_L [B, S, d], steps int32 [B], halted bool [B], data {"inputs", "labels", "puzzle_ids"}.
    Optimizer fields: step (updates done), params and names, moments, shadow (the EMA). `last` keeps what the latest
    `train_step` saw, gradients included.
    """

    def __init__(
        self, model, batch_size, lr=1e-4, puzzle_lr=1e-4, weight_decay=1.0, puzzle_weight_decay=1.0,
        betas=(0.9, 0.95), warmup=2000, total_steps=65104, min_ratio=1.0, ema_decay=0.999, max_steps=16,
        global_batch=None, lm_loss=stablemax_cross_entropy,
    ):  # fmt: skip
        self.model, self.lm_loss, self.max_steps = model, lm_loss, max_steps
        self.lr, self.puzzle_lr, self.betas = lr, puzzle_lr, betas
        self.weight_decay, self.puzzle_weight_decay = weight_decay, puzzle_weight_decay
        self.warmup, self.total_steps, self.min_ratio, self.ema_decay = warmup, total_steps, min_ratio, ema_decay
        self.global_batch = batch_size if global_batch is None else global_batch

        self.names, self.params = zip(*model.named_parameters(), strict=True)
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.params]
        self.shadow = [p.detach().clone() for p in self.params]  # facts 1.6, EMA: starts at the initial weights
        self.step, self.last = 0, {}
        self.z_H, self.z_L = model.initial_state(batch_size)  # arbitrary: every slot starts halted
        self.steps = torch.zeros(batch_size, dtype=torch.int32)
        self.halted = torch.ones(batch_size, dtype=torch.bool)
        tokens = torch.zeros(batch_size, model.S - model.P, dtype=torch.int64)
        self.data = {"inputs": tokens, "labels": tokens.clone(), "puzzle_ids": tokens[:, 0].clone()}

    def refill(self, incoming):
        """Halted slots take initial states, step 0 and their row of `incoming`; the other rows are discarded."""
        z_H, z_L = self.model.initial_state(len(self.halted))
        for b in range(len(self.halted)):
            if self.halted[b]:
                self.z_H[b], self.z_L[b], self.steps[b] = z_H[b], z_L[b], 0
                for key in self.data:
                    self.data[key][b] = incoming[key][b]

    def train_step(self, next_rows_fn, explore_draws):
        """One step; `next_rows_fn()` gives a whole batch, `explore_draws` int [B] the minimum steps (0: none)."""
        self.refill(next_rows_fn())
        for p in self.params:
            p.grad = None
        state = (self.z_H, self.z_L)
        (self.z_H, self.z_L), logits, q_halt, _ = self.model(state, self.data["inputs"], self.data["puzzle_ids"])
        self.steps = self.steps + 1

        # facts 1.5: backward on total / global batch size, no clipping
        loss = total_loss(logits, self.data["labels"], q_halt, self.lm_loss)
        (loss / self.global_batch).backward()
        self.step = self.step + 1
        rate = learning_rate(self.step, self.lr, self.warmup, self.total_steps, self.min_ratio)
        puzzle_rate = learning_rate(self.step, self.puzzle_lr, self.warmup, self.total_steps, self.min_ratio)
        grads, puzzle = [p.grad.clone() for p in self.params], self.model.puzzle_emb
        adam_atan2_step(self.params, grads, self.moments, self.step, rate, self.betas, self.weight_decay)
        sign_sgd_step(puzzle.weights, puzzle.local_ids, puzzle.local_rows.grad, puzzle_rate, self.puzzle_weight_decay)
        ema_step(self.shadow, self.params, self.ema_decay)  # facts 1.6: after every step, trainable parameters only

        # facts 1.4: the halt rule, delayed by the exploration minimum
        wants_halt = (self.steps >= self.max_steps) | (q_halt.detach() > 0)
        self.halted = wants_halt & (self.steps >= explore_draws)
        self.last = {
            "logits": logits.detach(),
            "q_halt": q_halt.detach(),
            "correct": sequence_correct(logits.detach(), self.data["labels"]),
            "loss": loss.detach(),
            "grads": dict(zip(self.names, grads, strict=True)),
            "puzzle_grads": puzzle.local_rows.grad.clone(),
            "lr": rate,
        }
