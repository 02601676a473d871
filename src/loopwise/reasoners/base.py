"""What a reasoner is: a state, the updates that make one supervision step of it, and a way to read an answer.

Everything that differs between HRM, TRM and their relatives is the `recursion` method, a few lines that return the
schedule of updates as a value; through which of them the gradient flows is decided by a `GradientPolicy`, from outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar, cast, final

import torch
from torch import Tensor, nn

from loopwise.config import check
from loopwise.errors import ConfigError
from loopwise.types import Batch, Prediction, TaskSpec

__all__ = [
    "GradientConfig",
    "GradientPolicy",
    "Reasoner",
    "ReasonerConfig",
    "Recursion",
    "State",
    "Update",
    "detach",
    "where_rows",
]

State: TypeAlias = Any
"""The memory of a reasoner: a NamedTuple of tensors, each with the slot as its first axis. Those of floating point are
in the format of the activations.
"""

Update: TypeAlias = Callable[[State], State]
"""One application of a network to the state, such as z <- f(z + y + x)."""


class Recursion(NamedTuple):
    """One supervision step as data: `num_cycles` times the updates of `cycle`, in order."""

    cycle: tuple[Update, ...]
    num_cycles: int


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """Base of the options of a gradient policy."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check(self)


G = TypeVar("G", bound=GradientConfig)


class GradientPolicy(ABC, Generic[G]):
    """Runs a recursion and decides through which of its updates the gradient flows."""

    name: ClassVar[str]
    """What the policy is called on the command line."""
    Config: ClassVar[type[GradientConfig]] = GradientConfig
    """The policy's own options."""

    def __init__(self, config: G | None = None) -> None:
        self.config = cast(G, config or self.Config())

    @abstractmethod
    def __call__(self, recursion: Recursion, state: State) -> State:
        """Return the state after all updates."""


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig:
    """Base of the options of a reasoner."""

    def at_least_one(self, *names: str) -> None:
        """Raise ConfigError where one of the named options is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


C = TypeVar("C", bound=ReasonerConfig)


class Reasoner(nn.Module, ABC, Generic[C]):
    """A network with a state. One call of `forward` is one supervision step."""

    name: ClassVar[str]
    """What the reasoner is called on the command line."""
    Config: ClassVar[type[ReasonerConfig]]
    """The reasoner's own options."""
    default_gradient: ClassVar[str] = "last-cycle"
    """The gradient policy of its paper; any other can be chosen."""
    default_halting: ClassVar[str] = "correctness"
    """The halting policy of its paper; any other can be chosen."""
    search: ClassVar[bool] = False
    """Whether its steps are a search: it guesses and starts again, goes on until the rules accept its answer or the
    budget ends, and its scores are told apart from those of a single pass.
    """
    hint_weights: ClassVar[str] = ""
    """The name of the weights by which it learns the hints that a task may give (`TaskSpec.hints`), where it can. Only
    training uses them, so a run may start from a model that has none.
    """
    round_rows: ClassVar[int] = 16
    """Rows are computed in multiples of so many, or one alone. Among 2 to 15 rows MKL rounds a narrow product, such as
    that of the halting head, by the place of the row, and with two threads a wide one among 33. With multiples of 16
    none was seen, in any family.
    """

    def __init__(self, config: C, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.dtype = dtype

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Embed the puzzles: x [B, S, D], in the format of the activations."""

    @abstractmethod
    def init_state(self, batch_size: int, length: int) -> State:
        """The state of puzzles [B, L] that nobody has thought about yet."""

    @abstractmethod
    def recursion(self, x: Tensor) -> Recursion:
        """The updates that make one supervision step, given the embedded puzzles x [B, S, D]."""

    @abstractmethod
    def readout(self, state: State) -> Prediction:
        """Read the proposed answer and the halting logit from the state."""

    @abstractmethod
    def accepts(self, length: int) -> bool:
        """Whether puzzles of `length` positions can be given to it."""

    def networks(self) -> list[nn.Module]:
        """The modules that the updates apply; what torch.compile is worth spending on."""
        return []

    def puzzle_table(self) -> nn.Parameter | None:
        """The puzzle embeddings, which have an optimizer of their own and no part in the moving average."""
        return None

    def forward(self, state: State, batch: Batch, gradient: GradientPolicy[Any]) -> tuple[State, Prediction]:
        """One supervision step. The state comes back detached; the prediction carries the gradient."""
        state = gradient(self.recursion(self.encode(batch)), state)
        return detach(state), self.readout(state)

    @final
    def num_parameters(self) -> tuple[int, int]:
        """(parameters of the networks, values of the puzzle table)."""
        table = self.puzzle_table()
        in_table = 0 if table is None else table.numel()
        return sum(p.numel() for p in self.parameters()) - in_table, in_table


def detach(state: State) -> State:
    """The same state, cut from the graph that made it."""
    return type(state)(*(tensor.detach() for tensor in state))


def where_rows(rows: Tensor, new: State, old: State) -> State:
    """Take the rows of `new` where `rows` [B] is true, else of `old`; works on any NamedTuple of [B, ...] tensors."""
    return type(old)(*(torch.where(rows.view(-1, *(1,) * (b.dim() - 1)), a, b) for a, b in zip(new, old, strict=True)))
