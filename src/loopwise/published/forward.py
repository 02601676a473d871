"""The published HRM and TRM, written down once more: a plain forward pass on the tensors of a published checkpoint.

An import is checked against it. It shares no code with the reasoners, follows the facts of the published code line by
line, and uses the names of its files (`loopwise.published.layout` lists them). B puzzles, L tokens, P positions of the
prefix, S = P + L, d the hidden size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Schedule", "published_steps"]

Weights = dict[str, Tensor]


class Schedule(NamedTuple):
    """What a published checkpoint does not say of itself."""

    heads: int
    H_cycles: int
    L_cycles: int
    prefix: int  # P
    rotary: bool


def published_steps(
    weights: Weights, schedule: Schedule, tokens: Tensor, identifiers: Tensor, steps: int
) -> list[tuple[Tensor, Tensor]]:
    """(logits [B, L, V], halting and continuing value [B, 2]) after each supervision step, in float32.

    `tokens` is [B, L], `identifiers` [B]; `weights` are in float32 and without prefixes in their names.
    """
    x = _embed(weights, schedule, tokens, identifiers)
    z_H, z_L = (weights[name].expand(x.shape) for name in ("H_init", "L_init"))
    # HRM has two networks. TRM has one, under the name of the fast one, and applies it in both places.
    slow = "H_level" if "H_level.layers.0.mlp.down_proj.weight" in weights else "L_level"
    said = []
    for _ in range(steps):
        for _ in range(schedule.H_cycles):
            for _ in range(schedule.L_cycles):
                z_L = _level(weights, "L_level", schedule, z_L, z_H + x)
            z_H = _level(weights, slow, schedule, z_H, z_L)
        logits = F.linear(z_H, weights["lm_head.weight"])[:, schedule.prefix :]
        said.append((logits, F.linear(z_H[:, 0], weights["q_head.weight"], weights["q_head.bias"])))
    return said


def _embed(weights: Weights, schedule: Schedule, tokens: Tensor, identifiers: Tensor) -> Tensor:
    """The input x [B, S, d]: the identifier's vector, zeros up to P, the tokens; all of it times sqrt(d)."""
    embedded = weights["embed_tokens.embedding_weight"][tokens]
    size = embedded.shape[2]
    first = weights["puzzle_emb.weights"][identifiers]
    prefix = F.pad(first, (0, (schedule.prefix - 1) * size)).view(len(tokens), schedule.prefix, size)
    x = torch.cat((prefix, embedded), dim=1)
    if "embed_pos.embedding_weight" in weights:
        x = (x + weights["embed_pos.embedding_weight"]) * math.sqrt(0.5)
    return x * math.sqrt(size)


def _level(weights: Weights, level: str, schedule: Schedule, state: Tensor, injected: Tensor) -> Tensor:
    """Add what is injected to a state [B, S, d], then apply the blocks of a network."""
    x, number = state + injected, 0
    while (block := f"{level}.layers.{number}") + ".mlp.down_proj.weight" in weights:
        if block + ".mlp_t.down_proj.weight" in weights:
            turned = x.transpose(1, 2)  # the norm too is taken while transposed, over the positions
            x = _norm(turned + _swiglu(weights, block + ".mlp_t", turned)).transpose(1, 2)
        else:
            x = _norm(x + _attention(weights, block + ".self_attn", schedule, x))
        x = _norm(x + _swiglu(weights, block + ".mlp", x))
        number += 1
    return x


def _attention(weights: Weights, name: str, schedule: Schedule, x: Tensor) -> Tensor:
    """Every position [B, S, d] sees every other; no mask."""
    qkv = F.linear(x, weights[name + ".qkv_proj.weight"]).chunk(3, dim=2)
    q, k, v = (part.view(*x.shape[:2], schedule.heads, -1) for part in qkv)  # each [B, S, heads, d / heads]
    if schedule.rotary:
        q, k = _rotated(q), _rotated(k)
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return F.linear(mixed.transpose(1, 2).flatten(2), weights[name + ".o_proj.weight"])


def _rotated(x: Tensor) -> Tensor:
    """Turn [B, S, heads, size] by its position, counted from the first of the prefix; halves are the pairs."""
    half = x.shape[3] // 2
    frequency = 1.0 / 10_000.0 ** (torch.arange(half, dtype=torch.float32) * 2 / x.shape[3])
    angle = (torch.arange(x.shape[1], dtype=torch.float32)[:, None] * frequency).repeat(1, 2)[:, None]
    return x * angle.cos() + torch.cat((-x[..., half:], x[..., :half]), dim=3) * angle.sin()


def _swiglu(weights: Weights, name: str, x: Tensor) -> Tensor:
    """down(silu(gate) * up), over the last axis; the gate comes first."""
    gate, up = F.linear(x, weights[name + ".gate_up_proj.weight"]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, weights[name + ".down_proj.weight"])


def _norm(x: Tensor) -> Tensor:
    """Divide by the root of the mean square over the last axis; there is no learned scale."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
