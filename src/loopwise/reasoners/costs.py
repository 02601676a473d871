"""What a step costs: counted while it runs, by torch's own counter of FLOPs and by a meter of everything else."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from loopwise.reasoners.base import GradientPolicy, Reasoner
from loopwise.reasoners.halting import HaltingPolicy, Judged
from loopwise.types import Batch, Prediction

__all__ = ["Meter", "StepFlops", "count_flops", "counting"]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of matrix products and attention in this block; a multiply-add counts as two."""
    # Torch's counter knows attention only in its plain form, and does not see into compiled networks; what is fused
    # computes the same products.
    eager = torch.compiler.set_stance("force_eager")
    with eager, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, of all that runs under it, what FLOPs do not tell. Attention fused in one kernel is one call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0  # of kernels, views left out
        self.traffic = 0  # bytes read and written by all kernels but matrix products
        self.alive = self.peak = 0  # bytes of the tensors made under it that are alive, and the most there ever were
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and count it and the storages in its result that are new."""
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = function(*args, **kwargs)
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not function.is_view:
            self.calls += 1
            if function._overloadpacket not in flop_registry:
                self.traffic += sum(t.numel() * t.element_size() for t in (*given, *made) if not t.is_sparse)
        held = {_storage(t).data_ptr() for t in given if not t.is_sparse}
        for tensor in made:
            if not tensor.is_sparse and _storage(tensor).data_ptr() not in held:
                self._add(_storage(tensor))
        return result

    def _add(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.alive -= size


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


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
    """Count a step on one puzzle of `length` positions. Leaves gradients as they are."""
    device = next(reasoner.parameters()).device
    row = torch.zeros(1, length, dtype=torch.int64, device=device)
    batch = Batch(row, row, row[:, 0])
    state = reasoner.init_state(1, length)

    @torch.no_grad()
    def look() -> Prediction:
        return halting.step(reasoner, state, batch, gradient).prediction

    with counting() as solving:
        look()
    leaves = [p for p in reasoner.parameters() if p.requires_grad]
    with torch.enable_grad(), counting() as training:
        _, prediction, ponder = halting.step(reasoner, state, batch, gradient)
        no, first = torch.zeros_like(ponder, dtype=torch.bool), torch.ones_like(row[:, 0])
        loss = halting.loss(Judged(prediction, ponder, no, first, look, 0))
        loss = loss + prediction.own_loss.sum() + prediction.hint_logits.float().sum()
        torch.autograd.grad(prediction.logits.float().sum() + loss, leaves, allow_unused=True)
    return StepFlops(solving.get_total_flops(), training.get_total_flops())
