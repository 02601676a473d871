"""The application: what is answered at which path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

import loopwise
from loopwise.serving import schemas
from loopwise.serving.documentation import ERRORS, SOLVE, describe_api
from loopwise.serving.guard import GONE, Guard, read_body
from loopwise.serving.hosting import Hosting
from loopwise.serving.jobs import Job, make_plan, reason
from loopwise.serving.problems import JsonResponse, Problem, problem_of, to_json
from loopwise.serving.results import conclude, conclude_one
from loopwise.serving.settings import Settings
from loopwise.serving.streaming import EventStream, Watch
from loopwise.types import Json

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"


def make_app(settings: Settings) -> Guard:
    """The application, guarded. Whoever runs it starts its `hosting`, which loads the models, and closes it."""
    hosting = Hosting(settings)
    app = FastAPI(
        title="loopwise",
        version=loopwise.__version__,
        description="Puzzles solved by tiny recursive reasoners, step by step.",
        docs_url=None,  # they load code from other hosts
        redoc_url=None,
        redirect_slashes=False,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },  # nothing leaves unasked
    )
    _add_errors(app)
    _add_health(app, hosting)
    _add_lists(app, hosting)
    _add_solve(app, hosting)
    _add_page(app)
    describe_api(app)
    return Guard(app, hosting)


def _add_errors(app: FastAPI) -> None:
    """Have every error told as a problem."""

    async def problem(request: Request, error: Problem) -> Response:
        return error.response()

    async def http(request: Request, error: HTTPException) -> Response:
        response = Problem(error.status_code, "http", f"{error.detail}: {request.method} {request.url.path}").response()
        response.headers.update(error.headers or {})
        return response

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return Problem(422, "option", _sentence(error.errors())).response()

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # for the log; there is nobody to read it

    async def unforeseen(request: Request, error: Exception) -> Response:
        return Problem(500, "internal", "an internal error; the log says more").response()

    app.add_exception_handler(Problem, problem)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, gone)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, unforeseen)


def _add_health(app: FastAPI, hosting: Hosting) -> None:
    @app.get("/healthz", summary="Whether the process lives", response_model=schemas.Health)
    async def healthz() -> Response:
        return JsonResponse({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Whether all models are warm and puzzles are taken",
        response_model=schemas.Health,
        responses={503: ERRORS[503]},
    )
    async def readyz() -> Response:
        if hosting.draining:
            hosting.check_open()
        waiting = [name for name, host in hosting.hosts.items() if not host.ready]
        if waiting:
            raise Problem(503, "not-ready", f"being loaded: {', '.join(waiting)}", retry_after=1)
        return JsonResponse({"status": "ready", "models": dict.fromkeys(hosting.hosts, "ready")})

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: ERRORS[401]},
    )
    async def metrics() -> Response:
        hosting.look()
        return Response(hosting.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_lists(app: FastAPI, hosting: Hosting) -> None:
    @app.get("/v1/models", summary="The served models", response_model=schemas.Models, responses={401: ERRORS[401]})
    async def models() -> Response:
        names = ("max_puzzles", "max_starts", "max_steps", "max_seconds", "max_body", "max_waiting")
        limits = {name: getattr(hosting.settings, name) for name in names}
        return JsonResponse({"models": [host.describe() for host in hosting.hosts.values()], "limits": limits})

    @app.get("/v1/tasks", summary="Their tasks", response_model=schemas.Tasks, responses={401: ERRORS[401]})
    async def tasks() -> Response:
        found: dict[str, dict[str, Json]] = {}
        for host in hosting.hosts.values():
            if host.ready:
                task = host.solver.task
                # Models of one task may differ in its options, such as the size of a board.
                key = f"{task.name} {task.spec.shape} {len(task.spec.symbols)}"
                about = {"name": task.name, "summary": host.summary, "symbols": list(task.spec.symbols)}
                found.setdefault(key, {**about, "shape": list(task.spec.shape), "models": []})["models"].append(
                    host.name
                )
        return JsonResponse({"tasks": list(found.values())})

    @app.get(
        "/v1/puzzles",
        summary="Puzzles drawn for a model",
        response_model=schemas.Puzzles,
        responses={status: ERRORS[status] for status in (401, 404, 422, 503)},
    )
    async def puzzles(
        model: Annotated[str | None, Query(max_length=200)] = None,
        count: Annotated[int, Query(ge=1, le=100)] = 1,
        seed: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> Response:
        host = hosting.host(model)
        return JsonResponse({"model": host.name, "puzzles": host.draw(count, seed)})


def _add_solve(app: FastAPI, hosting: Hosting) -> None:
    @app.post(
        "/v1/solve",
        summary="Solve one puzzle or several",
        responses=ERRORS,
        openapi_extra=SOLVE,
    )
    async def solve(request: Request) -> Response:
        """One `puzzle` gets its result or an error as the response's status. Of `puzzles` each gets its own, in order;
        the status is 200. With `stream` the steps of one puzzle come as server-sent events: `step`, then `result` (or
        `error`), then `[DONE]`. Who goes away is given up.
        """
        hosting.check_open()
        notes = request.scope["loopwise"]
        # Neither the body nor the request is kept while it is solved, only the puzzles.
        job, watch, stream = _make_job(_read(await read_body(request.scope, request.receive, hosting)), hosting, notes)
        hosting.take(job)
        gone = asyncio.create_task(_end_when_gone(request, job))
        limit = asyncio.get_running_loop().call_later(hosting.settings.max_seconds, job.end, "late")
        job.ended.add_done_callback(lambda ended: gone.cancel())
        job.ended.add_done_callback(lambda ended: limit.cancel())
        try:
            await job.begin()
            if stream and watch is not None:
                return EventStream(job, watch, lambda: conclude_one(job), hosting.settings.receive_seconds)
            await asyncio.shield(job.ended)  # which others wait for, too
        except asyncio.CancelledError:
            job.end("gone")
            raise
        notes["outcome"] = job.ended.result()
        if job.ended.result() == "gone":
            raise ClientDisconnect
        return _answer(job, notes) if watch is None else await asyncio.to_thread(_answer_traced, job, watch, notes)


def _make_job(asked: schemas.SolveRequest, hosting: Hosting, notes: dict[str, Json]) -> tuple[Job, Watch | None, bool]:
    """The job of a request, who watches its steps, and whether they are streamed. Raises Problem."""
    host = hosting.host(asked.model)
    plan = make_plan(asked, host)
    notes |= {"model": host.name, "puzzles": len(plan.puzzles)}
    try:
        watch = Watch(host, asked.puzzle) if asked.stream or asked.trace else None
    except Exception as error:  # of a user's task, too
        host.meters.failed(host.name, reason(error))
        raise problem_of(error) from None
    hosting.check_open()
    return Job(host, plan, watch), watch, asked.stream


def _answer(job: Job, notes: dict[str, Json]) -> Response:
    """The response to a job that has ended."""
    if job.plan.several:
        results = conclude(job)
        notes["failed"] = sum("error" in result for result in results)
    else:
        results = [conclude_one(job)]
        notes["steps"] = results[0]["total_steps"]
    return JsonResponse({"model": job.host.name, "results": results})


def _answer_traced(job: Job, watch: Watch, notes: dict[str, Json]) -> Response:
    """The same with the steps. It may take a second and belongs in a thread of its own; each step is encoded by
    itself, as one call of the encoder would keep the event loop waiting all the same.
    """
    result = conclude_one(job)
    notes["steps"] = result["total_steps"]
    steps = b",".join(to_json(step) for step in watch.take())
    last = to_json(result | {"trace_complete": not watch.overflown}).removesuffix(b"}")
    body = b'{"model":%b,"results":[%b,"trace":[%b]}]}' % (to_json(job.host.name), last, steps)
    return Response(body, media_type="application/json")


async def _end_when_gone(request: Request, job: Job) -> None:
    """Give a job up when its caller goes away."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            job.end("gone")
            return


def _read(body: bytes) -> schemas.SolveRequest:
    """The request of a body. Raises Problem."""
    try:
        return schemas.SolveRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        if found[0]["type"] == "json_invalid":
            raise Problem(400, "json", f"the body is no JSON: {found[0]['ctx']['error']}") from None
        raise Problem(422, "option", _sentence(found)) from None


def _sentence(errors: Sequence[Any]) -> str:
    """What is wrong, in one line."""
    told = []
    for error in errors[:3]:
        place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
        told.append(f"{place[:100]}: {error['msg']}" if place else str(error["msg"]))
    return "; ".join(told).replace("Value error, ", "")


class _PageFiles(StaticFiles):
    """The page's parts, which browsers ask about each time: after an update none of them may be an old one."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", _PageFiles(directory=STATIC), name="static")
