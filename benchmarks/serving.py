"""The service under load: what it answers, how fast, what it refuses, whether it loses anything and grows.

python benchmarks/serving.py [--model sudoku-6x6] [--seconds 300] [--loads 0.5,1,3] [--budget 16] [--batch 1]

First the engine alone solves puzzles for a while, without HTTP: the offline rate. Then the service is started as a
process of its own, and as many callers as keep it busy, each asking again when it has its answer, give the saturated
rate; that is its capacity. Then requests arrive at random (Poisson) at 0.5, 1 and 3 times the capacity, whether or not
those before are answered, each on a connection that is free or on a new one. The latency of a request counts from the
moment it was due. A request is answered (200), refused (429, 503), or lost: anything else, such as a broken connection.
A connection that the service closed while it was idle is no loss: the request goes out once more on a fresh one.
Memory is the resident set of the service. The generator shares the machine with the service; where others do so too,
compare what a second of the processor does: that of the service does HTTP as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import cycle
from typing import Any

import psutil

import loopwise
from loopwise.data import cache

MIB = 2**20
REFUSED = (429, 503)
PATIENCE = 90.0
"""Seconds after which a request without an answer is lost."""


class Caller:
    """Sends requests to the service on connections that it keeps."""

    def __init__(self, port: int, body: bytes) -> None:
        self.port = port
        head = f"POST /v1/solve HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.again = 0

    async def ask(self) -> int | str:
        """The status of an answer, or what went wrong."""
        try:
            async with asyncio.timeout(PATIENCE):
                while self.idle:
                    status = await self._ask(*self.idle.pop())
                    if status:
                        return status
                    self.again += 1
                return await self._ask(*await asyncio.open_connection("127.0.0.1", self.port)) or "closed"
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            return type(error).__name__

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """The status of an answer; 0 where the connection ends before its first byte."""
        try:
            writer.write(self.request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.close()
            if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                raise
            return 0
        length = re.search(rb"content-length: *(\d+)", head, re.I)
        if not length:
            raise ValueError("an answer without a length")
        await reader.readexactly(int(length.group(1)))
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])


def offline(arguments: argparse.Namespace, puzzles: list[list[int]]) -> tuple[float, float]:
    """Of the engine alone: puzzles a second, and a second of the processor."""
    solver = loopwise.load(arguments.model, slots=arguments.slots)
    solver.solve(puzzles[: arguments.slots], arguments.budget)
    began, spent, solved = time.monotonic(), time.process_time(), 0
    for _ in solver.stream(cycle(puzzles), arguments.budget):
        solved += 1
        if time.monotonic() - began > arguments.warm:
            break
    return solved / (time.monotonic() - began), solved / (time.process_time() - spent)


async def saturate(caller: Caller, callers: int, seconds: float) -> float:
    """Requests a second where `callers` ask again and again."""
    end, done = time.monotonic() + seconds, 0

    async def go() -> None:
        nonlocal done
        while time.monotonic() < end:
            status = await caller.ask()
            done += status == 200  # on a line of its own: the sum is read before what is awaited

    began = time.monotonic()
    await asyncio.gather(*(go() for _ in range(callers)))
    return done / (time.monotonic() - began)


async def load(caller: Caller, rate: float, seconds: float, process: psutil.Process, seed: int) -> dict[str, Any]:
    """What becomes of requests that arrive at random, `rate` a second."""
    rng = random.Random(seed)
    statuses: Counter[int | str] = Counter()
    latencies: list[float] = []
    memory: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        status = await caller.ask()
        statuses[status] += 1
        if status == 200:
            latencies.append(time.monotonic() - due)

    began = due = time.monotonic()
    sampled = 0.0
    while True:
        due += rng.expovariate(rate)
        if due - began > seconds:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.add(task := asyncio.create_task(one(due)))
        task.add_done_callback(tasks.discard)
        if due - sampled > 1.0:
            sampled = due
            memory.append(resident(process))
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    latencies.sort()
    lost = {str(status): n for status, n in statuses.items() if status not in (200, *REFUSED)}
    fifth = max(1, len(memory) // 5)
    return {
        "rate": rate,
        "sent": sum(statuses.values()),
        "answered": statuses[200],
        "refused": {str(status): statuses[status] for status in REFUSED if statuses[status]},
        "lost": lost,
        "answered_a_second": statuses[200] / took,
        **{f"p{p}": latencies[min(len(latencies) - 1, len(latencies) * p // 100)] for p in (50, 95, 99) if latencies},
        "mib_after_a_fifth": sum(memory[fifth : 2 * fifth]) / fifth if len(memory) > fifth else memory[0],
        "mib_in_the_last_fifth": sum(memory[-fifth:]) / fifth,
    }


def processor(process: psutil.Process) -> float:
    """Seconds of the processor that a process and those it started have spent."""
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def resident(process: psutil.Process) -> float:
    """MiB of a process and of those it started."""
    return float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])) / MIB


async def gauge(port: int, name: str) -> float:
    """The sum of a metric over all models."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.M))


def start(arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """The service, when it is ready, and its port."""
    command = [sys.executable, "-m", "loopwise", "serve", arguments.model, "--port", "0"]
    command += ["--slots", str(arguments.slots), "--workers", str(arguments.workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = int(process.stderr.readline().rsplit(":", 1)[1])
    ready = 0
    for line in process.stderr:
        ready += '"model ready"' in line
        if ready == arguments.workers:
            break
    # What else it logs is read and dropped, so that it does not wait for a reader.
    subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    return process, port


async def measure(
    arguments: argparse.Namespace, puzzles: list[list[int]], process: psutil.Process, port: int
) -> dict[str, Any]:
    """All measurements of the running service."""
    body = {"puzzles": puzzles[: arguments.batch], "budget": arguments.budget}
    caller = Caller(port, json.dumps(body).encode())
    callers = -(-2 * arguments.slots * arguments.workers // arguments.batch)
    await saturate(caller, callers, 3)
    spent = processor(process)
    capacity = await saturate(caller, callers, arguments.warm)
    rate = capacity * arguments.batch
    busy = (processor(process) - spent) / arguments.warm
    found = {"saturated_puzzles_a_second": rate, "saturated_puzzles_a_processor_second": rate / busy, "loads": []}
    for number, share in enumerate(arguments.loads):
        told = await load(caller, share * capacity, arguments.seconds, process, seed=number)
        found["loads"].append({"share": share, **told})
        latency = ", ".join(f"{p} {told[p]:.2f} s" for p in ("p50", "p95", "p99") if p in told)
        print(
            f"{share:g}x: {told['rate']:.1f} requests/s for {arguments.seconds:g} s: {told['sent']} sent, "
            f"{told['answered']} answered ({told['answered_a_second']:.1f}/s), refused {told['refused'] or 0}, "
            f"lost {told['lost'] or 0}; {latency}; "
            f"{told['mib_after_a_fifth']:.0f} -> {told['mib_in_the_last_fifth']:.0f} MiB",
            flush=True,
        )
    await asyncio.sleep(1.0)
    found["running"] = await gauge(port, "loopwise_requests_running")
    found["waiting"] = await gauge(port, "loopwise_requests_waiting")
    found["sent_again"] = caller.again
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sudoku-6x6")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--warm", type=float, default=30, help="seconds of the offline and of the saturated rate")
    parser.add_argument("--loads", type=lambda text: [float(part) for part in text.split(",")], default=[0.5, 1, 3])
    parser.add_argument("--budget", default="16")
    parser.add_argument("--batch", type=int, default=1, help="puzzles of a request")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    task = loopwise.load(arguments.model, slots=1).task
    inputs = cache.examples(task, "validation").inputs[:256]
    puzzles = [[0 if s == "." else int(s) for s in (task.spec.symbols[t] for t in row) if s] for row in inputs]
    rate, work = offline(arguments, puzzles)
    print(f"offline: {rate:.1f} puzzles/s, {work:.1f} a second of the processor", flush=True)
    process, port = start(arguments)
    try:
        found = asyncio.run(measure(arguments, puzzles, psutil.Process(process.pid), port))
    finally:
        process.terminate()
        process.wait(60)
    saturated = found["saturated_puzzles_a_second"]
    working = found["saturated_puzzles_a_processor_second"]
    print(
        f"saturated: {saturated:.1f} puzzles/s, {saturated / rate:.1%} of the offline engine's; "
        f"{working:.1f} a second of the processor, {working / work:.1%}"
    )
    print(f"passes left in slots {found['running']:g}, waiting {found['waiting']:g}; sent again {found['sent_again']}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {**vars(arguments), "offline": {"puzzles_a_second": rate, "puzzles_a_processor_second": work}, **found},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
