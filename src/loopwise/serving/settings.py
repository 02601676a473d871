"""What whoever runs the service decides: which models, where it listens, and how much one request may ask for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import PurePath

from loopwise.errors import ConfigError
from loopwise.runtime import Device, SolvingDtype

__all__ = ["Options", "Settings", "name_models"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked on the command line, with its texts there."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    workers: int = 1
    """Processes, each with all models and slots of its own."""
    threads: int = 0
    """CPU threads of the engines of a process; 0: all cores but one, shared among the processes."""
    slots: int = 64
    """Passes that a model works on side by side, in each process."""
    max_waiting: int = 1024
    """Passes that may wait for a slot; more are refused with 429."""
    max_puzzles: int = 512
    """Most puzzles of one request."""
    max_starts: int = 64
    """Most starts of one puzzle."""
    max_steps: int = 1024
    """Most supervision steps of one start; a budget that asks for more ends here."""
    max_seconds: float = 60.0
    """Most seconds that a request may take once it has been read."""
    max_body: int = 2**20
    """Most bytes of a request."""
    max_stretch: int = 4
    """How many times as long as in training a puzzle may be."""
    receive_seconds: float = 10.0
    """In which a request must have arrived, and a caller must read."""
    drain_seconds: float = 20.0
    """After SIGTERM or Ctrl-C, in which requests may finish."""
    device: Device = "auto"
    """Where to compute."""
    dtype: SolvingDtype = "trained"
    """Number format of activations; some processors take half the time in bfloat16 (`loopwise doctor` tells)."""
    compile: bool = False
    """Fuse the networks' kernels first, half a minute a model."""
    trust: bool = False
    """Import and call code of yours that a checkpoint names, such as the checker of a table."""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Everything that one process of the service must know. Checked by `check`."""

    models: tuple[tuple[str, str], ...]
    """(name in requests, checkpoint folder or name of a shipped model) of each model."""
    key: str = ""
    """The bearer key that requests must show; empty: none."""
    hosts: tuple[str, ...] = ()
    """Further names under which the service may be addressed, where there is no key."""

    def check(self) -> Settings:
        """The same settings. Raises ConfigError where they make no sense, or would be open to strangers."""
        least = {
            "workers": 1,
            "threads": 0,
            "slots": 1,
            "max_waiting": 0,
            "max_puzzles": 1,
            "max_starts": 1,
            "max_steps": 1,
            "max_body": 1024,
            "max_stretch": 1,
            "port": 0,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if self.port > 65535:
            raise ConfigError(f"port must be at most 65535, not {self.port}")
        for name in ("max_seconds", "receive_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.key and (len(self.key) < 16 or not self.key.isascii() or not self.key.isprintable() or " " in self.key):
            raise ConfigError("the key must have 16 characters or more, all of them printable ASCII without spaces")
        if not self.key and not _is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, so requests must show a key: write one into a "
                "file and name it with --key-file, or set LOOPWISE_KEY"
            )
        return self


def _is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_models(words: list[str]) -> tuple[tuple[str, str], ...]:
    """(name, checkpoint) of each `CHECKPOINT` or `NAME=CHECKPOINT`. Raises ConfigError where two have one name."""
    named: dict[str, str] = {}
    for word in words:
        name, equals, checkpoint = word.partition("=")
        if not equals:
            name, checkpoint = PurePath(word).name, word
        if not name or not checkpoint:
            raise ConfigError(f"{word!r} names no model; write CHECKPOINT or NAME=CHECKPOINT")
        if name in named:
            raise ConfigError(f"two models are called {name}; give one another name: {name}-2={checkpoint}")
        named[name] = checkpoint
    return tuple(named.items())
