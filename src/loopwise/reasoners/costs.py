"""What a supervision step costs, counted by torch's own counter on one puzzle (matrix products and attention)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.halting import HaltingPolicy, Judged
from loopwise.types import Batch, Prediction

__all__ = ["StepFlops", "count_flops"]


class StepFlops(NamedTuple):
    """FLOPs of one supervision step of one puzzle; a multiply-add counts as two.

    Where a policy lets the data decide how much is computed (a search for a fixed point, a ponder), these are those of
    fresh weights, or of the weights at hand.
    """

    solving: int
    training: int


def count_flops(
    reasoner: Reasoner[Any], gradient: GradientPolicy[Any], halting: HaltingPolicy[Any], length: int
) -> StepFlops:
    """Count a step on one puzzle of `length` positions. Leaves gradients as they are; call it before compiling."""
    device = next(reasoner.parameters()).device
    row = torch.zeros(1, length, dtype=torch.int64, device=device)
    batch = Batch(row, row, row[:, 0])
    state = reasoner.init_state(1, length)

    @torch.no_grad()
    def look() -> Prediction:
        return halting.step(reasoner, state, batch, gradient).prediction

    # Torch's counter knows attention only in its plain form; the fused kernels compute the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as solving:
        look()
    leaves = [p for p in reasoner.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as training:
        _, prediction, ponder = halting.step(reasoner, state, batch, gradient)
        no, first = torch.zeros_like(ponder, dtype=torch.bool), torch.ones_like(row[:, 0])
        loss = halting.loss(Judged(prediction, ponder, no, first, look, 0))
        torch.autograd.grad(prediction.logits.float().sum() + loss, leaves, allow_unused=True)
    return StepFlops(solving.get_total_flops(), training.get_total_flops())
