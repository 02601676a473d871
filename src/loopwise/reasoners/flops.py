"""What a supervision step costs, counted by torch's own counter on one puzzle (matrix products and attention)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.types import Batch

__all__ = ["StepFlops", "count_flops"]


class StepFlops(NamedTuple):
    """FLOPs of one supervision step of one puzzle; a multiply-add counts as two."""

    solving: int
    training: int


def count_flops(reasoner: Reasoner[Any], gradient: GradientPolicy, length: int) -> StepFlops:
    """Count a step on one puzzle of `length` positions. Leaves gradients as they are; call it before compiling."""
    device = next(reasoner.parameters()).device
    row = torch.zeros(1, length, dtype=torch.int64, device=device)
    batch = Batch(row, row, row[:, 0])
    state = reasoner.init_state(1, length)
    # Torch's counter knows attention only in its plain form; the fused kernels compute the same products.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as solving:
        reasoner(state, batch, gradient)
    leaves = [p for p in reasoner.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as training:
        _, prediction = reasoner(state, batch, gradient)
        total = prediction.logits.float().sum() + prediction.halt_logits.sum() + prediction.continue_logits.sum()
        torch.autograd.grad(total, leaves, allow_unused=True)
    return StepFlops(solving.get_total_flops(), training.get_total_flops())
