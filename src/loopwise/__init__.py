"""loopwise: tiny networks that reason by recursion. Train them, solve with them, watch them think.

solver = loopwise.load("runs/six")
solver.solve(["4.....2...6....5..1.3...........2.4."])[0].answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from loopwise.solving.solver import Solver

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(
    checkpoint: str | Path,
    *,
    slots: int = 64,
    device: str = "auto",
    dtype: str = "trained",
    max_waiting: int = 1024,
    compile: bool = False,
    trust: bool = False,
) -> Solver:
    """Load a trained model, ready to solve: a checkpoint folder, or the name of a model that comes with loopwise.

    `slots` puzzles are worked on side by side; `max_waiting` more may wait where they are submitted one by one.
    `dtype` is the number format of activations: as trained, float32, or bfloat16, which some processors take half the
    time for. `compile` fuses the network's kernels, half a minute that pays for thousands of puzzles. With `trust`,
    code outside loopwise that the checkpoint names (a task class, a table's checker) is imported.
    Raises CheckpointError, in one line that says what to do, when there is no checkpoint or it is damaged.
    """
    from loopwise.models import find
    from loopwise.solving.solver import Solver

    return Solver.from_pretrained(
        find(str(checkpoint)),
        slots=slots,
        device=device,
        dtype=dtype,
        max_waiting=max_waiting,
        compile=compile,
        trust=trust,
    )
