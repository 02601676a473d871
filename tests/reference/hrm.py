"""A slow, literal twin of the published Hierarchical Reasoning Model (HRM, arXiv 2506.21734), for comparison in tests.

It transcribes part 2 of the project's fact sheet and shares no code with the library it checks. What HRM has in common
with TRM (facts 2.1: blocks, embeddings, heads, losses, optimizers) it takes from TRM's twin. "facts N.M" in a comment
names the item of that sheet which the line transcribes. Shapes: B batch, L tokens, P prefix positions, S = P + L,
d hidden size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
import trm
from torch import nn


class HRMTwin(nn.Module):
    # positions: "rope" | "learned" (facts 2.1: no mixer, no "none"); the defaults are facts 2.1
    def __init__(
        self, vocab_size, seq_len, num_puzzle_ids, hidden_size=512, num_heads=8, H_layers=4, L_layers=4, expansion=4.0,
        H_cycles=2, L_cycles=2, puzzle_emb_len=1, positions="rope", forward_dtype=torch.bfloat16, rope_base=10000.0,
        eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        assert positions in ("rope", "learned")
        self.d, self.P, self.S = hidden_size, puzzle_emb_len, puzzle_emb_len + seq_len
        self.H_cycles, self.L_cycles = H_cycles, L_cycles
        self.positions, self.forward_dtype = positions, forward_dtype

        self.embed_tokens = trm.TwinEmbedding(vocab_size, hidden_size)
        if positions == "learned":
            self.embed_pos = trm.TwinEmbedding(self.S, hidden_size)
        self.puzzle_emb = trm.TwinPuzzleTable(num_puzzle_ids, hidden_size)
        rope = rope_base if positions == "rope" else None
        block = (hidden_size, self.S, num_heads, expansion, "attention", rope, eps)
        # facts 2.1: two networks, of four blocks each as published
        self.H_level = trm.TwinLevel([trm.TwinBlock(*block) for _ in range(H_layers)])
        self.L_level = trm.TwinLevel([trm.TwinBlock(*block) for _ in range(L_layers)])
        self.lm_head = trm.TwinLinear(hidden_size, vocab_size)
        self.q_head = trm.TwinQHead(hidden_size)
        # facts 0.3: fixed random vectors, never learned
        self.register_buffer("H_init", trm.truncated_normal((hidden_size,), 1.0).to(forward_dtype))
        self.register_buffer("L_init", trm.truncated_normal((hidden_size,), 1.0).to(forward_dtype))

    def initial_state(self, batch_size):
        """Return z_H and z_L [B, S, d]: the two initial vectors, the same in every row and position (facts 0.3)."""
        z_H = self.H_init[None, None, :].expand(batch_size, self.S, self.d).clone()
        z_L = self.L_init[None, None, :].expand(batch_size, self.S, self.d).clone()
        return z_H, z_L

    def embed(self, inputs, puzzle_ids):
        """Return x [B, S, d]: the prefix and the tokens, scaled by sqrt(d) (facts 1.1 and 2.1)."""
        B = inputs.shape[0]
        tokens = F.embedding(inputs.long(), self.embed_tokens.embedding_weight.to(self.forward_dtype))  # [B, L, d]
        learned = self.puzzle_emb.lookup(puzzle_ids).to(self.forward_dtype)[:, None, :]  # [B, 1, d]
        zeros = torch.zeros(B, self.P - 1, self.d, dtype=self.forward_dtype)
        x = torch.cat([learned, zeros, tokens], dim=1)
        if self.positions == "learned":
            x = (x + self.embed_pos.embedding_weight.to(self.forward_dtype)) * (1.0 / math.sqrt(2.0))
        return x * math.sqrt(self.d)

    def forward(self, state, inputs, puzzle_ids):
        """One supervision step: the new detached state, logits [B, L, V], and q_halt and q_continue [B] in fp32."""
        z_H, z_L = state[0].detach(), state[1].detach()
        x = self.embed(inputs, puzzle_ids)
        with torch.no_grad():  # facts 0.2: all calls but the very last L and the very last H run without gradient
            for H_step in range(self.H_cycles):
                for L_step in range(self.L_cycles):
                    if not (H_step == self.H_cycles - 1 and L_step == self.L_cycles - 1):
                        z_L = self.L_level(z_L, z_H + x)  # facts 2.1: z_L <- L(z_L, z_H + x)
                if H_step != self.H_cycles - 1:
                    z_H = self.H_level(z_H, z_L)  # facts 2.1: z_H <- H(z_H, z_L); x does not enter
        z_L = self.L_level(z_L, z_H + x)  # facts 2.1: the one-step gradient begins here
        z_H = self.H_level(z_H, z_L)
        logits = self.lm_head(z_H)[:, self.P :]  # facts 1.1: read from z_H, prefix positions dropped
        q = self.q_head(z_H[:, 0])  # facts 0.6: the Q head reads position 0
        return (z_H.detach(), z_L.detach()), logits, q[:, 0], q[:, 1]


# ---------------------------------------------------------------- Q-learning (facts 2.1, halt rule and halt losses)


def continue_target(next_q_halt, next_q_continue, steps, max_steps):
    """What q_continue should be [B]: the better of the next two values, or the next q_halt if this step is the last."""
    target = torch.zeros_like(next_q_halt)
    for b in range(len(target)):
        if steps[b] >= max_steps:
            target[b] = torch.sigmoid(next_q_halt[b])
        else:
            target[b] = torch.sigmoid(torch.max(next_q_halt[b], next_q_continue[b]))
    return target


def continue_loss(q_continue, target):
    """Binary cross-entropy of sigmoid(q_continue) against `target`, summed over the batch."""
    return (-target * F.logsigmoid(q_continue) - (1.0 - target) * F.logsigmoid(-q_continue)).sum()


class HRMTwinTrainer(trm.TwinTrainer):
    """Slots and optimizers of TRM's twin (facts 2.1: TRM's code descends from HRM's), with HRM's Q-learning.

    `target_every` k: q_continue is trained at every k-th optimizer step only, the first of which is the first step
    (facts 4: the ARC Prize's runs have k = 4); at the others the second forward and its loss are left out.
    """

    def __init__(self, model, batch_size, target_every=1, **options):
        super().__init__(model, batch_size, **options)
        self.target_every = target_every

    def train_step(self, next_rows_fn, explore_draws):
        """One step; `next_rows_fn()` gives a whole batch, `explore_draws` int [B] the minimum steps (0: none)."""
        self.refill(next_rows_fn())
        for p in self.params:
            p.grad = None
        inputs, labels, puzzle_ids = self.data["inputs"], self.data["labels"], self.data["puzzle_ids"]
        state, logits, q_halt, q_continue = self.model((self.z_H, self.z_L), inputs, puzzle_ids)
        puzzle = self.model.puzzle_emb
        local_ids, local_rows = puzzle.local_ids, puzzle.local_rows  # the second forward makes others
        self.z_H, self.z_L = state
        self.steps = self.steps + 1

        correct = trm.sequence_correct(logits.detach(), labels)
        halting = trm.halt_loss(q_halt, correct)
        next_q_halt = next_q_continue = None
        if self.step % self.target_every == 0:
            with torch.no_grad():  # facts 2.1: a second full forward, from the new state, on the same data
                _, _, next_q_halt, next_q_continue = self.model(state, inputs, puzzle_ids)
                target = continue_target(next_q_halt, next_q_continue, self.steps, self.max_steps)
            halting = halting + continue_loss(q_continue, target)
        answer = self.lm_loss(logits, labels)
        loss = answer + 0.5 * halting  # facts 1.5 and 2.1: LM + 0.5 * (halt + continue)
        (loss / self.global_batch).backward()

        self.step = self.step + 1
        rate = trm.learning_rate(self.step, self.lr, self.warmup, self.total_steps, self.min_ratio)
        puzzle_rate = trm.learning_rate(self.step, self.puzzle_lr, self.warmup, self.total_steps, self.min_ratio)
        grads = [p.grad.clone() for p in self.params]
        trm.adam_atan2_step(self.params, grads, self.moments, self.step, rate, self.betas, self.weight_decay)
        trm.sign_sgd_step(puzzle.weights, local_ids, local_rows.grad, puzzle_rate, self.puzzle_weight_decay)
        trm.ema_step(
            self.shadow, self.params, self.ema_decay
        )  # not HRM's (facts 2.1), but the library's training has it

        # facts 2.1, halt rule: q_halt > q_continue, or the last step; delayed by the exploration minimum
        wants_halt = (self.steps >= self.max_steps) | (q_halt.detach() > q_continue.detach())
        self.halted = wants_halt & (self.steps >= explore_draws)
        self.last = {
            "loss": loss.detach(),
            "answer_loss": answer.detach(),
            "halting_loss": halting.detach(),
            "next_q_halt": next_q_halt,
            "next_q_continue": next_q_continue,
            "lr": rate,
        }
