"""The command line: loopwise train | solve | trace | eval | compare | estimate | ... (`loopwise --help` lists them).

Every command is a module of this package with a function `main(arguments) -> exit code`. A mistake of the user's is one
line on the standard error and exit code 2; no traceback reaches a user.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

from loopwise.errors import LoopwiseError
from loopwise.registry import suggest

__all__ = ["main"]

COMMANDS = {
    "train": "train a reasoner on a task",
    "solve": "solve puzzles with a trained model",
    "trace": "watch a model think, in numbers and as a plot",
    "serve": "serve trained models over HTTP, with a page that shows them think",
    "eval": "measure a trained model on held-out puzzles",
    "compare": "train families side by side and write a table",
    "estimate": "say what a run will cost: FLOPs, memory and time on this machine",
    "tasks": "list the tasks and the recipes",
    "models": "list the trained models that come with loopwise",
    "data": "build, inspect or fetch data",
    "import": "convert a published HRM or TRM checkpoint",
    "export": "write a model as ONNX, one supervision step, the loop outside",
    "doctor": "say what this machine can do",
}

MODULES = {"import": "importing", "export": "exporting"}
"""The modules whose names are not those of their commands: `import` is a word of Python's own."""

USAGE = "usage: loopwise COMMAND ...\n\n{commands}\n\n`loopwise COMMAND --help` explains a command, with examples."


def main(arguments: list[str] | None = None) -> int:  # noqa: PLR0911 - one way out for each kind of trouble
    """Run a command line; returns the exit code."""
    # Idle OpenMP threads that spin were measured to slow two programs side by side 25 times. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _dispatch(arguments)
    except LoopwiseError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does: no complaint, and none from Python at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free some space" if full else "check the path and its permissions"
        return _complain(f"{error.strerror or error}{place}; {advice}", 2)
    except Exception as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
            return _complain("out of memory; take a smaller batch_size, slots or hidden_size", 2)
        if os.environ.get("LOOPWISE_DEBUG"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return _complain(f"internal error, please report it ({text}); LOOPWISE_DEBUG=1 shows where", 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
        print(USAGE.format(commands=commands))
        return 0
    name, *rest = arguments
    if name in {"--version", "-V"}:
        print(importlib.import_module("loopwise").__version__)
        return 0
    if name not in COMMANDS:
        return _complain(f"unknown command {name!r}{suggest(name, COMMANDS)}; known: {', '.join(COMMANDS)}", 2)
    command = importlib.import_module(f"loopwise.cli.{MODULES.get(name, name)}")
    if "torch" in sys.modules:  # this command computes
        importlib.import_module("loopwise.runtime").keep_freed_memory()
    return int(command.main(rest))


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"loopwise: {message}\n")
    return code
