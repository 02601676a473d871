"""Whether onnxruntime computes the same as PyTorch, on random puzzles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from loopwise.errors import ExportError
from loopwise.export.graphs import SAID, Tracer
from loopwise.reasoners.base import GradientPolicy, Recursion, State, Update
from loopwise.runtime import generator
from loopwise.types import Batch

__all__ = ["TOLERANCE", "compare"]

TOLERANCE = 1e-3
"""Largest difference between onnxruntime and PyTorch after a step from the same state; relative where values exceed 1.

Within a step, not after many: on puzzles that a model has never seen the likes of, its recursion is chaotic and blows
rounding up (shipped 6x6 Sudoku, random cells: 1.5e-4 in logits up to 31 after one step, 0.5 after eight).

A step of many updates blows it up by itself: after the 64 of `sudoku-extreme`, PyTorch with an ulp of noise upon each
update is 0.005 of the values away from PyTorch without. So a larger difference passes too where rounding explains it:
up to EXCESS times what such noise makes of the same step, and never more than CEILING. A graph that is wrong by more
than some roundings is beyond that, since its error is blown up just as they are.
"""
EXCESS = 8.0
"""An update rounds more often than once, and where rounding grows, how far depends on its direction."""
CEILING = 0.05
"""Where noise alone makes more of a step than this, comparing says nothing."""
ULP = torch.finfo(torch.float32).eps
SHAKES = 4
"""Draws of the noise, of which the one that goes furthest counts."""

STEPS = 4
ROWS = 5  # not those of the example that was traced


@torch.no_grad()
def compare(tracer: Tracer, data: Mapping[str, bytes], gradient: GradientPolicy[Any]) -> tuple[float, float]:
    """(largest difference after a step from the same state, share of equal answers of both on their own).

    `data` are the graphs of either unit. Raises ExportError beyond the tolerance, where rounding does not explain it.
    """
    run = {name: _Session(graph) for name, graph in data.items()}

    def step(tokens: Any, ids: Any, state: Sequence[Any]) -> list[Any]:
        if "step" in run:
            return run["step"](tokens, ids, *state)
        (x,) = run["encode"](tokens, ids)
        for kind in tracer.cycle * tracer.num_cycles:
            state = run[f"update_{kind}"](x, *state)
        return [*state, *run["readout"](*state)]

    def theirs(policy: GradientPolicy[Any], batch: Batch, state: State) -> tuple[State, list[Any]]:
        new, said = tracer.reasoner(state, batch, policy)
        return new, [tensor.numpy() for tensor in (*new, *said[: len(SAID)])]

    worst, same = 0.0, []
    others = [tracer.length + 3, tracer.length // 2 + 1] if tracer.any_length else []
    for length in [tracer.length, *others]:
        tokens, ids = tracer.puzzles(ROWS, length, seed=length)
        batch, state = Batch(tokens, tokens, ids), tracer.reasoner.init_state(ROWS, length)
        alone = run["start"](tokens, ids)
        differences = [_difference(alone, [tensor.numpy() for tensor in state])]
        _refuse_beyond(TOLERANCE, *differences[0])
        for _ in range(STEPS):
            together = step(tokens, ids, state)
            alone = step(tokens, ids, alone[: len(state)])
            new, made = theirs(gradient, batch, state)
            differences.append(_difference(together, made))
            if not differences[-1].share <= TOLERANCE:
                shaken = [theirs(_Shaken(gradient, seed), batch, state)[1] for seed in range(SHAKES)]
                noise = max(_difference(other, made).share for other in shaken)
                _refuse_beyond(max(TOLERANCE, min(CEILING, EXCESS * noise)), *differences[-1])
            state = new
            same.append(np.mean(alone[len(state)].argmax(-1) == made[len(state)].argmax(-1)))
        worst = max(worst, *(difference.apart for difference in differences))
    return worst, float(np.mean(same))


class _Difference(NamedTuple):
    """How far two lists of arrays are apart at most."""

    apart: float
    share: float
    """Relative to the largest value of an array, where that exceeds 1."""


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> _Difference:
    apart = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    scales = [max(1.0, float(np.abs(b).max())) for b in theirs]
    # By numpy, whose largest of nan and a number is nan.
    return _Difference(float(np.max(apart)), float(np.max(np.divide(apart, scales))))


def _refuse_beyond(limit: float, apart: float, share: float) -> None:
    if not share <= limit:
        chaos = limit == CEILING
        advice = ", the most that rounding explains: take a model with fewer updates in a step" if chaos else ""
        raise ExportError(
            f"onnxruntime and PyTorch differ by {apart:.2g} after a step, {share:.2g} of the values, more than "
            f"{limit:.2g}{advice}; nothing was written"
        )


class _Shaken(GradientPolicy[Any]):
    """Another policy, with an ulp of noise upon what each update writes: what rounding alone may make of a step."""

    name: ClassVar[str] = "shaken"

    def __init__(self, shaken: GradientPolicy[Any], seed: int) -> None:
        super().__init__()
        self.shaken = shaken
        self.rng = generator("cpu", seed)

    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""
        return self.shaken(Recursion(tuple(map(self._shake, recursion.cycle)), recursion.num_cycles), state)

    def _shake(self, update: Update) -> Update:
        def shaken(state: State) -> State:
            new = update(state)
            return type(new)(*(a if a is b else self._noisy(a) for a, b in zip(new, state, strict=True)))

        return shaken

    def _noisy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + ULP * (2 * torch.rand(tensor.shape, generator=self.rng) - 1))


class _Session:
    """A graph in onnxruntime."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        with self._errors():
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: Any) -> list[Any]:
        """The outputs, as arrays."""
        with self._errors():
            return cast(list[Any], self.session.run(None, dict(zip(self.names, map(np.asarray, inputs), strict=True))))

    @staticmethod
    @contextlib.contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's have no base of their own
            reason = " ".join(str(error).split())[:200]
            raise ExportError(f"onnxruntime refuses the graphs ({reason}); nothing was written") from error
