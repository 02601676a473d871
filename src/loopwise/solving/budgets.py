"""Budgets: when a solve stops. A number or an object, and objects combine.

    16                                          sixteen steps
    Halted() | Steps(16)                        the model is satisfied, but sixteen steps at most
    Halted(0.9) & Converged(3) | Seconds(5)     satisfied and settled, but five seconds at most

A budget is asked after every step, for each row on its own, so the puzzles of one batch may have different budgets.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, final

from loopwise.errors import ConfigError
from loopwise.types import Tokens

__all__ = [
    "HALT_THRESHOLD",
    "AllOf",
    "AnyOf",
    "Atom",
    "Budget",
    "Converged",
    "Flops",
    "Halted",
    "Progress",
    "Seconds",
    "Steps",
    "Verified",
]

HALT_THRESHOLD = 0.95
"""The halting probability above which a puzzle counts as solved.

Training halts at one half. For an answer that is too early: on 6x6 Sudoku, 0.5 gave 89.0 % in 2.9 steps, 0.95 gave
97.6 % in 3.5 steps, as much as all 16 (500 validation puzzles; docs/log.md).
"""


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a puzzle is: what a budget is asked about. Before the first step only `seconds` tells something."""

    steps: int = 0
    """Supervision steps it has had."""
    answer: Tokens | None = None
    """The proposed answer [L]."""
    halt_probability: float = 0.0
    """The model's own belief that the answer is right."""
    seen: Tokens | None = None
    """The puzzle [L] as the network saw it, where a guess stands in it."""
    unchanged: int = 0
    """For how many steps the answer has stayed the same."""
    residual: float = math.inf
    """|new - old| / |new| of the state over the last step; computed where it is needed."""
    seconds: float = 0.0
    """Since the puzzle arrived, waiting included."""
    waited: float = 0.0
    """Seconds from its arrival to its slot."""
    first_step: float = 0.0
    """Seconds from its arrival to the end of its first step."""
    flops: float = 0.0
    """Spent on it; counted where it is needed."""
    check: Callable[[Tokens], bool | None] = lambda answer: None
    """What the task's rules say of an answer [L]; None where they cannot decide."""
    _verdict: tuple[bool | None] | None = field(default=None, repr=False)

    @property
    def verified(self) -> bool | None:
        """What the rules say of the answer. They are asked when this is first looked at."""
        if self._verdict is None:
            self._verdict = (None if self.answer is None else self.check(self.answer),)
        return self._verdict[0]

    def advance(self, answer: Tokens, halt_probability: float, unchanged: int, seconds: float) -> None:
        """Note a step."""
        self.steps += 1
        self.answer, self.halt_probability, self.unchanged, self.seconds = answer, halt_probability, unchanged, seconds
        if self.steps == 1:
            self.first_step = seconds
        if not unchanged:
            self._verdict = None


class Budget(ABC):
    """When a solve stops."""

    @abstractmethod
    def stop(self, progress: Progress) -> str:
        """The name of what stops the puzzle now, such as `halted` or `halted&verified`; empty where it goes on."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether it ends however the model behaves."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Which of residual, seconds and flops it looks at."""

    @final
    def __and__(self, other: Budget | int) -> Budget:
        """Stop when both would at once."""
        return AllOf(_parts(self, AllOf) + _parts(other, AllOf))

    @final
    def __or__(self, other: Budget | int) -> Budget:
        """Stop when the first of both would."""
        return AnyOf(_parts(self, AnyOf) + _parts(other, AnyOf))


@dataclass(frozen=True)
class Combined(Budget):
    """A budget made of others, which are asked in order and no further than is needed to decide."""

    parts: tuple[Budget, ...]

    @property
    def needs(self) -> frozenset[str]:
        """What the parts need."""
        return frozenset[str]().union(*(part.needs for part in self.parts))


@final
class AllOf(Combined):
    """Stops when all parts would at once."""

    def stop(self, progress: Progress) -> str:
        """The names of all parts, joined by &."""
        names = []
        for part in self.parts:
            names.append(part.stop(progress))
            if not names[-1]:
                return ""
        return "&".join(names)

    @property
    def bounded(self) -> bool:
        """Whether all parts are."""
        return all(part.bounded for part in self.parts)

    def __str__(self) -> str:
        return "&".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


@final
class AnyOf(Combined):
    """Stops when the first part would."""

    def stop(self, progress: Progress) -> str:
        """The name of the first part that stops."""
        for part in self.parts:
            name = part.stop(progress)
            if name:
                return name
        return ""

    @property
    def bounded(self) -> bool:
        """Whether any part is."""
        return any(part.bounded for part in self.parts)

    def __str__(self) -> str:
        return "|".join(map(str, self.parts))


class Atom(Budget):
    """A budget that is not made of others; as text `name` or `name=value`, where the value is its only field."""

    name: ClassVar[str]
    limits: ClassVar[bool] = False
    """Whether it is bounded."""
    asks: ClassVar[frozenset[str]] = frozenset()
    """What it needs."""

    @abstractmethod
    def reached(self, progress: Progress) -> bool:
        """Whether it stops."""

    @final
    def stop(self, progress: Progress) -> str:
        """The name, where it stops."""
        return self.name if self.reached(progress) else ""

    @final
    @property
    def bounded(self) -> bool:
        """As the class says."""
        return self.limits

    @property
    def needs(self) -> frozenset[str]:
        """As the class says."""
        return self.asks

    def __str__(self) -> str:
        values = [str(getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return "=".join([self.name, *values])


@final
@dataclass(frozen=True)
class Steps(Atom):
    """So many supervision steps; more than in training are allowed."""

    name: ClassVar[str] = "steps"
    limits: ClassVar[bool] = True
    limit: int

    def __post_init__(self) -> None:
        """Refuse what is no number of steps."""
        if not (1 <= self.limit < math.inf) or self.limit % 1:
            raise ConfigError(f"the number of steps must be a whole number of at least 1, not {self.limit}")

    def reached(self, progress: Progress) -> bool:
        """After the last of them."""
        return progress.steps >= self.limit


@final
@dataclass(frozen=True)
class Halted(Atom):
    """The model's halting probability is above the threshold; one of 1 is never passed."""

    name: ClassVar[str] = "halted"
    threshold: float = HALT_THRESHOLD

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the halting threshold is a probability, not {self.threshold}")

    def reached(self, progress: Progress) -> bool:
        """As the model believes."""
        return progress.halt_probability > self.threshold


@final
@dataclass(frozen=True)
class Converged(Atom):
    """From 1: the answer has not changed for so many steps. Below 1: the residual of the state is at most so large."""

    name: ClassVar[str] = "converged"
    limit: float

    def __post_init__(self) -> None:
        """Refuse what is neither."""
        if not (0 < self.limit < math.inf) or (self.limit > 1 and self.limit % 1):
            raise ConfigError(f"converged is a whole number of steps, or a residual below 1, not {self.limit}")

    @property
    def needs(self) -> frozenset[str]:
        """The residual, where the limit is one."""
        return frozenset({"residual"}) if self.limit < 1 else frozenset()

    def reached(self, progress: Progress) -> bool:
        """As the limit says."""
        return progress.unchanged >= self.limit if self.limit >= 1 else progress.residual <= self.limit


@final
@dataclass(frozen=True)
class Verified(Atom):
    """The task's rules accept the answer; never where they cannot decide."""

    name: ClassVar[str] = "verified"

    def reached(self, progress: Progress) -> bool:
        """As the rules say."""
        return progress.verified is True


@final
@dataclass(frozen=True)
class Seconds(Atom):
    """A deadline, in seconds from the puzzle's arrival. It ends with the step in which they pass."""

    name: ClassVar[str] = "seconds"
    limits: ClassVar[bool] = True
    asks: ClassVar[frozenset[str]] = frozenset({"seconds"})
    limit: float

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        if not 0 < self.limit < math.inf:
            raise ConfigError(f"seconds must be more than 0, not {self.limit}")

    def reached(self, progress: Progress) -> bool:
        """When they have passed."""
        return progress.seconds >= self.limit


@final
@dataclass(frozen=True)
class Flops(Atom):
    """So many floating-point operations. It ends with the step in which they are reached."""

    name: ClassVar[str] = "flops"
    limits: ClassVar[bool] = True
    asks: ClassVar[frozenset[str]] = frozenset({"flops"})
    limit: float

    def __post_init__(self) -> None:
        """Refuse what is no number of operations."""
        if not 0 < self.limit < math.inf:
            raise ConfigError(f"flops must be more than 0, not {self.limit}")

    def reached(self, progress: Progress) -> bool:
        """When they are spent."""
        return progress.flops >= self.limit


def _parts(budget: Budget | int, kind: type[Combined]) -> tuple[Budget, ...]:
    """The parts of a budget of that kind, so that a|b|c has three; any other is one part."""
    if isinstance(budget, Budget):
        return budget.parts if isinstance(budget, kind) else (budget,)
    return (Steps(budget),)
