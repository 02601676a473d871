"""From how a job ended to what its caller is told."""

from __future__ import annotations

import asyncio

from loopwise.serving.jobs import Job
from loopwise.serving.problems import Problem, problem_of
from loopwise.solving.solution import Solution
from loopwise.types import Json

__all__ = ["conclude", "conclude_one", "slow_reader"]


def conclude(job: Job) -> list[dict[str, Json]]:
    """The result of each puzzle of a job that has ended, or its error."""
    told = []
    for result in job.results:
        try:
            told.append(_told(job, result))
        except Problem as problem:
            told.append({"error": problem.body()})
    return told


def conclude_one(job: Job) -> dict[str, Json]:
    """The result of the only puzzle of a job that has ended. Raises Problem."""
    told = _told(job, job.results[0])
    solution = job.results[0]
    if isinstance(solution, Solution):
        told["tokens"] = solution.tokens.tolist()
    return told


def _told(job: Job, result: Solution | BaseException | None) -> dict[str, Json]:
    if result is None or isinstance(result, asyncio.CancelledError):
        raise _given_up(job)
    if isinstance(result, BaseException):
        if job.ended.done() and job.ended.result() == "refused":
            raise _given_up(job)
        raise problem_of(result)
    return _record(result)


def _given_up(job: Job) -> Problem:
    """Why a puzzle of a job has no answer."""
    outcome = job.ended.result() if job.ended.done() else "gone"
    if outcome == "late":
        return Problem(
            503,
            "too-long",
            f"there was no answer within {job.host.settings.max_seconds:g} s, the limit of this service; "
            "give a deadline to get what there is by then",
            retry_after=1,
        )
    if outcome == "slow":
        return slow_reader()
    return Problem(503, "shutting-down", "the service is shutting down", retry_after=1)


def slow_reader() -> Problem:
    """Why a stream has no result whose steps were not all sent."""
    return Problem(429, "slow-reader", "the steps were not read as fast as they came", retry_after=1)


def _record(solution: Solution) -> dict[str, Json]:
    record: dict[str, Json] = {
        "answer": solution.answer,
        "verified": solution.verified,
        "steps": solution.steps,
        "stopped_by": solution.stopped_by,
        "halt_probability": round(solution.halt_probability, 6),
        "seconds": round(solution.seconds, 6),
        "start": solution.start,
        "total_steps": solution.total_steps,
    }
    if solution.residual is not None:
        record["residual"] = round(solution.residual, 6)
    if isinstance(solution.single, Solution):
        record["single"] = _record(solution.single)
    elif solution.single is not None:
        record["single"] = {"error": problem_of(solution.single).body()}
    return record
