"""Optimizers that torch does not have, in plain torch: AdamATan2, and sign-SGD for the few touched rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["AdamATan2", "SparseSignSGD", "learning_rate"]


@final
class AdamATan2(Optimizer):
    """Adam with atan2 in place of the division: no epsilon, and no dependence on the scale of the gradient.

        p <- p (1 - lr wd);   m <- lerp(m, g, 1 - b1);   v <- lerp(v, g^2, 1 - b2)
        p <- p - lr / (1 - b1^t) atan2(m, sqrt(v / (1 - b2^t)))

    Source: arXiv 2407.05872, in the form that HRM and TRM use: the first moment's correction stands outside the atan2
    and there is no scale constant, so the largest update is about pi/4 lr.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient, many parameters in one call."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            # A parameter whose first gradient came later has a bias correction of its own.
            by_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_step.setdefault(self._count(p), []).append(p)
            for number, params in by_step.items():
                self._update(group, params, number)
        return loss

    def _count(self, p: Tensor) -> int:
        if not self.state[p]:
            self.state[p] = {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        self.state[p]["step"] += 1
        return int(self.state[p]["step"])

    def _update(self, group: dict[str, Any], params: list[Tensor], step: int) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        first = [self.state[p]["m"] for p in params]
        second = [self.state[p]["v"] for p in params]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        scale = torch._foreach_div(second, 1 - beta2**step)
        torch._foreach_sqrt_(scale)
        for p, m, s in zip(params, first, scale, strict=True):
            p.add_(torch.atan2(m, s, out=s), alpha=-lr / (1 - beta1**step))


@final
class SparseSignSGD(Optimizer):
    """row <- row (1 - lr wd) - lr sign(g), for the rows of a table that the batch touched, and no others.

    The gradient of a row is the sum over the slots that hold the row, before the sign is taken. The parameter's
    gradient is sparse, as `nn.Embedding(sparse=True)` makes it.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of the touched rows."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            lr, weight_decay = group["lr"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is not None:
                    grad = p.grad.coalesce()
                    (ids,) = grad.indices()
                    p[ids] = p[ids] * (1 - lr * weight_decay) - lr * grad.values().sign()
        return loss


def learning_rate(step: int, peak: float, warmup: int, total: int, end: float) -> float:
    """Learning rate of step `step` (the first is 1): linear warm-up, then a cosine from `peak` to `end` x peak.

    `end` = 1 keeps it constant, as the published recipes do.
    """
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))
