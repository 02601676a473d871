"""Fusing the networks' kernels with torch.compile: the same products, fewer passes over memory between them."""

from __future__ import annotations

from typing import Any

import torch._functorch.config

from loopwise.reasoners.base import Reasoner
from loopwise.runtime import compile_trouble

__all__ = ["compile_networks"]


def compile_networks(reasoner: Reasoner[Any]) -> str | None:
    """Compile the networks of a reasoner, in place, when they are next called; or say in a line why it cannot be done.

    Only the networks: the schedule around them stays plain Python, so that every gradient policy works on it. Results
    differ by rounding alone.
    """
    trouble = compile_trouble(next(reasoner.parameters()).device)
    if trouble is None:
        # The implicit gradient goes through a network many times, which a donated buffer does not outlive.
        torch._functorch.config.donated_buffer = False
        for network in reasoner.networks():
            network.compile()
    return trouble
