"""A slow, literal twin of the looped transformer (arXiv 1807.03819, 2311.12424), for comparison in tests.

One state, z <- f(z + x), some cycles of it, the gradient through all. It shares no code with the library it checks; the
blocks, the embedding and the heads are those of TRM's twin. Shapes: B batch, L tokens, P prefix positions, S = P + L,
d hidden size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
import trm
from torch import nn


class LoopedTwin(nn.Module):
    # tied: one network f for all cycles; else a network of its own for each cycle
    def __init__(
        self, vocab_size, seq_len, num_puzzle_ids, hidden_size, num_heads, num_layers, cycles, tied=True,
        expansion=4.0, puzzle_emb_len=1, positions="rope", forward_dtype=torch.float32, rope_base=10000.0, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        assert positions in ("rope", "learned", "none")
        self.d, self.P, self.S = hidden_size, puzzle_emb_len, puzzle_emb_len + seq_len
        self.cycles, self.tied = cycles, tied
        self.positions, self.forward_dtype = positions, forward_dtype
        self.embed_tokens = trm.TwinEmbedding(vocab_size, hidden_size)
        if positions == "learned":
            self.embed_pos = trm.TwinEmbedding(self.S, hidden_size)
        self.puzzle_emb = trm.TwinPuzzleTable(num_puzzle_ids, hidden_size)
        rope = rope_base if positions == "rope" else None
        block = (hidden_size, self.S, num_heads, expansion, "attention", rope, eps)
        self.levels = nn.ModuleList(
            trm.TwinLevel([trm.TwinBlock(*block) for _ in range(num_layers)]) for _ in range(1 if tied else cycles)
        )
        self.lm_head = trm.TwinLinear(hidden_size, vocab_size)
        self.q_head = trm.TwinQHead(hidden_size)
        self.register_buffer("z_init", trm.truncated_normal((hidden_size,), 1.0).to(forward_dtype))

    def initial_state(self, batch_size):
        """Return z [B, S, d]: the fixed random vector, the same in every row and position."""
        return self.z_init[None, None, :].expand(batch_size, self.S, self.d).clone()

    def embed(self, inputs, puzzle_ids):
        """Return x [B, S, d]: the prefix and the tokens, scaled by sqrt(d), as in TRM's twin."""
        tokens = F.embedding(inputs.long(), self.embed_tokens.embedding_weight.to(self.forward_dtype))
        learned = self.puzzle_emb.lookup(puzzle_ids).to(self.forward_dtype)[:, None, :]
        zeros = torch.zeros(inputs.shape[0], self.P - 1, self.d, dtype=self.forward_dtype)
        x = torch.cat([learned, zeros, tokens], dim=1)
        if self.positions == "learned":
            x = (x + self.embed_pos.embedding_weight.to(self.forward_dtype)) * (1.0 / math.sqrt(2.0))
        return x * math.sqrt(self.d)

    def loop(self, z, x):
        """All cycles of one supervision step, differentiated from the first to the last."""
        for cycle in range(self.cycles):
            f = self.levels[0] if self.tied else self.levels[cycle]
            z = f(z, x)  # the injection is added to the state in front of the blocks: f(z + x)
        return z

    def read(self, z):
        """Logits [B, L, V] from the tokens' positions, q_halt and q_continue [B] from position 0."""
        q = self.q_head(z[:, 0])
        return self.lm_head(z)[:, self.P :], q[:, 0], q[:, 1]

    def forward(self, z, inputs, puzzle_ids):
        """One supervision step: the new detached state, logits, q_halt and q_continue."""
        z = self.loop(z.detach(), self.embed(inputs, puzzle_ids))
        return z.detach(), *self.read(z)
