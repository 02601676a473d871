"""Puzzles over HTTP: answers, errors, steps as they happen, and what is told of models and tasks."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import httpx
import numpy as np
import pytest

import loopwise
from loopwise.cli import main
from loopwise.serving.settings import Settings
from loopwise.solving.starts import Starts
from service import ENDLESS, Running, counting_folder, events, until


@pytest.fixture(scope="module")
def service(tmp_path_factory, trained, sorter):
    """A service of three models: one that counts, one of 4x4 Sudoku, one that sorts."""
    counting = counting_folder(tmp_path_factory.mktemp("models") / "counting")
    models = (("counting", counting), ("board", str(trained)), ("sorter", str(sorter)))
    with Running(Settings(models=models, slots=16, trust=True, max_puzzles=40, max_steps=200)) as running:
        yield running.ready()


def problem(response: httpx.Response) -> dict:
    """The problem of a response."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code
    assert told["type"].startswith("urn:loopwise:problem:")
    assert "\n" not in told["detail"]
    return told


def test_http_command_line_and_python_give_the_same(service, sorter, trained, tmp_path, capsys):
    """At equal slots a puzzle has the same answer, steps, halting probability and choice of start by all three ways."""
    for name, folder in (("sorter", sorter), ("board", trained)):
        solver = loopwise.load(folder, slots=16)
        puzzles = service.client.get("/v1/puzzles", params={"model": name, "count": 6, "seed": 1}).json()["puzzles"]
        file = tmp_path / f"{name}.txt"
        file.write_text("".join(f"{puzzle}\n" for puzzle in puzzles))
        for starts in (1, 3):
            budget = "halted=0.6|steps=7"
            count = Starts(count=starts, views=starts > 1, seed=5)
            ours = solver.solve(puzzles, budget, starts=count)
            options = ["--budget", budget, "--slots", "16", "--json", "--file", str(file)]
            options += ["--starts", str(starts), "--seed", "5"] if starts > 1 else []
            assert main(["solve", str(folder), *options]) == 0
            typed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            asked = {"model": name, "budget": budget, "starts": starts, "seed": 5}
            sent = service.solve(puzzles=puzzles, **asked).json()["results"]
            alone = [service.solve(puzzle=puzzle, **asked).json()["results"][0] for puzzle in puzzles]
            for one, by_line, by_http, by_itself in zip(ours, typed, sent, alone, strict=True):
                expected = (one.answer, one.verified, one.steps, one.stopped_by, round(one.halt_probability, 6))
                for other in (by_line, by_http, by_itself):
                    keys = ("answer", "verified", "steps", "stopped_by", "halt_probability")
                    assert tuple(other[key] for key in keys) == expected
                assert (one.start, one.total_steps) == (by_http["start"], by_http["total_steps"])


def test_each_puzzle_of_a_list_has_its_own_result(service):
    """Of a list, what cannot be read has an error in its place, and the others have answers in theirs."""
    response = service.solve(model="sorter", puzzles=["3 1 2", "x", [2, 1], 7, {"a": 1}, ""])
    assert response.status_code == 200
    results = response.json()["results"]
    assert [("answer" in result, "error" in result) for result in results] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
        (False, True),
        (False, True),
    ]
    assert results[1]["error"]["status"] == 422
    assert "no number of this task" in results[1]["error"]["detail"]


def test_a_budget_says_when_it_stops_and_the_service_has_the_last_word(service):
    """Steps, texts and deadlines are obeyed; more steps than the service allows are cut there."""
    steps = {
        "5": 5,
        "halted|steps=9": 3,
        "verified|steps=9": 3,
        "converged=4|steps=50": 7,
        f"steps={ENDLESS}": 200,
    }
    for budget, expected in steps.items():
        (result,) = service.solve(model="counting", puzzle=[3, 1], budget=budget).json()["results"]
        assert result["steps"] == expected, budget
    (result,) = service.solve(model="counting", puzzle=[30, 1], budget=12).json()["results"]
    assert (result["steps"], result["stopped_by"]) == (12, "steps")


def test_a_deadline_ends_a_solve_with_what_there_is(service):
    """With a deadline the answer that is there by then is the answer."""
    settings = service.hosting.settings
    object.__setattr__(settings, "max_steps", ENDLESS)  # for this once
    try:
        response = service.solve(model="counting", puzzle=[30, 1], budget=ENDLESS, deadline=0.3)
    finally:
        object.__setattr__(settings, "max_steps", 200)
    (result,) = response.json()["results"]
    assert result["stopped_by"] == "seconds"
    assert result["seconds"] >= 0.3


def test_steps_come_one_by_one(service):
    """A stream has every step with its answer, what changed, halting probability, residual, confidence and violations,
    as `trace` computes them; then the result, then [DONE].
    """
    response = service.solve(model="board", puzzle="1...............", stream=True, budget=4)
    assert response.headers["content-type"].startswith("text/event-stream")
    told = events(response.text)
    assert [name for name, _ in told] == ["step"] * 4 + ["result", ""]
    assert told[-1] == ("", "[DONE]")
    solver = service.hosting.hosts["board"].solver
    steps = solver.trace("1...............", max_steps=4)
    previous = None
    for (_, step), ours in zip(told, steps, strict=False):
        assert step["answer"] == ours.answer
        assert step["tokens"] == ours.tokens.tolist()
        assert step["halt_probability"] == pytest.approx(ours.halt_probability, abs=1e-5)
        changed = [] if previous is None else np.flatnonzero(ours.tokens != previous).tolist()
        assert step["changed"] == changed
        assert len(step["confidence"]) == 16
        assert all(0 < share <= 1 for share in step["confidence"])
        assert step["residual"] > 0
        assert step["violations"] == solver.task.violations(solver.read("1..............."), ours.tokens)
        assert step["verified"] == (not step["violations"] and 0 not in step["tokens"] and 1 not in step["tokens"])
        previous = ours.tokens
    result = told[-2][1]
    assert (result["answer"], result["steps"]) == (steps[-1].answer, 4)


def test_a_step_tells_of_the_guess_that_stood_in_it(service):
    """Before the first guess there is none; then each step tells where one digit stands among the clues, the
    same as the solver sees it.
    """
    puzzle, shown = "1...............", []
    asked = {"model": "board", "puzzle": puzzle, "starts": 1, "guess": 2, "budget": 5, "seed": 6}
    (result,) = service.solve(**asked, trace=True).json()["results"]
    solver = service.hosting.hosts["board"].solver
    solver.begin(puzzle, 5, starts=Starts(guess=2, seed=6), watch=shown.append).result()
    tokens = solver.read(puzzle)
    assert [step["guess"] for step in result["trace"][:2]] == [None, None]
    for step, glimpse in zip(result["trace"][2:], shown[2:], strict=True):
        guessed = tokens.copy()
        guessed[step["guess"]["position"]] = step["guess"]["token"]
        assert guessed.tolist() == glimpse.seen.tolist() != tokens.tolist()


def test_a_trace_is_the_stream_in_one_piece(service):
    """`trace` puts the same steps into the result, of several starts too; what changed is told of each start's own."""
    asked = {"model": "sorter", "puzzle": [3, 1, 2], "starts": 3, "budget": 3, "seed": 2}
    (result,) = service.solve(**asked, trace=True).json()["results"]
    streamed = [data for name, data in events(service.solve(**asked, stream=True).text) if name == "step"]

    def order(step):
        return step["start"], step["step"]

    assert sorted(result["trace"], key=order) == sorted(streamed, key=order)
    assert {step["start"] for step in streamed} == {0, 1, 2}
    for start in range(3):
        own = [np.array(step["tokens"]) for step in sorted(streamed, key=order) if step["start"] == start]
        told = [step["changed"] for step in sorted(streamed, key=order) if step["start"] == start]
        assert told == [[]] + [np.flatnonzero(new != old).tolist() for old, new in pairwise(own)]
    assert result["trace_complete"]
    assert result["single"]["start"] == 0


@pytest.mark.parametrize(
    ("members", "status", "words"),
    [
        ({"puzzle": [3, 1]}, 422, "which model"),
        ({"model": "conting", "puzzle": [3, 1]}, 404, "counting"),
        ({"model": "sorter"}, 422, "one of puzzle and puzzles"),
        ({"model": "sorter", "puzzle": [1], "puzzles": [[1]]}, 422, "one of puzzle and puzzles"),
        ({"model": "sorter", "puzzles": []}, 422, "puzzles"),
        ({"model": "sorter", "puzzles": [[1]] * 41}, 413, "at most 40"),
        ({"model": "sorter", "puzzles": [[1]] * 40, "starts": 40}, 413, "fewer at a time"),
        ({"model": "sorter", "puzzles": [[1]], "stream": True}, 422, "one puzzle"),
        ({"model": "sorter", "puzzle": [1], "starts": 65}, 422, "at most 64"),
        ({"model": "sorter", "puzzle": [1], "starts": 0}, 422, "starts"),
        ({"model": "sorter", "puzzle": [1], "starts": "2"}, 422, "starts"),
        ({"model": "sorter", "puzzle": [1], "budget": "halted"}, 422, "may never end"),
        ({"model": "sorter", "puzzle": [1], "budget": "thinking=3"}, 422, "thinking"),
        ({"model": "sorter", "puzzle": [1], "budget": True}, 422, "budget"),
        ({"model": "sorter", "puzzle": [1], "deadline": -1}, 422, "deadline"),
        ({"model": "sorter", "puzzle": [1], "select": "luck"}, 422, "luck"),
        ({"model": "sorter", "puzzle": [1], "seed": -1}, 422, "seed"),
        ({"model": "sorter", "puzzle": [1], "colour": "red"}, 422, "colour"),
        ({"model": "sorter", "puzzle": [99]}, 422, "no number of this task"),
        ({"model": "sorter", "puzzle": [1] * 25}, 422, "at most 24"),
        ({"model": "sorter", "puzzle": 5}, 422, "puzzle"),
        ({"model": "board", "puzzle": "11.............."}, 422, "twice"),
        ({"model": "board", "puzzle": "1"}, 422, "16"),
        ({"model": "counting", "puzzle": [3, 31]}, 500, "not finite"),
        ({"model": "counting", "puzzle": [3, 1], "sigma_init": 1.0, "starts": 2, "select": "verified,"}, 422, "select"),
    ],
)
def test_a_mistake_is_told_in_one_line(service, members, status, words):
    """Each kind of mistake has its status and a problem that says what to do."""
    response = service.solve(**members)
    assert response.status_code == status
    assert words in problem(response)["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"puzzle": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"null", 422),
        (b"[]", 422),
        (b'{"puzzle": NaN}', 422),
        (b'{"puzzle": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "sorter", "puzzle": [' + b"9" * 5000 + b"]}", 400),
        (b'{"model": "sorter", "puzzle": [1], "deadline": 1e999}', 422),
    ],
)
def test_a_body_that_is_none_is_refused(service, body, status):
    """What is no JSON is 400, what is no request is 422."""
    response = service.client.post("/v1/solve", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    problem(response)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", None])
def test_what_a_foreign_page_could_send_is_refused(service, kind):
    """A body that is not called JSON is refused, as browsers send others for any page without asking."""
    headers = {} if kind is None else {"content-type": kind}
    response = service.client.post("/v1/solve", content=b'{"model": "sorter", "puzzle": [1]}', headers=headers)
    assert response.status_code == 415
    problem(response)


def test_paths_and_methods_that_are_not_there_are_problems(service):
    """404 and 405 are problems too, and 405 says what is allowed."""
    assert "GET /nothing" in problem(service.client.get("/nothing"))["detail"]
    response = service.client.get("/v1/solve")
    assert (problem(response)["status"], response.headers["allow"]) == (405, "POST")
    assert service.client.get("/static/../app.py").status_code == 404
    assert service.client.get("/static/%2e%2e/app.py").status_code == 404
    for wrong in ({"count": 0}, {"count": 101}, {"seed": -1}, {"count": "many"}):
        response = service.client.get("/v1/puzzles", params={"model": "sorter", **wrong})
        assert problem(response)["status"] == 422


def test_an_update_of_the_page_is_seen_at_once(service):
    """Browsers ask for the page and its parts each time, and are told when they have them already."""
    assert service.client.get("/").headers["cache-control"] == "no-cache"
    first = service.client.get("/static/app.js")
    again = service.client.get("/static/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code) == (200, 304)
    assert first.headers["cache-control"] == again.headers["cache-control"] == "no-cache"


def test_models_and_tasks_are_told(service, trained):
    """What a page must know of models, tasks and limits is there."""
    told = service.client.get("/v1/models").json()
    assert [model["name"] for model in told["models"]] == ["counting", "board", "sorter"]
    board = told["models"][1]
    assert (board["task"], board["shape"], board["symbols"][:3]) == ("sudoku", [4, 4], ["", ".", "1"])
    assert (board["reasoner"], board["trained_steps"], board["slots"]) == ("trm", 4, 16)
    assert board["parameters"] > 1000
    assert board["symmetric"]
    assert not board["any_length"]
    assert told["models"][2]["max_length"] == 24
    assert told["limits"]["max_puzzles"] == 40
    tasks = {task["name"]: task for task in service.client.get("/v1/tasks").json()["tasks"]}
    assert tasks["sudoku"]["models"] == ["board"]
    assert tasks["sorting"]["summary"]


def test_puzzles_are_drawn_by_their_seed(service):
    """Puzzles are in a form that the task reads, the same for the same seed; a task without data has none."""
    for name in ("board", "sorter"):
        asked = {"model": name, "count": 30, "seed": 4}
        puzzles = service.client.get("/v1/puzzles", params=asked).json()["puzzles"]
        assert puzzles == service.client.get("/v1/puzzles", params=asked).json()["puzzles"]
        assert puzzles != service.client.get("/v1/puzzles", params={**asked, "seed": 5}).json()["puzzles"]
        results = service.solve(model=name, puzzles=puzzles, budget=1).json()["results"]
        assert all("answer" in result for result in results)
    assert problem(service.client.get("/v1/puzzles", params={"model": "counting"}))["status"] == 404


def test_the_page_may_load_nothing_from_elsewhere(service):
    """The page is there, under a policy that allows this service alone."""
    response = service.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-request-id"] != service.client.get("/").headers["x-request-id"]


def test_what_nobody_foresaw_is_a_problem_without_its_traceback(service, monkeypatch):
    """An error that nobody foresaw is told as a problem like all others, and what it was stays in the log."""
    monkeypatch.setattr(service.hosting.hosts["sorter"], "draw", lambda count, seed: 1 / 0)
    told = problem(service.client.get("/v1/puzzles", params={"model": "sorter"}))
    assert (told["status"], told["type"]) == (500, "urn:loopwise:problem:internal")
    assert "division" not in told["detail"]
    assert service.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("member", ["stream", "trace"])
def test_a_puzzle_that_cannot_be_read_counts(service, member):
    """A puzzle that cannot be read is counted as invalid, with its steps asked for and without."""
    before = service.gauge("loopwise_requests_total", model="sorter", finish_reason="invalid")
    for members in ({}, {member: True}):
        assert service.solve(model="sorter", puzzle=[99], **members).status_code == 422
    assert service.gauge("loopwise_requests_total", model="sorter", finish_reason="invalid") == before + 2


def test_the_steps_that_are_kept_are_bounded(service, monkeypatch):
    """A trace of more positions than are kept says so; a stream whose steps were not all kept has no result."""
    monkeypatch.setattr("loopwise.serving.streaming.MOST_POSITIONS", 10)
    (result,) = service.solve(model="counting", puzzle=[30, 1], budget=20, trace=True).json()["results"]
    assert (len(result["trace"]), result["trace_complete"], result["steps"]) == (5, False, 20)
    monkeypatch.setattr("loopwise.serving.streaming.MOST_POSITIONS", 0)
    told = events(service.solve(model="counting", puzzle=[30, 1], budget=3, stream=True).text)
    assert [name for name, _ in told] == ["error", ""]
    assert told[0][1]["type"] == "urn:loopwise:problem:slow-reader"


def test_the_metrics_have_the_names_that_people_know(service):
    """Counters and histograms of requests are there, and count."""
    before = service.gauge("loopwise_requests_total", model="counting", finish_reason="halted")
    service.solve(model="counting", puzzles=[[2, 1], [3, 1]])
    assert service.gauge("loopwise_requests_total", model="counting", finish_reason="halted") == before + 2
    for name in ("request_latency_seconds", "queue_seconds", "time_to_first_step_seconds", "steps_per_request"):
        assert service.gauge(f"loopwise_{name}_count", model="counting") >= 2
    for name in ("requests_running", "requests_waiting", "slot_occupancy"):
        until(lambda name=name: service.gauge(f"loopwise_{name}") == 0)
    assert service.gauge("loopwise_ready", model="counting") == 1
    assert "&" not in service.client.get("/metrics").text.split("finish_reason", 1)[1].split("\n")[0]
    service.solve(model="counting", puzzle=[2, 1], budget="halted&halted&converged=1&halted|steps=9")
    assert service.gauge("loopwise_requests_total", finish_reason="converged&halted") == 1


def test_several_processes_tell_of_the_fullest(tmp_path):
    """Passes of several processes are added up; the share of the slots that are taken is the largest, no sum."""
    script = (
        "import os, sys; from loopwise.serving.metrics import Meters; meters = Meters()\n"
        "child = os.fork(); meters.look('m', (4, 0, 4) if child else (1, 0, 2))\n"
        "if child: os.waitpid(child, 0); sys.stdout.write(meters.text().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert 'loopwise_requests_running{model="m"} 5.0' in told.stdout
    assert 'loopwise_slot_occupancy{model="m"} 1.0' in told.stdout


def test_the_document_tells_the_truth(service):
    """The OpenAPI document has the paths, the bodies, the errors and examples that the service accepts."""
    document = service.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/models",
        "/v1/tasks",
        "/v1/puzzles",
        "/v1/solve",
    }
    solve = document["paths"]["/v1/solve"]["post"]
    assert {"200", "400", "404", "413", "422", "429", "503"} <= set(solve["responses"])
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in references
    for example in solve["requestBody"]["content"]["application/json"]["examples"].values():
        response = service.solve(model="board", **example["value"])
        # They are of 6x6 Sudoku, this board has 4x4 cells: no puzzles of its own, but requests that are understood.
        assert response.status_code == 200 or problem(response)["type"].endswith(":puzzle")


def test_serving_without_its_packages_is_told():
    """Where the extra is not installed, one line says what to install."""
    script = "import sys; sys.modules['uvicorn'] = None; from loopwise.cli import main; sys.exit(main(['serve', 'x']))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "loopwise[serve]" in ran.stderr
