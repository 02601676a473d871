"""What requests and answers look like, checked on the way in and told in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Health",
    "Limits",
    "ModelInfo",
    "Models",
    "ProblemBody",
    "Puzzles",
    "Result",
    "SolveRequest",
    "SolveResponse",
    "StepEvent",
    "TaskInfo",
    "Tasks",
]

Puzzle = str | list[Any]

EXAMPLE_PUZZLE = "4.....2...6....5..1.3...........2.4."
EXAMPLE_ANSWER = "451362236541364125125436613254542613"


class SolveRequest(BaseModel):
    """One puzzle or a list of them, and how they shall be solved."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, max_length=200, description="Name of a model; may be left out where one is served.")
    puzzle: Puzzle | None = Field(
        None, description="One puzzle, in a form that its task reads: a text, a list or a list of rows."
    )
    puzzles: list[Any] | None = Field(None, min_length=1, description="Several puzzles, in place of one.")
    budget: Annotated[str, Field(min_length=1, max_length=1000)] | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="When a puzzle stops: a number of steps, or a text such as verified|halted|steps=64. "
        "By default when the model halts, after as many steps as in training at most; of a search and with guesses "
        "when the rules accept, after 1,000 at most.",
    )
    starts: int | None = Field(
        None,
        ge=1,
        description="Passes that a puzzle gets; the best is the answer. By default 1, with guesses 4, for a search 8.",
    )
    sigma_init: float = Field(0.0, ge=0, le=100, description="Noise in the initial state of all starts but the first.")
    sigma_step: float = Field(0.0, ge=0, le=100, description="Noise before each step of all starts but the first.")
    guess: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Steps after which a start without a right answer guesses a symbol; 0: never. "
        "By default as the model usually does.",
    )
    select: Annotated[str, Field(max_length=100)] = Field(
        "verified,q", description="How the best start is chosen: of verified, q, residual, vote, first."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes views, noise and guesses of the starts.")
    deadline: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="Seconds after which it stops, from when the request has been read, waiting included.",
    )
    stream: bool = Field(False, description="Send every step as an event; for one puzzle.")
    trace: bool = Field(False, description="Put every step into the result; for one puzzle.")

    @model_validator(mode="after")
    def one_or_several(self) -> SolveRequest:
        """Refuse what is neither one puzzle nor several, and what only one puzzle can have."""
        if (self.puzzle is None) == (self.puzzles is None):
            raise ValueError("give one of puzzle and puzzles")
        if self.puzzles is not None and (self.stream or self.trace):
            raise ValueError("stream and trace are for one puzzle; give puzzle")
        return self


class ProblemBody(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="Which kind of problem, as a name.")
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do about it, in one line.")
    retry_after: int | None = Field(None, description="Seconds after which asking again may help.")


class Guess(BaseModel):
    """What a start has guessed into its puzzle."""

    position: int
    token: int = Field(description="Number into the model's symbols.")


class StepEvent(BaseModel):
    """What one start proposes after one of its steps."""

    start: int
    step: int = Field(description="From 1.")
    answer: Any = Field(description="The proposed answer, in the form of the puzzle.")
    tokens: list[int] = Field(description="The same as numbers into the model's symbols.")
    changed: list[int] = Field(
        description="Positions where it differs from this start's step before; of the first, none."
    )
    guess: Guess | None = Field(description="The guess that stood among the clues in this step; null where none did.")
    halt_probability: float
    residual: float | None = Field(description="|new - old| / |new| of the state.")
    confidence: list[float] | None = Field(
        description="For each position the probability of what is proposed; null where a start sees another view."
    )
    violations: list[int] = Field(description="Positions that break a rule, where the task can tell.")
    verified: bool | None = Field(description="Whether the rules accept it; null where they cannot tell.")


class Result(BaseModel):
    """An answer and how it came about, or `error`."""

    answer: Any = Field(None, description="In the form of the puzzle.")
    verified: bool | None = Field(None, description="Whether the rules accept it; null where they cannot tell.")
    steps: int | None = Field(None, description="Supervision steps of the start that the answer comes from.")
    stopped_by: str | None = Field(None, description="The part of the budget that ended it.")
    halt_probability: float | None = None
    seconds: float | None = Field(None, description="From the puzzle's arrival to its answer.")
    start: int | None = Field(None, description="Number of the start that the answer comes from; 0 is the single pass.")
    total_steps: int | None = Field(None, description="Supervision steps of all starts.")
    residual: float | None = None
    tokens: list[int] | None = Field(None, description="Of one puzzle: the answer as numbers into the symbols.")
    single: Result | None = Field(None, description="With several starts: what the single pass alone came to.")
    trace: list[StepEvent] | None = Field(None, description="With trace: every step.")
    trace_complete: bool | None = Field(None, description="With trace: false where there were too many steps to keep.")
    error: ProblemBody | None = Field(None, description="Why there is no answer.")


class SolveResponse(BaseModel):
    """The results, in the order of the puzzles."""

    model: str
    results: list[Result]


class Limits(BaseModel):
    """What one request may ask for."""

    max_puzzles: int
    max_starts: int
    max_steps: int
    max_seconds: float
    max_body: int
    max_waiting: int


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    ready: bool
    task: str | None = None
    task_config: dict[str, Any] | None = None
    reasoner: str | None = None
    parameters: int | None = None
    trained_steps: int | None = None
    slots: int
    symbols: list[str] | None = Field(None, description="How each token is written; the first is padding.")
    shape: list[int] | None = Field(None, description="[positions] of a sequence, [rows, columns] of a grid.")
    any_length: bool | None = None
    max_length: int | None = Field(None, description="Most positions of a puzzle.")
    symmetric: bool | None = Field(None, description="Whether starts differ by the task's symmetries or by noise.")
    default_budget: str | None = None
    default_starts: int | None = None


class Models(BaseModel):
    """All served models."""

    models: list[ModelInfo]
    limits: Limits


class TaskInfo(BaseModel):
    """A task of the served models."""

    name: str
    summary: str
    symbols: list[str]
    shape: list[int]
    models: list[str]


class Tasks(BaseModel):
    """The tasks of the served models."""

    tasks: list[TaskInfo]


class Puzzles(BaseModel):
    """Puzzles drawn for a model."""

    model: str
    puzzles: list[Any]


class Health(BaseModel):
    """How the service is."""

    status: str
    models: dict[str, str] | None = None
