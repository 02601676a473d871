"""Every error that loopwise raises on purpose.

    LoopwiseError            something the user can mend; the command line prints it in one line, exit code 2
    ├── ConfigError          an option or a combination of options makes no sense
    ├── PuzzleError          a puzzle cannot be read: wrong length, unknown symbol, contradictory givens
    ├── DataError            a data file is missing, empty, malformed or too small
    ├── CheckpointError      a checkpoint is missing, damaged or of a foreign format
    ├── StorageError         the disk refused a write; what was there before is intact
    ├── ExportError          the exported graphs do not compute what the model does; nothing was written
    ├── SolvingError         a puzzle that can be read gets no answer: the network's numbers are no longer finite
    │   ├── DeadlineError    its time was over before its first step
    │   ├── QueueFullError   too many puzzles wait already
    │   └── ClosedError      the solver was closed before
    └── TrainingError        training cannot go on (not-a-number, diverged); the last good state is kept

A message says what is wrong and what to do about it, in one line.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "DeadlineError",
    "ExportError",
    "LoopwiseError",
    "PuzzleError",
    "QueueFullError",
    "SolvingError",
    "StorageError",
    "TrainingError",
]


class LoopwiseError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(LoopwiseError):
    """An option, or a combination of options, makes no sense."""


class PuzzleError(LoopwiseError):
    """A puzzle cannot be read: wrong length, unknown symbol, contradictory givens."""


class DataError(LoopwiseError):
    """A data file is missing, empty, malformed or too small."""


class CheckpointError(LoopwiseError):
    """A checkpoint is missing, damaged or of a foreign format."""


class StorageError(LoopwiseError):
    """The disk refused a write; what was there before is intact."""


class TrainingError(LoopwiseError):
    """Training cannot go on; the last good state is kept."""


class ExportError(LoopwiseError):
    """The exported graphs do not compute what the model does; nothing was written."""


class SolvingError(LoopwiseError):
    """A puzzle that can be read gets no answer."""


class DeadlineError(SolvingError):
    """The time of a puzzle was over before its first step."""


class QueueFullError(SolvingError):
    """Too many puzzles wait already."""


class ClosedError(SolvingError):
    """The solver was closed before the puzzle was solved."""
