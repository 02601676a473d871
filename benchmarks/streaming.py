"""A long stream through the command line: is the memory flat, is the order kept, what is the rate?

python benchmarks/streaming.py [--puzzles 1000000] [--model sorting] [--budget BUDGET] [--starts N]

Rows of numbers are made on the fly and written to the standard input of `loopwise solve MODEL - --json`; every 1,000th
line is no puzzle. The answers are read as they come. An answer that the rules accept must be that to the row of its
line, and a line that is no puzzle must have its error: so the order is checked, without keeping anything. Memory is
the resident set of the solving process, its highest against what it was after the first answers.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

import psutil

NUMBERS = 16
BAD_EVERY = 1000
SETTLED = 2000
"""After so many answers the process has all that it needs."""
MIB = 2**20


def rows(count: int, seed: int = 0) -> Iterator[list[int] | None]:
    """The rows of the stream, the same at every call; None for a line that is no puzzle."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        yield None if number % BAD_EVERY == 0 else rng.choices(range(10), k=NUMBERS)


def feed(pipe: IO[str], count: int) -> None:
    """Write the stream."""
    with pipe:
        for row in rows(count):
            pipe.write(f"{json.dumps(row) if row else 'not a puzzle'}\n")


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puzzles", type=int, default=1_000_000)
    parser.add_argument("--model", default="sorting", help="one that sorts")
    parser.add_argument("--budget", default="")
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64)
    args = parser.parse_args()
    command = [sys.executable, "-m", "loopwise", "solve", args.model, "-", "--json"]
    command += ["--slots", str(args.slots), "--starts", str(args.starts), "--budget", args.budget]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    threading.Thread(target=feed, args=(process.stdin, args.puzzles), daemon=True).start()
    memory = psutil.Process(process.pid).memory_info
    settled = highest = solved = errors = answered = 0
    begun = told = time.monotonic()
    for row, line in zip(rows(args.puzzles), process.stdout, strict=True):
        answered += 1
        if answered == 1:
            begun = time.monotonic()
        record = json.loads(line)
        if ("error" in record) != (row is None):
            raise SystemExit(f"line {answered} is not in its place: {line}")
        if row is None:
            errors += 1
        elif record["verified"]:
            solved += 1
            if record["answer"] != sorted(row):
                raise SystemExit(f"answer {answered} belongs to another row: {line}")
        if answered % 500 == 0 or answered == args.puzzles:
            highest = max(highest, memory().rss)
            settled = highest if answered <= SETTLED else settled
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{answered:,} answers, {memory().rss / MIB:.0f} MiB", flush=True)
    seconds = time.monotonic() - begun
    code = process.wait()
    print(
        f"{answered:,} lines in order: {solved:,} solved, {errors:,} errors in their places, exit code {code}\n"
        f"{answered / seconds:,.0f} lines a second ({seconds:,.1f} s from the first answer)\n"
        f"memory {settled / MIB:.0f} MiB after {SETTLED:,} answers, {highest / MIB:.0f} MiB at most: "
        f"{(highest - settled) / MIB:+.1f} MiB"
    )


if __name__ == "__main__":
    main()
