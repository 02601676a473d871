"""What the tests of the page share: a service in a process of its own, and a browser that looks at it."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopwise
from loopwise.solving.solver import Solver

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

LONG = "5.4..1...........5...63..214..6....."
"""A 6x6 Sudoku that takes the shipped model 25 steps, more than it was trained with, and the shallow one 87."""

SHORT = "..1...42..1.31......4.....314....3.5"
"""One that takes the shipped model 4 steps, and the shallow one 10."""


def find_browser() -> str | None:
    """The program of a browser that can be driven, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def save_shallow(folder: Path) -> Path:
    """The shipped 6x6 model with the same weights but two updates a step in place of six: it needs more steps."""
    solver = loopwise.load("sudoku-6x6", slots=1, device="cpu")
    old = solver.reasoner
    config = dataclasses.replace(old.config, H_cycles=1, L_cycles=1)
    new = type(old)(config, old.spec)
    new.load_state_dict(old.state_dict())
    Solver(dataclasses.replace(solver.model, reasoner=new), slots=1, device="cpu").save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving(*models: str) -> Iterator[str]:
    """The address of a service of these models, in a process that ends with the block."""
    command = [sys.executable, "-m", "loopwise", "serve", *models, "--port", "0", "--slots", "16", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert " at http://" in first, first + process.stderr.read()
        with Path(os.devnull).open("w") as nowhere:
            # What it writes must be read, or it would wait one day for room in the pipe.
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=nowhere)
        yield first.strip().rsplit(" ", 1)[1]
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()
        drain.wait(60)


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """A headless browser that can reach no host but this one."""
    from playwright.sync_api import sync_playwright

    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-background-networking"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # chromium's own sandbox refuses to run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield browser
        browser.close()
