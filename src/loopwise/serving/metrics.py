"""What the service measures of itself, for Prometheus."""

from __future__ import annotations

import os
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client import multiprocess as several

from loopwise.solving.solution import Solution

__all__ = ["Meters", "finish_reason"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Meters:
    """The metrics of one process; where there are several, each leaves its own in a folder and tells those of all."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # when a metric was first used, which nobody asks for
        self.registry = CollectorRegistry()
        shared = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        model = ["model"]

        def gauge(name: str, text: str, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
            return Gauge(name, text, model, registry=self.registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, model, registry=self.registry, buckets=buckets)

        self.running = gauge("loopwise_requests_running", "Passes in slots; a puzzle has one for each of its starts.")
        self.waiting = gauge("loopwise_requests_waiting", "Passes that wait for a slot.")
        self.slots = gauge("loopwise_slots", "Slots of a puzzle length.")
        self.occupancy = gauge(
            "loopwise_slot_occupancy",
            "Share of the slots that are computed which hold a pass; of several processes, the largest.",
            "livemax",  # a sum of shares would be none
        )
        self.ready = gauge("loopwise_ready", "Processes whose weights are warm.")
        self.latency = histogram(
            "loopwise_request_latency_seconds", "From the arrival of a puzzle to its answer.", SECONDS
        )
        self.queue = histogram("loopwise_queue_seconds", "From the arrival of a puzzle to its slot.", SECONDS)
        self.first_step = histogram(
            "loopwise_time_to_first_step_seconds", "From the arrival of a puzzle to the end of its first step.", SECONDS
        )
        self.steps = histogram("loopwise_steps_per_request", "Supervision steps of all starts of a puzzle.", STEPS)
        self.finished = Counter(
            "loopwise_requests", "Puzzles by what ended them.", [*model, "finish_reason"], registry=self.registry
        )
        self.responses = Counter("loopwise_http_responses", "HTTP responses.", ["status"], registry=self.registry)
        self._told = CollectorRegistry() if shared else self.registry
        if shared:
            several.MultiProcessCollector(self._told)  # type: ignore[no-untyped-call]

    def solved(self, model: str, solution: Solution) -> None:
        """Note an answer."""
        self.latency.labels(model).observe(solution.seconds)
        self.queue.labels(model).observe(solution.waited)
        self.first_step.labels(model).observe(solution.first_step)
        self.steps.labels(model).observe(solution.total_steps)
        self.finished.labels(model, finish_reason(solution.stopped_by)).inc()

    def failed(self, model: str, reason: str) -> None:
        """Note a puzzle without an answer."""
        self.finished.labels(model, reason).inc()

    def look(self, model: str, load: tuple[int, int, int]) -> None:
        """Note how busy a model is: (passes in slots, passes that wait, slots that are computed)."""
        active, waiting, slots = load
        self.running.labels(model).set(active)
        self.waiting.labels(model).set(waiting)
        self.occupancy.labels(model).set(active / slots if slots else 0.0)

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self._told)


def finish_reason(stopped_by: str) -> str:
    """What ended a puzzle, each part once and in order: what callers write shall not make metrics without end."""
    return "&".join(sorted(set(stopped_by.split("&"))))
