"""A slow, literal twin of the deep equilibrium model (DEQ, arXiv 1909.01377), for comparison in tests.

The fixed point z* = f(z* + U x) is iterated to, one row at a time, and the gradient is theorem 1 of the paper taken at
its word: the dense Jacobian J = df/dz at z*, a dense solve of (I - J^T) g = dL/dz*, then the product of g with the
derivatives of f by its parameters and by its input. It shares no code with the library it checks; the blocks, the
embedding and the heads are those of TRM's twin. Shapes: B batch, L tokens, P prefix positions, S = P + L, d hidden
size, V vocabulary, n = S d.
"""

import math

import torch
import torch.nn.functional as F
import trm
from torch import nn


class DEQTwin(nn.Module):
    def __init__(
        self, vocab_size, seq_len, num_puzzle_ids, hidden_size, num_heads, num_layers, expansion=4.0, puzzle_emb_len=1,
        positions="rope", forward_dtype=torch.float32, rope_base=10000.0, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        assert positions in ("rope", "learned", "none")
        self.d, self.P, self.S = hidden_size, puzzle_emb_len, puzzle_emb_len + seq_len
        self.positions, self.forward_dtype = positions, forward_dtype
        self.embed_tokens = trm.TwinEmbedding(vocab_size, hidden_size)
        if positions == "learned":
            self.embed_pos = trm.TwinEmbedding(self.S, hidden_size)
        self.puzzle_emb = trm.TwinPuzzleTable(num_puzzle_ids, hidden_size)
        rope = rope_base if positions == "rope" else None
        block = (hidden_size, self.S, num_heads, expansion, "attention", rope, eps)
        self.U = trm.TwinLinear(hidden_size, hidden_size)
        self.level = trm.TwinLevel([trm.TwinBlock(*block) for _ in range(num_layers)])
        self.lm_head = trm.TwinLinear(hidden_size, vocab_size)
        self.q_head = trm.TwinQHead(hidden_size)
        self.register_buffer("z_init", trm.truncated_normal((hidden_size,), 1.0).to(forward_dtype))

    def embed(self, inputs, puzzle_ids):
        """Return x [B, S, d]: the prefix and the tokens, scaled by sqrt(d), as in TRM's twin."""
        tokens = F.embedding(inputs.long(), self.embed_tokens.embedding_weight.to(self.forward_dtype))
        learned = self.puzzle_emb.lookup(puzzle_ids).to(self.forward_dtype)[:, None, :]
        zeros = torch.zeros(inputs.shape[0], self.P - 1, self.d, dtype=self.forward_dtype)
        x = torch.cat([learned, zeros, tokens], dim=1)
        if self.positions == "learned":
            x = (x + self.embed_pos.embedding_weight.to(self.forward_dtype)) * (1.0 / math.sqrt(2.0))
        return x * math.sqrt(self.d)

    def f(self, z, x):
        """The function of which z* is the fixed point, for one row: z, x [S, d] -> [S, d]."""
        return self.level(z[None], self.U(x)[None])[0]

    @torch.no_grad()
    def equilibrium(self, x, tolerance, most=5000):
        """Return z* of one row: half of the old and half of the new, until no component moves by the tolerance."""
        z = self.z_init[None, :].expand(self.S, self.d).clone()
        for _ in range(most):
            new = self.f(z, x)
            if (new - z).abs().max() <= tolerance:
                return new
            z = 0.5 * z + 0.5 * new
        raise AssertionError(f"no fixed point: it still moves by {(new - z).abs().max():.1e}")

    def jacobian(self, z, x):
        """Return J [n, n], J[i, j] = df_i/dz_j at z, of one row."""
        n = self.S * self.d
        J = torch.autograd.functional.jacobian(lambda z: self.f(z, x.detach()), z)
        return J.reshape(n, n)

    def read(self, z):
        """Logits [B, L, V] from the tokens' positions, q_halt and q_continue [B] from position 0."""
        q = self.q_head(z[:, 0])
        return self.lm_head(z)[:, self.P :], q[:, 0], q[:, 1]

    def forward(self, inputs, puzzle_ids, tolerance):
        """The fixed points z* [B, S, d] of all rows, and logits, q_halt and q_continue."""
        x = self.embed(inputs, puzzle_ids)
        z = torch.stack([self.equilibrium(row, tolerance) for row in x])
        return z, *self.read(z)

    def backward(self, inputs, puzzle_ids, tolerance, loss):
        """Leave the gradient of `loss(logits, q_halt, q_continue)` in every parameter; returns the fixed points and the
        Jacobians' largest eigenvalues by absolute value.
        """
        x = self.embed(inputs, puzzle_ids)
        z = torch.stack([self.equilibrium(row, tolerance) for row in x]).requires_grad_(True)
        loss(*self.read(z)).backward()  # the heads' own gradients, and v = dL/dz*
        radii = []
        for b in range(len(z)):
            J = self.jacobian(z[b].detach(), x[b]).to(torch.float64)
            v = z.grad[b].reshape(-1).to(torch.float64)
            g = torch.linalg.solve(torch.eye(len(v), dtype=torch.float64) - J.T, v)  # (I - J^T) g = v
            self.f(z[b].detach(), x[b]).backward(g.to(z.dtype).reshape(z[b].shape), retain_graph=True)
            radii.append(torch.linalg.eigvals(J).abs().max().item())
        return z.detach(), radii
