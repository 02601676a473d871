"""Halting policies: how a model learns when it is done, and when a slot is given up for a fresh puzzle in training.

    correctness   the halting logit learns whether the proposed answer is right (TRM)
    q-learning    two values, of halting and of going on, compete (HRM)
    act           a step is a ponder of as many as needed, its outcome their weighted mean (Graves)
    fixed         every puzzle gets all its steps

The solver uses again what the model learned: the halting logit is the model's own belief that its answer is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.reasoners.base import GradientPolicy, Reasoner, State, detach
from loopwise.types import Batch, Prediction

__all__ = [
    "ACTConfig",
    "AdaptiveComputationTime",
    "Advance",
    "Correctness",
    "Fixed",
    "HaltingConfig",
    "HaltingPolicy",
    "Judged",
    "QLearning",
    "QLearningConfig",
]


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


class Advance(NamedTuple):
    """The outcome of one supervision step."""

    state: State  # detached
    prediction: Prediction
    ponder: Tensor  # [B] float32, the ponder cost of the step; 1 where it is one step of the reasoner


class Judged(NamedTuple):
    """What a halting policy sees of a step of training, to score it."""

    prediction: Prediction
    ponder: Tensor  # [B]
    correct: Tensor  # [B] bool, whose proposed answer is right
    steps: Tensor  # [B] int64, supervision steps of the puzzle, with this one
    following: Callable[[], Prediction]
    """Looks ahead: what the next step of the same puzzles would predict, computed without gradient when it is called.
    """
    training_step: int
    """Number of this optimizer step, from 0."""


class HaltingPolicy(ABC, Generic[C]):
    """Decides which slots are done, and scores the halting logits."""

    name: ClassVar[str]
    Config: ClassVar[type[HaltingConfig]] = HaltingConfig

    def __init__(self, config: C | None = None) -> None:
        self.config = cast(C, config or self.Config())

    def step(self, reasoner: Reasoner[Any], state: State, batch: Batch, gradient: GradientPolicy[Any]) -> Advance:
        """One supervision step of every slot; training, solving and measuring all call this."""
        state, prediction = reasoner(state, batch, gradient)
        return Advance(state, prediction, torch.ones_like(prediction.halt_logits))

    @abstractmethod
    def done(self, prediction: Prediction) -> Tensor:
        """[B] bool: whether the model thinks that it is done."""

    @abstractmethod
    def loss(self, judged: Judged) -> Tensor:
        """The halting loss, summed over the batch."""

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


def _correctness_loss(judged: Judged) -> Tensor:
    """Binary cross-entropy of the halting logit against being right."""
    logits = judged.prediction.halt_logits
    return F.binary_cross_entropy_with_logits(logits, judged.correct.to(logits.dtype), reduction="sum")


@final
class Correctness(HaltingPolicy[HaltingConfig]):
    """TRM (arXiv 2510.04871, section 4.6): the halting logit learns whether the proposed answer is right."""

    name: ClassVar[str] = "correctness"

    def done(self, prediction: Prediction) -> Tensor:
        """The answer is more likely right than wrong."""
        return prediction.halt_logits > 0

    def loss(self, judged: Judged) -> Tensor:
        """Binary cross-entropy of the halting logit against being right."""
        return _correctness_loss(judged)


@final
class Fixed(HaltingPolicy[HaltingConfig]):
    """Fixed depth: every puzzle gets `max_steps` in training, so that there is nothing to explore (`exploration`).

    The halting logit learns all the same, for the solver.
    """

    name: ClassVar[str] = "fixed"

    def done(self, prediction: Prediction) -> Tensor:
        """Never."""
        return torch.zeros_like(prediction.halt_logits, dtype=torch.bool)

    def loss(self, judged: Judged) -> Tensor:
        """Binary cross-entropy of the halting logit against being right."""
        return _correctness_loss(judged)


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(HaltingConfig):
    """Options of Q-learning."""

    target_every: int = 1
    """Look ahead, at the price of a step without gradient, at every so many optimizer steps (ARC Prize: 4)."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if self.target_every < 1:
            raise ConfigError(f"target_every must be at least 1, not {self.target_every}")


@final
class QLearning(HaltingPolicy[QLearningConfig]):
    """HRM (arXiv 2506.21734, section 2): the values of halting and of going on; the greater one decides.

    The value of halting learns whether the answer is right. The value of going on learns the better of the two values
    after the next step, or that of halting there where this step is the last allowed; with no target network and no
    replay.
    """

    name: ClassVar[str] = "q-learning"
    Config: ClassVar[type[HaltingConfig]] = QLearningConfig

    def done(self, prediction: Prediction) -> Tensor:
        """Halting is worth more than going on."""
        return prediction.halt_logits > prediction.continue_logits

    def loss(self, judged: Judged) -> Tensor:
        """Binary cross-entropy of both values."""
        loss = _correctness_loss(judged)
        if self.config.max_steps < 2 or judged.training_step % self.config.target_every:
            return loss
        following = judged.following()
        better = torch.maximum(following.halt_logits, following.continue_logits)
        last = judged.steps >= self.config.max_steps
        target = torch.sigmoid(torch.where(last, following.halt_logits, better)).detach()
        value = judged.prediction.continue_logits
        return loss + F.binary_cross_entropy_with_logits(value, target, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class ACTConfig(HaltingConfig):
    """Options of adaptive computation time."""

    max_steps: int = 1
    """Supervision steps, each a whole ponder, after which a slot takes a fresh puzzle in any case."""
    weight: float = 0.01
    """The time penalty tau: weight of the ponder cost beside the loss of the answer."""
    max_ponder: int = 16
    """Most steps of the reasoner in a ponder."""
    epsilon: float = 0.01
    """A ponder ends when the halting probabilities have added up to 1 - epsilon."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if self.max_ponder < 1:
            raise ConfigError(f"max_ponder must be at least 1, not {self.max_ponder}")
        if not 0 < self.epsilon < 1:
            raise ConfigError(f"epsilon must be between 0 and 1, not {self.epsilon}")


@final
class AdaptiveComputationTime(HaltingPolicy[ACTConfig]):
    """Graves' adaptive computation time (arXiv 1603.08983): one supervision step is a ponder of N steps.

    With h_n the halting probability after step n, N is the first n at which h_1 + ... + h_n reaches 1 - epsilon (or
    `max_ponder`), and R = 1 - (h_1 + ... + h_(N-1)) is the remainder. The answer and the state of the step are means,
    weighted by h_1, ..., h_(N-1), R. The ponder cost N + R is what the loss adds; the gradient flows through all of it,
    from step to step too. The halting logit that comes out is that of h_1 + ... + h_N: near 1 where the model ended by
    itself. The paper's flag of the first step is left out: the state tells.
    """

    name: ClassVar[str] = "act"
    Config: ClassVar[type[HaltingConfig]] = ACTConfig

    def step(self, reasoner: Reasoner[Any], state: State, batch: Batch, gradient: GradientPolicy[Any]) -> Advance:
        """Ponder. Rows that have halted are computed along until all have; their means no longer change."""
        if reasoner.search:
            raise ConfigError(f"{self.name} takes means of states, which a search such as {reasoner.name} has none of")
        recursion = reasoner.recursion(reasoner.encode(batch))
        mean: State = None
        said: Prediction | None = None
        for n in range(1, self.config.max_ponder + 1):
            state = gradient(recursion, state)
            prediction = reasoner.readout(state)
            chance = torch.sigmoid(prediction.halt_logits)
            if said is None:
                going = torch.ones_like(chance, dtype=torch.bool)
                total, ponder = torch.zeros_like(chance), torch.zeros_like(chance)
            last = going & ((total + chance >= 1 - self.config.epsilon) | (n == self.config.max_ponder))
            share = torch.where(last, 1 - total, chance)
            mean = _add_share(going, share, mean, state)
            said = _add_share(going, share, said, prediction)
            ponder = torch.where(last, n + 1 - total, ponder)
            total = torch.where(going, total + chance, total)
            going = going & ~last
            if not torch.compiler.is_compiling() and not bool(going.any()):
                break
        assert said is not None
        belief = torch.logit(total.clamp(1e-6, 1 - 1e-6))
        return Advance(detach(mean), said._replace(halt_logits=belief), ponder)

    def done(self, prediction: Prediction) -> Tensor:
        """Always: the ponder is over."""
        return torch.ones_like(prediction.halt_logits, dtype=torch.bool)

    def loss(self, judged: Judged) -> Tensor:
        """The ponder cost N + R."""
        return judged.ponder.sum()


T = TypeVar("T")


def _add_share(rows: Tensor, share: Tensor, total: T | None, new: T) -> T:
    """total + share * new in the given rows [B], for each tensor of a NamedTuple."""
    tensors = []
    for i, tensor in enumerate(cast(Any, new)):
        shape = (-1, *(1,) * (tensor.dim() - 1))
        part = share.to(tensor.dtype).view(shape) * tensor
        before = torch.zeros_like(part) if total is None else cast(Any, total)[i]
        tensors.append(torch.where(rows.view(shape), before + part, before))
    return type(new)(*tensors)
