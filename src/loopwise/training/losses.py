"""Losses and accuracies of a proposed answer. Source: the HRM paper (arXiv 2506.21734) for stablemax in this field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from loopwise.types import IGNORE_LABEL

__all__ = [
    "LOSSES",
    "Loss",
    "answer_loss",
    "rightness",
    "row_losses",
    "softmax_cross_entropy",
    "stablemax_cross_entropy",
]

Loss: TypeAlias = Literal["stablemax", "softmax"]


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p[label] with p = s(u) / sum s(u), s(u) = u + 1 for u >= 0, else 1 / (1 - u), in float64: [B, L].

    Grows linearly where softmax grows exponentially, so that confident logits do not lose their gradient
    (arXiv 2501.04697). Zero where the label is IGNORE_LABEL.
    """
    wide = logits.double()
    # Both branches get a harmless argument where the other one is taken: no division by zero, no NaN in the gradient.
    share = torch.where(wide < 0, 1 / (1 - wide.clamp(max=0)), wide + 1)
    asked = labels != IGNORE_LABEL
    chosen = share.gather(-1, torch.where(asked, labels, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(asked, share.sum(-1).log() - chosen.log(), 0.0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The usual cross-entropy in float32, zero where the label is IGNORE_LABEL: [B, L]."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_LABEL, reduction="none")
    return flat.view(labels.shape)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stablemax": stablemax_cross_entropy,
    "softmax": softmax_cross_entropy,
}


def rightness(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens right [B, L] bool, rows right [B] bool): a row is right when every asked position is."""
    asked = labels != IGNORE_LABEL
    right = (logits.argmax(-1) == labels) & asked
    return right, (right == asked).all(-1)


def answer_loss(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss summed over the batch, tokens right [B, L] bool, rows right [B] bool).

    Each row's loss is the mean over its asked positions, so that long and short puzzles weigh the same.
    """
    return row_losses(loss, logits, labels).sum(), *rightness(logits, labels)


def row_losses(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """[B], the mean loss of each row over its asked positions."""
    return LOSSES[loss](logits, labels).sum(-1) / (labels != IGNORE_LABEL).sum(-1).clamp(min=1)
