"""The service when it is busy, when callers misbehave, when it ends, and who may reach it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest

from loopwise.cli import main
from loopwise.errors import ConfigError
from loopwise.serving.guard import read_body
from loopwise.serving.problems import Problem
from loopwise.serving.settings import Settings, name_models
from loopwise.serving.workers import NO_MODEL
from service import ENDLESS, Process, Running, counting_folder, events, gauge, until


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """The folder of a model that counts."""
    return counting_folder(tmp_path_factory.mktemp("models") / "counting")


@pytest.fixture
def service(counting):
    """A service with three slots and a queue of four."""
    settings = Settings(
        models=(("counting", counting),),
        slots=3,
        max_waiting=4,
        max_steps=ENDLESS,
        trust=True,
        receive_seconds=1.0,
        max_body=10_000,
    )
    with Running(settings) as running:
        yield running.ready()


def send(service, body: bytes, headers: str = "", room: int = 2**20) -> socket.socket:
    """A connection on which a request has been sent, with so much room for what comes and is not read."""
    connection = socket.socket()
    connection.settimeout(30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.connect(("127.0.0.1", service.port))
    head = f"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def forever(**members) -> bytes:
    return json.dumps({"puzzle": [30, 1], "budget": ENDLESS, **members}).encode()


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_a_full_queue_refuses_and_says_when_to_come_again(service):
    """What finds no room gets 429 with Retry-After, all of a list or nothing, and is taken when there is room."""
    busy = [send(service, forever()) for _ in range(7)]
    until(lambda: service.gauge("loopwise_requests_waiting") == 4)
    assert service.gauge("loopwise_requests_running") == 3
    assert service.gauge("loopwise_slot_occupancy") == 1
    response = service.solve(puzzle=[1, 1])
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["retry_after"] == int(response.headers["retry-after"])
    busy.pop().close()
    busy.pop().close()
    until(lambda: service.gauge("loopwise_requests_waiting") == 2)
    assert service.solve(puzzles=[[1, 1]] * 3).status_code == 429
    assert service.solve(puzzles=[[1, 1]] * 8).status_code == 413
    assert service.client.get("/healthz").status_code == 200
    for connection in busy:
        connection.close()
    until(service.idle)
    assert len(service.solve(puzzles=[[1, 1]] * 7).json()["results"]) == 7


@pytest.mark.parametrize("members", [{}, {"stream": True}, {"trace": True}, {"starts": 2, "sigma_init": 1.0}])
def test_who_goes_away_frees_the_slots(service, members):
    """A caller that closes the connection, in the middle of a stream too, is given up, and counted as cancelled."""
    before = service.gauge("loopwise_requests_total", finish_reason="cancelled")
    gone = service.gauge("loopwise_http_responses_total", status="499")
    connection = send(service, forever(**members))
    until(lambda: service.gauge("loopwise_requests_running") > 0)
    if "stream" in members:
        while connection.recv(100) == b"":
            pass
    connection.close()
    until(service.idle)
    assert service.gauge("loopwise_requests_total", finish_reason="cancelled") == before + 1
    until(lambda: service.gauge("loopwise_http_responses_total", status="499") == gone + 1)


def test_who_goes_away_in_the_middle_of_a_body_is_no_error(service):
    """A caller that closes the connection before its body is complete is counted as gone, and nothing else."""
    connection = send(service, b"{}")
    assert b" 422 " in connection.recv(1000)
    connection.sendall(b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    connection.sendall(b"Content-Length: 100\r\n\r\n{")
    until(lambda: service.hosting.bytes_held == 1)
    connection.close()
    until(lambda: service.gauge("loopwise_http_responses_total", status="499") == 1)
    assert not service.gauge("loopwise_http_responses_total", status="500")


def test_a_stream_that_nobody_reads_is_given_up(service):
    """A caller that asks for steps and does not read them loses the stream; the slot is free again."""
    connection = send(service, forever(stream=True), room=2048)
    until(lambda: service.gauge("loopwise_requests_running") == 1)
    until(service.idle)
    connection.close()


def test_an_answer_that_nobody_reads_is_given_up_whatever_else_is_sent(service):
    """A second request on a connection whose answer is not read does not keep the connection open."""
    connection = send(service, forever(budget=4000, trace=True), room=2048)
    until(lambda: any(each.flow.write_paused for each in list(service.server.server_state.connections)))
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    service.client.close()  # whose own connection is open, too
    until(lambda: not service.server.server_state.connections, seconds=20)
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1", b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_request_that_does_not_come_is_not_waited_for(service, sent):
    """A connection whose request has not begun or not come to its end in time is closed."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(sent)
        assert everything(connection) == b""


def test_a_second_request_that_does_not_come_is_not_waited_for_either(service):
    """The same holds for the second request of a connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert everything(connection).count(b"HTTP/1.1") == 1


def test_a_slow_body_is_not_waited_for(service):
    """A body that does not come to its end in time gets 408."""
    connection = send(service, b"")
    connection.close()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        head = b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b'Content-Length: 100\r\n\r\n{"puzzle"')
        assert b" 408 " in everything(connection).split(b"\r\n")[0]


def test_a_body_that_is_too_large_is_refused(service):
    """More bytes than are allowed get 413, with and without a length; who writes all before it reads hears it too."""
    for size in (10_001, 150_000):
        response = service.client.post("/v1/solve", content=b" " * size, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["status"]) == (413, 413)
    response = service.client.post(
        "/v1/solve", content=(b" " * 1000 for _ in range(50)), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert service.solve(puzzle=[1, 1]).status_code == 200


def test_what_is_too_large_is_not_kept(service):
    """Of a body that is too large, no more is held than of the largest that is allowed."""
    held = []

    async def receive():
        held.append(service.hosting.bytes_held)
        return {"type": "http.request", "body": b" " * 4000, "more_body": len(held) < 20}

    scope = {"headers": [(b"content-type", b"application/json")]}
    with pytest.raises(Problem, match="10000 bytes"):
        asyncio.run(read_body(scope, receive, service.hosting))
    assert max(held) == 8000
    assert service.hosting.bytes_held == 0


def test_what_callers_send_and_never_finish_is_bounded(service, monkeypatch):
    """While unfinished bodies fill what may be held, one more is told to come again later, and then is taken."""
    monkeypatch.setattr("loopwise.serving.guard.MOST_BODIES", 2)
    object.__setattr__(service.hosting.settings, "receive_seconds", 60.0)
    head = b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    slow = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(2)]
    for connection in slow:
        connection.sendall(head + b"Content-Length: 10000\r\n\r\n" + b" " * 9_999)
    until(lambda: service.hosting.bytes_held == 2 * 9_999)
    assert service.solve(puzzle=[1, 1]).status_code == 429
    for connection in slow:
        connection.close()
    until(lambda: service.solve(puzzle=[1, 1]).status_code == 200)
    assert service.hosting.bytes_held == 0


def test_a_time_limit_of_the_service_is_told(counting):
    """What takes longer than the service allows gets 503, and its slots are free again; of a list the rest is there."""
    settings = Settings(models=(("counting", counting),), slots=3, max_steps=ENDLESS, max_seconds=0.5, trust=True)
    with Running(settings) as service:
        service.ready()
        response = service.solve(puzzle=[30, 1], budget=ENDLESS)
        assert (response.status_code, "limit" in response.json()["detail"]) == (503, True)
        results = service.solve(puzzles=[[2, 1], [30, 1]], budget=f"verified&converged=1&halted|steps={ENDLESS}")
        assert results.status_code == 200
        until(service.idle)


def test_puzzles_are_not_taken_before_the_weights_are_warm(counting, monkeypatch):
    """Until a model is loaded and warm the service lives but is not ready, and says so with 503 and Retry-After."""
    import threading

    import loopwise

    load, gate = loopwise.load, threading.Event()

    def slow(*arguments, **options):
        gate.wait(60)
        return load(*arguments, **options)

    monkeypatch.setattr(loopwise, "load", slow)
    with Running(Settings(models=(("counting", counting),), slots=3, trust=True)) as service:
        until(lambda: service.server.started)
        assert service.client.get("/healthz").status_code == 200
        for response in (service.client.get("/readyz"), service.solve(puzzle=[1, 1])):
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert service.client.get("/v1/models").json()["models"] == [{"name": "counting", "ready": False, "slots": 3}]
        assert service.client.get("/v1/tasks").json() == {"tasks": []}
        assert 'loopwise_ready{model="counting"} 0.0' in service.client.get("/metrics").text
        gate.set()
        until(lambda: service.client.get("/readyz").status_code == 200)
        assert service.solve(puzzle=[1, 1]).status_code == 200


def test_a_model_that_is_not_there_ends_the_service(tmp_path, capfd):
    """A model that cannot be loaded is one line on the standard error, and exit code 2."""
    for number in ("1", "2"):
        assert main(["serve", str(tmp_path / "nothing"), "--port", "0", "--workers", number]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("loopwise: ")]
        assert len(lines) == 1


def test_a_key_is_needed_to_be_reached_from_elsewhere(counting, tmp_path, capsys, monkeypatch):
    """Another address than this machine's own is refused without a key; a key that is short is refused too."""
    monkeypatch.delenv("LOOPWISE_KEY", raising=False)
    assert main(["serve", counting, "--host", "0.0.0.0"]) == 2
    assert "--key-file" in capsys.readouterr().err
    (tmp_path / "key").write_text("short\n")
    assert main(["serve", counting, "--host", "0.0.0.0", "--key-file", str(tmp_path / "key")]) == 2
    assert "16 characters" in capsys.readouterr().err
    for host in ("::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="key"):
            Settings(models=(), host=host).check()
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Settings(models=(), host=host).check()


def test_who_does_not_show_the_key_gets_nothing(counting):
    """With a key, all but health, the page and the document need it, in whatever way it is wrong."""
    settings = Settings(models=(("counting", counting),), slots=3, trust=True, key="0123456789abcdef")
    with Running(settings) as service:
        service.ready()
        assert service.solve(puzzle=[1, 1]).status_code == 200
        with httpx.Client(base_url=service.client.base_url) as stranger:
            for path in ("/", "/healthz", "/readyz", "/openapi.json"):
                assert stranger.get(path).status_code == 200
            for shown in (
                {},
                {"authorization": "Bearer 0123456789abcdeg"},
                {"authorization": "Basic 0123456789abcdef"},
            ):
                for path in ("/v1/models", "/v1/tasks", "/metrics", "/v1/puzzles", "/v1/nothing"):
                    response = stranger.get(path, headers=shown)
                    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
                assert stranger.post("/v1/solve", json={"puzzle": [1, 1]}, headers=shown).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200), ("evil.example", 400), ("", 400)]
)
def test_a_page_of_another_site_cannot_ask_by_a_name_of_its_own(service, host, status):
    """Without a key only this machine's own names are answered, so that no foreign name that leads here is."""
    assert service.client.get("/v1/models", headers={"host": host}).status_code == status


def test_models_are_named():
    """A model is called by the last part of its path, or as the caller says; two of one name are refused."""
    assert name_models(["runs/six", "mine=runs/seven", "sorting"]) == (
        ("six", "runs/six"),
        ("mine", "runs/seven"),
        ("sorting", "sorting"),
    )
    for words in (["a/six", "b/six"], ["="], ["six="]):
        with pytest.raises(ConfigError):
            name_models(words)


async def hammer(port: int, seconds: float, callers: int, found: dict, body: bytes) -> None:
    """Ask again and again; count how the requests end."""

    async def go(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            try:
                response = await client.post("/v1/solve", content=body, headers={"content-type": "application/json"})
                kind = response.status_code
            except httpx.ConnectError:
                kind = "not connected"
                await asyncio.sleep(0.05)
            except httpx.TransportError as error:
                kind = type(error).__name__
            found[kind] = found.get(kind, 0) + 1

    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        await asyncio.gather(*(go(client) for _ in range(callers)))


def test_sigterm_under_load_loses_nothing(sorter):
    """On SIGTERM, requests that were accepted are answered, or refused with 503; none breaks off, but for the one that
    may knock in the moment in which the door closes. The process ends by itself with exit code 0 in the drain time.
    """
    body = json.dumps({"puzzles": [[3, 1, 2]] * 4, "budget": 30}).encode()
    with Process(str(sorter), "--slots", "16", "--drain-seconds", "20") as service:
        service.ready()
        found = {}

        async def scenario():
            load = asyncio.create_task(hammer(service.port, 3, 24, found, body))
            await asyncio.sleep(1)
            service.process.send_signal(signal.SIGTERM)
            await load

        asyncio.run(scenario())
        assert service.process.wait(30) == 0
        assert found[200] > 0
        assert found.pop("ReadError", 0) <= 1
        assert found.keys() <= {200, 503, "not connected"}, found
        assert service.events("draining")
        assert service.events("ended")


def test_what_outlasts_the_drain_time_is_refused(counting):
    """What is still on its way when the drain time is over gets a clear 503, a stream an error event."""
    settings = Settings(
        models=(("counting", counting),), slots=3, max_steps=ENDLESS, trust=True, drain_seconds=0.5, key="k" * 16
    )
    with Running(settings) as service:
        service.ready()
        key = f"Authorization: Bearer {settings.key}\r\n"
        plain, stream = (send(service, forever(stream=streamed), headers=key) for streamed in (False, True))
        until(lambda: service.gauge("loopwise_requests_running") == 2)
        service.server.handle_exit(signal.SIGTERM, None)
        assert service.client.get("/readyz").status_code == 503
        late = service.solve(puzzle=[1, 1])
        assert (late.status_code, late.headers["connection"]) == (503, "close")
        answer = everything(plain)
        assert b" 503 " in answer.split(b"\r\n")[0]
        assert b"shutting down" in answer
        told = everything(stream)
        assert b"event: error" in told
        assert b"[DONE]" in told
        plain.close()
        stream.close()
        service.thread.join(20)
        assert not service.thread.is_alive()


def test_after_kill_9_it_starts_again(sorter):
    """Killed under load, the service is started anew on the same port and answers."""
    with Process(str(sorter), "--slots", "4") as service:
        service.ready()
        busy = send(service, json.dumps({"puzzle": [3, 1], "budget": 1000}).encode())
        service.process.kill()
        assert everything(busy) == b""
        busy.close()
        service.process.wait(10)
        with Process(str(sorter), "--slots", "4", port=service.port) as again:
            again.ready()
            assert again.client.post("/v1/solve", json={"puzzle": [3, 1]}).status_code == 200


def test_several_processes_share_the_work_and_replace_each_other(sorter):
    """With two workers both answer, the metrics are of both, one that is killed is replaced, and SIGTERM ends all."""
    with Process(str(sorter), "--slots", "2", "--workers", "2") as service:
        service.ready()
        until(lambda: len(service.events("model ready")) == 2)
        found = {}
        asyncio.run(hammer(service.port, 1, 16, found, json.dumps({"puzzle": [3, 1], "budget": 4}).encode()))
        assert set(found) == {200}
        workers = {int(record["id"].split("-")[0]) for record in service.events("request")}
        until(lambda: gauge(service.client, "loopwise_requests_total") == found[200])
        assert gauge(service.client, "loopwise_ready") == 2
        os.kill(min(workers), signal.SIGKILL)
        until(lambda: service.events("process died"))
        while len(service.events("model ready")) < 3:
            # Each on a connection of its own, which the new process must not take before it is warm.
            assert httpx.get(f"{service.client.base_url}/readyz").status_code == 200
        until(lambda: gauge(service.client, "loopwise_ready") == 2)
        assert service.client.post("/v1/solve", json={"puzzle": [3, 1]}).status_code == 200
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(30) == 0
        assert len(service.events("ended")) == 2


def test_a_process_that_cannot_load_again_leaves_the_others_alone(sorter, tmp_path):
    """Where a process dies and its successor cannot load the model, the others serve on, and it is tried again."""
    folder = shutil.copytree(sorter, tmp_path / "model")
    with Process(f"sorting={folder}", "--slots", "2", "--workers", "2") as service:
        service.ready()
        until(lambda: len(service.events("model ready")) == 2)
        workers = psutil.Process(service.process.pid).children()
        serving = [worker for worker in workers if "spawn_main" in " ".join(worker.cmdline())]
        folder.rename(tmp_path / "away")
        serving[0].kill()
        until(lambda: NO_MODEL in [record["exit_code"] for record in service.events("process died")])
        assert service.client.post("/v1/solve", json={"puzzle": [3, 1]}).status_code == 200
        (tmp_path / "away").rename(folder)
        until(lambda: len(service.events("model ready")) == 3)


def test_killed_processes_leave_the_port(sorter):
    """Where the parent of several processes is killed they end too, and the port is free for the next service."""
    with Process(str(sorter), "--slots", "2", "--workers", "2") as service:
        service.ready()
        service.process.kill()
        service.process.wait(10)

        def started() -> bool:
            try:
                with Process(str(sorter), "--slots", "2", port=service.port) as again:
                    again.ready()
                    return again.client.post("/v1/solve", json={"puzzle": [3, 1]}).status_code == 200
            except AssertionError:  # the port is taken still
                return False

        until(started)


def test_a_second_signal_ends_it_at_once(counting):
    """Who asks twice does not wait for what is on its way, which is refused, and sees no traceback."""
    tests = str(Path(__file__).parent)
    options = ["--trust", "--max-steps", str(ENDLESS), "--drain-seconds", "60", "--max-seconds", "60"]
    with Process(f"counting={counting}", *options, path=tests) as service:
        service.ready()
        busy = send(service, forever())
        until(lambda: gauge(service.client, "loopwise_requests_running") == 1)
        service.process.send_signal(signal.SIGINT)
        until(lambda: service.events("draining"))
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(10) == 0
        assert b" 503 " in everything(busy).split(b"\r\n")[0]
        busy.close()
        assert "Traceback" not in "".join(service.lines)


def test_the_log_has_a_line_of_json_for_each_request(sorter):
    """Each request is one JSON object with an id that the response has too, what was asked and how it ended."""
    with Process(str(sorter), "--slots", "2") as service:
        service.ready()
        response = service.client.post("/v1/solve", json={"puzzles": [[3, 1], "x"]})
        name = response.headers["x-request-id"]
        until(lambda: any(record["id"] == name for record in service.events("request")))
        (record,) = [record for record in service.events("request") if record["id"] == name]
        assert (record["method"], record["path"], record["status"]) == ("POST", "/v1/solve", 200)
        assert (record["model"], record["puzzles"], record["failed"]) == ("sorting", 2, 1)
        assert all(line.startswith("{") for line in service.lines[1:])
        assert not [record for record in service.events("request") if record["path"] == "/readyz"]


def test_events_are_read_as_they_are_written():
    """The reader of these tests reads what a stream is made of."""
    assert events('event: step\ndata: {"a": 1}\n\n: still here\n\ndata: [DONE]\n\n') == [
        ("step", {"a": 1}),
        ("", "[DONE]"),
    ]
