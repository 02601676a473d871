"""A terminal to type commands at, in this process or in one of their own."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

from loopwise.cli import main


class Terminal:
    """Runs commands and looks at what they say and leave."""

    def __init__(self, capsys, folder: Path, monkeypatch):
        self.capsys = capsys
        self.folder = folder
        self.monkeypatch = monkeypatch

    def type(self, *arguments, stdin: str | bytes | None = None) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of a command line."""
        if stdin is not None:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        self.capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def works(self, *arguments, stdin=None) -> str:
        """The standard output of a command that succeeds and complains of nothing."""
        code, out, err = self.type(*arguments, stdin=stdin)
        assert (code, err) == (0, "")
        return out

    def records(self, *arguments, stdin=None) -> list[dict]:
        """The JSON lines of a command that succeeds."""
        return [json.loads(line) for line in self.works(*arguments, stdin=stdin).splitlines()]

    def refuses(self, *arguments, stdin=None) -> str:
        """The complaint of a command that is refused as promised: exit code 2, one line, nothing written or changed."""
        before = files_of(self.folder)
        code, out, err = self.type(*arguments, stdin=stdin)
        assert code == 2, (code, out, err)
        assert err.startswith("loopwise: "), err
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "internal error" not in err
        assert "Traceback" not in err
        assert not out.strip()
        assert files_of(self.folder) == before
        return err


def files_of(folder):
    """{path: content} of everything in a folder."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def loopwise_process(*arguments, **options):
    def heed_interrupts():  # which a shell takes from what it starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-m", "loopwise", *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, preexec_fn=heed_interrupts, **pipes, **options)  # noqa: PLW1509 - no threads here
