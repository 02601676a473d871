"""Whether onnxruntime computes the same as PyTorch, on random puzzles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from loopwise.errors import ExportError
from loopwise.export.graphs import SAID, Tracer
from loopwise.reasoners.base import GradientPolicy
from loopwise.types import Batch

__all__ = ["TOLERANCE", "compare"]

TOLERANCE = 1e-3
"""Largest difference between onnxruntime and PyTorch after a step from the same state; relative where values exceed 1.

Within a step, not after many: on puzzles that a model has never seen the likes of, its recursion is chaotic and blows
rounding up (shipped 6x6 Sudoku, random cells: 1.5e-4 in logits up to 31 after one step, 0.5 after eight).
"""

STEPS = 4
ROWS = 5  # not those of the example that was traced


@torch.no_grad()
def compare(tracer: Tracer, data: Mapping[str, bytes], gradient: GradientPolicy[Any]) -> tuple[float, float]:
    """(largest difference after a step from the same state, share of equal answers of both on their own).

    `data` are the graphs of either unit. Raises ExportError beyond the tolerance.
    """
    run = {name: _Session(graph) for name, graph in data.items()}

    def step(tokens: Any, ids: Any, state: Sequence[Any]) -> list[Any]:
        if "step" in run:
            return run["step"](tokens, ids, *state)
        (x,) = run["encode"](tokens, ids)
        for kind in tracer.cycle * tracer.num_cycles:
            state = run[f"update_{kind}"](x, *state)
        return [*state, *run["readout"](*state)]

    worst, beyond, same = 0.0, 0.0, []
    others = [tracer.length + 3, tracer.length // 2 + 1] if tracer.any_length else []
    for length in [tracer.length, *others]:
        tokens, ids = tracer.puzzles(ROWS, length, seed=length)
        state = tracer.reasoner.init_state(ROWS, length)
        alone = run["start"](tokens, ids)
        pairs = list(zip(alone, state, strict=True))
        for _ in range(STEPS):
            together = step(tokens, ids, state)
            alone = step(tokens, ids, alone[: len(state)])
            state, said = tracer.reasoner(state, Batch(tokens, tokens, ids), gradient)
            pairs += zip(together, (*state, *said[: len(SAID)]), strict=True)
            same.append(np.mean(alone[len(state)].argmax(-1) == said.logits.argmax(-1).numpy()))
        for ours, theirs in pairs:
            apart = float(np.abs(ours - theirs.numpy()).max())
            worst = max(worst, apart)
            beyond = max(beyond, apart / max(1.0, float(theirs.abs().max())))
    if not beyond <= TOLERANCE:
        raise ExportError(
            f"onnxruntime and PyTorch differ by {worst:.2g} after a step, {beyond:.2g} of the values, more than "
            f"{TOLERANCE:g}; nothing was written"
        )
    return worst, float(np.mean(same))


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
