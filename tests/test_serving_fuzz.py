"""The service under what nobody should send: cases made from its own document, and connections that break every rule.

LOOPWISE_CASES says how many of each there are; the full proof is LOOPWISE_CASES=10000.
"""

import json
import os
import random
import socket
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import psutil
import pytest
import requests
import schemathesis
from schemathesis import checks
from schemathesis.generation import GenerationMode

from loopwise.serving.settings import Settings
from service import Running, until

CASES = int(os.environ.get("LOOPWISE_CASES", "300"))

PUZZLES = {"board": "1...............", "sorter": [3, 1, 2]}
SHARES = {
    "/v1/solve": 0.4,
    "/v1/puzzles": 0.06,
    "/v1/models": 0.01,
    "/v1/tasks": 0.01,
    "/healthz": 0.01,
    "/readyz": 0.01,
    "/metrics": 0.01,
}
"""Of the cases, how many go to a path, in each of two modes."""

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(trained, sorter):
    """A service that allows little of anything, so that its limits are met."""
    settings = Settings(
        models=(("board", str(trained)), ("sorter", str(sorter))),
        slots=4,
        max_waiting=28,
        max_steps=50,
        max_puzzles=8,
        max_starts=8,
        max_body=20_000,
        receive_seconds=0.5,
    )
    with Running(settings) as running:
        yield running.ready()


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        (path, mode)
        for path in SHARES
        for mode in GenerationMode
        # Without a parameter nothing can be forbidden.
        if mode == GenerationMode.POSITIVE or path in ("/v1/solve", "/v1/puzzles")
    ],
)
def test_no_case_of_the_document_is_an_error_of_the_server(service, path, mode):
    """Whatever is made from the document, of what it allows and of what it forbids, gets a status that the document
    names, in the form that it says, and never 5xx.
    """
    schema = schemathesis.openapi.from_url(f"{service.client.base_url}/openapi.json")
    operation = schema[path]["POST" if path == "/v1/solve" else "GET"]
    statuses = Counter()

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), model=hypothesis.strategies.integers(0, 4))
    @hypothesis.settings(
        max_examples=max(5, int(CASES * SHARES[path])),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def ask(case, model):
        if isinstance(case.body, dict) and model < 4:
            # Names and puzzles that the document cannot know, without which hardly a case would reach the solver.
            name = case.body["model"] = list(PUZZLES)[model % 2]
            if model > 1:
                case.body["puzzle"] = PUZZLES[name]
                case.body.pop("puzzles", None)
                known = {"budget": "converged=2|steps=9", "select": "vote,q", "starts": 3}
                case.body |= {member: value for member, value in known.items() if member in case.body}
        response = case.call(session=session, timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with requests.Session() as session:
        ask()
    until(service.idle)
    print(path, mode.value, dict(statuses))
    assert max(statuses) < 500
    if (path, mode) == ("/v1/solve", GenerationMode.POSITIVE):
        assert statuses[200] > CASES * SHARES[path] / 5


def test_misdeeds_leave_no_trace(service):
    """Malformed heads and bodies, callers that are slow, go away or break off, sixteen at a time: nothing crashes, no
    response is 5xx, and in the end every slot is free, no connection and no file is open, and puzzles are solved.
    """
    process = psutil.Process()
    service.solve(model="board", puzzle=PUZZLES["board"])
    # Traces are composed by asyncio's own pool of threads, which grows up to its bound and stays.
    threads = threading.active_count() + min(32, (os.cpu_count() or 1) + 4)
    files = process.num_fds()
    statuses = Counter()
    with ThreadPoolExecutor(16) as pool:
        for status in pool.map(lambda number: misdeed(service.port, random.Random(number)), range(CASES)):
            statuses[status] += 1
    print("misdeeds", dict(statuses))
    until(service.idle)
    until(lambda: len(service.server.server_state.connections) <= 1)
    until(lambda: not service.hosting.in_flight)
    assert max(statuses) < 500
    assert {200, 400, 422} <= set(statuses)
    assert service.solve(model="board", puzzle=PUZZLES["board"], budget=3).json()["results"][0]["steps"] == 3
    until(lambda: process.num_fds() <= files + 2)
    until(lambda: threading.active_count() <= threads)


def misdeed(port: int, rng: random.Random) -> int:
    """Do something that is not done; the status of the response, 0 where there was none."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            rng.choice([garbage, bad_head, bad_body, bad_body, leave, leave, dawdle, pipeline])(connection, rng)
            received = connection.recv(65536)
        except (ConnectionError, TimeoutError):
            return 0
        assert not received or received.startswith((b"HTTP/1.1 ", b"event: "))
        return int(received.split(b" ", 2)[1]) if received.startswith(b"HTTP/1.1 ") else 0


def request(body: bytes, *headers: bytes) -> bytes:
    """A request to solve."""
    lines = [b"POST /v1/solve HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def good_body(rng: random.Random, **members) -> bytes:
    """What the service understands."""
    name = rng.choice(list(PUZZLES))
    some = {"puzzles": [PUZZLES[name]] * rng.randint(1, 8)} if rng.random() < 0.5 else {"puzzle": PUZZLES[name]}
    return json.dumps({"model": name, "budget": rng.choice([1, 50, "halted|steps=20"]), **some, **members}).encode()


def garbage(connection, rng):
    """Bytes."""
    connection.sendall(rng.randbytes(rng.randint(1, 2000)) + rng.choice([b"", b"\r\n\r\n"]))
    connection.shutdown(socket.SHUT_WR)


def bad_head(connection, rng):
    """A head that breaks a rule, or has what no other has."""
    head = rng.choice(
        [
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Expect: 100-continue",
            b"Content-Encoding: gzip",
            b"X: " + b"y" * rng.choice([1000, 70_000]),
            b"X" * 70_000 + b": y",
            b"X: \x00",
            b"X : y",
            b": y",
            b"\xff\xfe: y",
            b"Host: elsewhere",
            b"Connection: upgrade\r\nUpgrade: websocket",
            b"Authorization: Bearer \xc3\xa4",
        ]
    )
    whole = request(good_body(rng), head)
    if rng.random() < 0.3:
        line = rng.choice(
            [
                b"GET",
                b"GET /v1/solve",
                b"POST /v1/solve HTTP/9.9",
                b"\x00 / HTTP/1.1",
                b"POST http://example.org/ HTTP/1.1",
            ]
        )
        whole = line + whole[whole.index(b"\r\n") :]
    connection.sendall(whole)
    connection.shutdown(socket.SHUT_WR)


def bad_body(connection, rng):
    """A body with bytes changed, lost or put in."""
    body = bytearray(good_body(rng))
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(body))
        change = rng.randrange(4)
        if change == 0:
            body[at] = rng.randrange(256)
        elif change == 1:
            del body[at : at + rng.randint(1, 5)]
        elif change == 2:
            body[at:at] = rng.choice(
                [b"[" * 2000, b"9" * 5000, b"null", b'"\\ud800"', b"1e999", b"NaN", b"{}", b"\x00"]
            )
        else:
            body[at:at] = body[: rng.randrange(len(body))]
        body = body or bytearray(b"x")
    connection.sendall(request(bytes(body)))


def leave(connection, rng):
    """Ask, and go away: at once or in the middle of the answer, politely or not."""
    body = good_body(rng)
    if rng.random() < 0.5:
        body = json.dumps({"model": "board", "puzzle": PUZZLES["board"], "budget": 50, "stream": True}).encode()
    connection.sendall(request(body))
    if rng.random() < 0.5:
        connection.recv(rng.randint(1, 3000))
    if rng.random() < 0.5:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise ConnectionError


def dawdle(connection, rng):
    """Send a part and then nothing, or all of it byte by byte."""
    whole = request(good_body(rng))
    cut = rng.randrange(len(whole))
    if rng.random() < 0.1:
        connection.sendall(whole[:cut])  # and wait for what the service does
        return
    for at in range(0, len(whole), 7):
        connection.sendall(whole[at : at + 7])


def pipeline(connection, rng):
    """Several requests at once, of which not all are good."""
    bodies = [good_body(rng), b"{", good_body(rng, colour="red"), b"\xff"]
    connection.sendall(b"".join(request(rng.choice(bodies)) for _ in range(rng.randint(2, 5))))
    connection.shutdown(socket.SHUT_WR)
