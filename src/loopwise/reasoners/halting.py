"""Halting policies: how a model learns when it is done, and when a slot is given up for a fresh puzzle in training.

The solver uses again what the model learned: the halting logit is the model's own belief that its answer is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.types import Prediction

__all__ = ["Correctness", "HaltingConfig", "HaltingPolicy"]


@dataclass(frozen=True, kw_only=True)
class HaltingConfig:
    """Options of halting in training."""

    max_steps: int = 16
    """Supervision steps after which a slot takes a fresh puzzle in any case (halt_max_steps)."""
    exploration: float = 0.1
    """Probability, per slot and step, of going on regardless until a random step of 2 to max_steps."""
    weight: float = 0.5
    """Weight of the halting loss beside the loss of the answer."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check(self)
        if self.weight < 0:
            raise ConfigError(f"weight must be at least 0, not {self.weight}")
        if self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {self.max_steps}")
        if not 0 <= self.exploration <= 1:
            raise ConfigError(f"exploration is a probability, not {self.exploration}")


C = TypeVar("C", bound=HaltingConfig)


class HaltingPolicy(ABC, Generic[C]):
    """Decides which slots are done, and scores the halting logits."""

    name: ClassVar[str]
    Config: ClassVar[type[HaltingConfig]] = HaltingConfig

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def done(self, prediction: Prediction) -> Tensor:
        """[B] bool: whether the model thinks that it is done."""

    @abstractmethod
    def loss(self, prediction: Prediction, correct: Tensor) -> Tensor:
        """The halting loss, summed over the batch; `correct` [B] says whose proposed answer is right."""

    @final
    def halt(self, prediction: Prediction, steps: Tensor, minimum: Tensor) -> Tensor:
        """[B] bool: halted after `steps` [B], given the least number that exploration demands, `minimum` [B]."""
        return ((steps >= self.config.max_steps) | self.done(prediction)) & (steps >= minimum)

    @final
    def explore(self, slots: int, rng: torch.Generator) -> Tensor:
        """[slots] int64: a random least number of steps where the slot explores, else 0; drawn at each step."""
        if self.config.max_steps < 2:
            return torch.zeros(slots, dtype=torch.int64, device=rng.device)
        explores = torch.rand(slots, generator=rng, device=rng.device) < self.config.exploration
        least = torch.randint(2, self.config.max_steps + 1, (slots,), generator=rng, device=rng.device)
        return torch.where(explores, least, 0)


@final
class Correctness(HaltingPolicy[HaltingConfig]):
    """TRM (arXiv 2510.04871, section 4.6): the halting logit learns whether the proposed answer is right."""

    name: ClassVar[str] = "correctness"

    def done(self, prediction: Prediction) -> Tensor:
        """The answer is more likely right than wrong."""
        return prediction.halt_logits > 0

    def loss(self, prediction: Prediction, correct: Tensor) -> Tensor:
        """Binary cross-entropy of the halting logit against being right."""
        target = correct.to(prediction.halt_logits.dtype)
        return F.binary_cross_entropy_with_logits(prediction.halt_logits, target, reduction="sum")
