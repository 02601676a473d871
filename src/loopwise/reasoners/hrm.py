"""HRM, the Hierarchical Reasoning Model (arXiv 2506.21734): a slow network that plans, a fast one that works it out.

Think of how one solves a hard puzzle. The hand tries things out quickly, within a plan; when that has settled, the plan
is looked at again, once, and the hand starts over under the new plan; and from time to time one sits back, asks "is
this it?", and goes on or stops. Those are HRM's three levels of recursion, from the fast to the slow:

    1. the worker      z_L <- L(z_L + z_H + x)     L_cycles times, while the plan z_H stands still
    2. the planner     z_H <- H(z_H + z_L)         once the worker has settled; H_cycles times in all
    3. the segments    one supervision step is all of that; up to 16 steps (halt_max_steps) continue from the last
                       state, each with a loss of its own, and Q-learning decides when to stop

No level keeps a tape of the ones below it. The gradient flows through the very last L and the very last H update only
(`LastUpdates`, k = 2): where z has settled to a fixed point, that is the first term of the implicit function theorem's
series, and it needs constant memory, where backpropagation through time needs as much as there are updates.

The published model has 4 blocks a network and 27.3 million parameters. ARC Prize's analysis (August 2025) found that
the third level does most of the work; set `H_cycles` and `L_cycles` to see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from loopwise.nn.layers import truncated_normal_
from loopwise.reasoners.base import ReasonerConfig, Recursion
from loopwise.reasoners.embedded import EmbeddedReasoner
from loopwise.reasoners.network import Network, NetworkConfig

__all__ = ["HRM", "HRMConfig", "HRMState"]


@dataclass(frozen=True, kw_only=True)
class HRMConfig(NetworkConfig):
    """Options of HRM; the defaults are the published model."""

    registers: int = 1
    """R, extra positions in front of the puzzle; 0 leaves out the puzzle embedding too."""
    H_layers: int = 4
    """Blocks of the slow network H."""
    L_layers: int = 4
    """Blocks of the fast network L."""
    H_cycles: int = 2
    """Updates of the slow state in a supervision step."""
    L_cycles: int = 2
    """Updates of the fast state for each of the slow one."""
    recall: bool = False
    """Input recall: add x in the update of z_H too, z_H <- H(z_H + z_L + x)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        super().__post_init__()
        self.at_least_one("H_layers", "L_layers", "H_cycles", "L_cycles")


class HRMState(NamedTuple):
    """The slow state, from which the answer is read, and the fast one."""

    z_H: Tensor  # [B, S, D]
    z_L: Tensor  # [B, S, D]


@final
class HRM(EmbeddedReasoner[HRMConfig]):
    """The Hierarchical Reasoning Model."""

    name: ClassVar[str] = "hrm"
    Config: ClassVar[type[ReasonerConfig]] = HRMConfig
    default_gradient: ClassVar[str] = "last-updates"
    default_halting: ClassVar[str] = "q-learning"

    def build(self, shape: tuple[int, ...], rng: torch.Generator) -> None:
        """Two fixed random vectors and two networks."""
        self.H_init = nn.Buffer(truncated_normal_(torch.empty(self.config.hidden_size), 1.0, rng))
        self.L_init = nn.Buffer(truncated_normal_(torch.empty(self.config.hidden_size), 1.0, rng))
        self.H = Network(self.config, self.config.H_layers, shape, rng)
        self.L = Network(self.config, self.config.L_layers, shape, rng)

    def init_state(self, batch_size: int, length: int) -> HRMState:
        """The two fixed random vectors, at each position."""
        return HRMState(*(self.start(vector, batch_size, length) for vector in (self.H_init, self.L_init)))

    def recursion(self, x: Tensor) -> Recursion:
        """z_L <- L(z_L + z_H + x), L_cycles times, then z_H <- H(z_H + z_L); all of it H_cycles times."""
        rotation = self.L.rotation(x)

        def work(state: HRMState) -> HRMState:
            return HRMState(state.z_H, self.L(state.z_L + (state.z_H + x), rotation))

        def plan(state: HRMState) -> HRMState:
            told = state.z_L + x if self.config.recall else state.z_L
            return HRMState(self.H(state.z_H + told, rotation), state.z_L)

        return Recursion((work,) * self.config.L_cycles + (plan,), self.config.H_cycles)

    def answer(self, state: HRMState) -> Tensor:
        """The answer is read from the slow state."""
        return state.z_H

    def networks(self) -> list[nn.Module]:
        """H and L."""
        return [self.H, self.L]
