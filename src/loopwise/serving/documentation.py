"""What the OpenAPI document says beyond what follows from the code: the request's body, events, errors, examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from loopwise.serving import schemas
from loopwise.serving.problems import PROBLEM_JSON, Problem
from loopwise.types import Json

__all__ = ["ERRORS", "SOLVE", "describe_api"]

EXAMPLES: dict[int, Problem] = {
    400: Problem(400, "json", "the body is no JSON: expected value at line 1 column 2"),
    401: Problem(401, "key", "show the service's key, as in Authorization: Bearer KEY"),
    404: Problem(404, "model", "there is no model 'sudoko', did you mean 'sudoku'?; served: sudoku"),
    408: Problem(408, "slow-body", "the body has not arrived within 10 s; send it faster"),
    413: Problem(413, "too-large", "a request may have 1048576 bytes; send fewer puzzles at a time"),
    415: Problem(415, "content-type", "send the request as Content-Type: application/json"),
    422: Problem(422, "puzzle", "the puzzle has 35 cells, a 6x6 sudoku has 36; write every cell"),
    429: Problem(429, "queue-full", "1088 starts of puzzles are on their way already; ask again later", retry_after=3),
    503: Problem(503, "not-ready", "the model sudoku-6x6 is being loaded", retry_after=1),
}

MEANINGS = {
    400: "The body is no JSON, or the service is not known by the name in Host.",
    401: "The service has a key, and the request does not show it.",
    404: "There is no such model, or no such path.",
    408: "The body has not arrived in time.",
    413: "The body is too large, or has too many puzzles.",
    415: "The body is not sent as application/json.",
    422: "The puzzle cannot be read, or an option makes no sense.",
    429: "Too much is on its way already, or a deadline passed before the first step.",
    503: "Not ready yet, shutting down, or the service's own time limit has passed.",
}

PROBLEM = {"$ref": "#/components/schemas/ProblemBody"}


def _error(status: int) -> dict[str, Json]:
    found: dict[str, Json] = {
        "description": MEANINGS[status],
        "content": {PROBLEM_JSON: {"schema": PROBLEM, "example": EXAMPLES[status].body()}},
    }
    if status in (429, 503):
        schema = {"type": "integer"}
        found["headers"] = {"Retry-After": {"description": "Seconds after which to ask again.", "schema": schema}}
    return found


ERRORS: dict[int | str, dict[str, Any]] = {status: _error(status) for status in MEANINGS}
"""Errors by status, for the routes to choose from."""

STREAM: dict[str, Any] = {
    "schema": {
        "description": "The data of each event is a StepEvent, a Result or a ProblemBody as JSON; "
        "that of the last, which has no name, is [DONE].",
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": ["step", "result", "error", "message"]},
            "data": {"type": "string"},
        },
        "required": ["data"],
    },
    "example": {
        "event": "step",
        "data": '{"start":0,"step":1,"answer":[1,2],"tokens":[2,3],"changed":[],"guess":null,"halt_probability":0.1,'
        '"residual":1.2,"confidence":[0.9,0.8],"violations":[],"verified":true}',
    },
}

SOLVE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/SolveRequest"},
                "examples": {
                    "one": {"summary": "One puzzle", "value": {"puzzle": schemas.EXAMPLE_PUZZLE}},
                    "several": {
                        "summary": "Several, each as far as it needs",
                        "value": {"puzzles": [schemas.EXAMPLE_PUZZLE] * 2, "budget": "verified|halted|steps=64"},
                    },
                    "starts": {
                        "summary": "Eight starts",
                        "value": {"puzzle": schemas.EXAMPLE_PUZZLE, "starts": 8, "seed": 3, "budget": 16},
                    },
                    "stream": {
                        "summary": "Step by step",
                        "value": {"puzzle": schemas.EXAMPLE_PUZZLE, "stream": True, "deadline": 5.0},
                    },
                },
            }
        },
    },
    "responses": {
        "200": {
            "description": "The results in the order of the puzzles; with stream, events.",
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/SolveResponse"},
                    "example": {
                        "model": "sudoku-6x6",
                        "results": [
                            {
                                "answer": schemas.EXAMPLE_ANSWER,
                                "verified": True,
                                "steps": 3,
                                "stopped_by": "halted",
                                "halt_probability": 0.999,
                                "seconds": 0.05,
                                "start": 0,
                                "total_steps": 3,
                            }
                        ],
                    },
                },
                "text/event-stream": STREAM,
            },
        }
    },
}


def describe_api(app: FastAPI) -> None:
    """Have the application tell the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            kinds = (schemas.SolveRequest, schemas.SolveResponse, schemas.StepEvent, schemas.ProblemBody)
            _, made = models_json_schema(
                [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
            )
            found.setdefault("components", {}).setdefault("schemas", {}).update(made["$defs"])
            found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{}, {"key": []}]  # where the service has a key
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
