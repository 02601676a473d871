"""A service to ask in tests: in this process, where a test can look inside, or in one of its own, to be killed."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx

from counting import Counting, counting_model
from loopwise.serving.app import make_app
from loopwise.serving.server import listen, make_server
from loopwise.serving.settings import Settings
from loopwise.solving.solver import Solver

ENDLESS = 10**6
"""Steps that no test waits for."""


class Saved(Counting):
    """The reasoner that counts, made as a checkpoint makes it."""

    def __init__(self, config, spec, dtype):
        super().__init__(spec)


def counting_folder(folder: Path) -> str:
    """A checkpoint of the model that counts: the first number of a puzzle says how many steps it takes."""
    model = counting_model(max_steps=31)
    reasoner = Saved(None, model.task.spec, None)
    Solver(replace(model, reasoner=reasoner), device="cpu").save_pretrained(folder)
    return str(folder)


class Running:
    """A service in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.listening = listen(replace(settings, port=0))
        self.port = self.listening.getsockname()[1]
        guard = make_app(settings)
        self.hosting = guard.hosting
        self.server = make_server(guard)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, headers=_key(settings))

    def __enter__(self) -> "Running":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.server.handle_exit(15, None)
        self.server.handle_exit(15, None)
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.hosting.close()  # a second signal does not wait for the engines

    def ready(self) -> "Running":
        """The same, when its models are warm."""
        until(lambda: self.hosting.ready or self.hosting.failure)
        assert self.hosting.failure is None, repr(self.hosting.failure)
        return self

    def solve(self, **members: object) -> httpx.Response:
        """The response to a request with such members."""
        return self.client.post("/v1/solve", json=members)

    def gauge(self, name: str, **labels: str) -> float:
        """The sum of a metric over the labels that are not given."""
        return gauge(self.client, name, **labels)

    def idle(self) -> bool:
        """Whether nothing is in slots, waits, or is counted as on its way."""
        hosts = self.hosting.hosts.values()
        left = self.gauge("loopwise_requests_running") + self.gauge("loopwise_requests_waiting")
        return not left and not any(host.on_the_way for host in hosts) and not self.hosting.jobs


class Process:
    """A service in a process of its own, as `loopwise serve` runs it."""

    def __init__(self, *arguments: str, port: int = 0, path: str = "") -> None:
        """`path` is where it finds modules beside the usual places."""
        command = [sys.executable, "-m", "loopwise", "serve", *arguments, "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), path])}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        first = self.process.stderr.readline()
        self.lines.append(first)
        found = re.search(r":(\d+)$", first)
        if found is None:
            self.lines += self.process.stderr.readlines()
            self.process.wait(30)
            raise AssertionError("".join(self.lines))
        self.port = int(found.group(1))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join(10)
            self.process.stderr.close()

    def ready(self) -> "Process":
        """The same, when its models are warm."""

        def asked() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return self.client.get("/readyz").status_code == 200
            return False

        until(asked, seconds=120)
        return self

    def events(self, name: str) -> list[dict]:
        """The lines of its log that tell of such events."""
        records = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [record for record in records if record["event"] == name]


def gauge(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not given."""
    text = client.get("/metrics").raise_for_status().text
    rows = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.M)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for given, value in rows if all(label in given for label in wanted))


def until(condition, seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def events(text: str) -> list[tuple[str, object]]:
    """(name, data) of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def _key(settings: Settings) -> dict[str, str]:
    return {"authorization": f"Bearer {settings.key}"} if settings.key else {}
