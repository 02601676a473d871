"""loopwise serve."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from loopwise.cli.parsing import parse, take_positional
from loopwise.errors import ConfigError
from loopwise.serving.settings import Options, Settings, name_models

__all__ = ["main"]

ABOUT = """Serve trained models over HTTP, with a page that shows them think: loopwise serve CHECKPOINT ...

CHECKPOINT is a folder that `loopwise train` wrote, or the name of a shipped model (`loopwise models`); NAME=CHECKPOINT
gives it another name. Then open http://127.0.0.1:8000 in a browser, or POST puzzles to /v1/solve. Ctrl-C ends it: what
is on its way is finished first.

Only this machine can reach it. To let others, name an address and a file with a key, which requests must then show
as `Authorization: Bearer KEY`.

  loopwise serve sudoku-6x6
  loopwise serve sudoku-6x6 sorting mine=runs/six --port 9000
  loopwise serve runs/six --host 0.0.0.0 --key-file key.txt
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Options of loopwise serve."""

    key_file: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """File with the key that requests must show; the environment variable LOOPWISE_KEY serves as well."""
    allow_host: tuple[str, ...] = ()
    """Further names by which requests may address the service, where there is no key (behind a proxy, say)."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words, rest = [], list(arguments)
    while True:
        word, rest = take_positional(rest)
        if word is None:
            break
        words.append(word)
    args = parse(Arguments, rest, command="serve CHECKPOINT ...", about=ABOUT)
    if not words:
        raise ConfigError("say which models: loopwise serve CHECKPOINT ...; `loopwise models` lists the shipped ones")
    try:
        from loopwise.serving.logs import to_standard_error
        from loopwise.serving.server import listen, serve
        from loopwise.serving.workers import Workers
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'loopwise[serve]'") from None
    shared = {field.name: getattr(args, field.name) for field in fields(Options)}
    settings = Settings(models=name_models(words), key=_key(args.key_file), hosts=args.allow_host, **shared).check()
    try:
        listening = listen(settings)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {settings.port} is taken already; choose another with --port") from None
    address, port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    sys.stderr.write(f"serving {', '.join(name for name, _ in settings.models)} at http://{shown}:{port}\n")
    with listening, to_standard_error():
        if settings.workers == 1:
            serve(settings, listening)
        else:
            Workers(settings, listening).run()
    return 0


def _key(file: str) -> str:
    """The key of a file, or of the environment; an argument would be seen by everybody on the machine."""
    if not file:
        return os.environ.get("LOOPWISE_KEY", "")
    key = Path(file).read_text(encoding="utf-8").strip()
    if not key:
        raise ConfigError(f"{file} holds no key; write 16 characters or more into it")
    return key
