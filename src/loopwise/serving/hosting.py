"""All models of a process, the requests on their way, and how both come to an end."""

from __future__ import annotations

import asyncio
import threading

from loopwise.errors import LoopwiseError
from loopwise.registry import suggest
from loopwise.serving.bell import Bell
from loopwise.serving.host import Host
from loopwise.serving.jobs import Job, Outcome
from loopwise.serving.logs import log
from loopwise.serving.metrics import Meters
from loopwise.serving.problems import Problem
from loopwise.serving.settings import Settings

__all__ = ["Hosting"]


class Hosting:
    """What one process of the service holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.meters = Meters()
        self.bell = Bell()
        self.hosts = {
            name: Host(name, checkpoint, settings, self.meters, self.bell) for name, checkpoint in settings.models
        }
        self.jobs: set[Job] = set()
        self.in_flight = 0
        """HTTP requests that are being answered."""
        self.bytes_held = 0
        """Of bodies that have not arrived as a whole."""
        self.draining = False
        """Whether no more puzzles are taken."""
        self.failure: BaseException | None = None
        """Why the models could not be loaded."""

    def start(self) -> None:
        """Load the models, one after the other, in a thread of their own; called in the event loop."""
        self.bell.hang(asyncio.get_running_loop())
        threading.Thread(target=self._load, name="loopwise loader", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether every model can solve."""
        return all(host.ready for host in self.hosts.values())

    def host(self, name: str | None) -> Host:
        """The model of a name, or the only one. Raises Problem."""
        if name is None:
            if len(self.hosts) > 1:
                raise Problem(422, "model", f"say which model: one of {', '.join(self.hosts)}")
            return next(iter(self.hosts.values()))
        if name not in self.hosts:
            hint = suggest(name, self.hosts)
            raise Problem(404, "model", f"there is no model {name[:100]!r}{hint}; served: {', '.join(self.hosts)}")
        return self.hosts[name]

    def take(self, job: Job) -> None:
        """Keep a job in mind until it has ended."""
        self.jobs.add(job)
        job.ended.add_done_callback(lambda ended: self.jobs.discard(job))

    def check_open(self) -> None:
        """Raise Problem where no more puzzles are taken."""
        if self.draining:
            raise Problem(503, "shutting-down", "the service is shutting down", retry_after=1)

    def end_jobs(self, outcome: Outcome) -> None:
        """Give up all that is on its way; those who asked are told."""
        for job in list(self.jobs):
            job.end(outcome)

    def look(self) -> None:
        """Tell the meters how busy all models are."""
        for host in self.hosts.values():
            host.look()

    def close(self) -> None:
        """End the engines."""
        for host in self.hosts.values():
            host.close()

    def _load(self) -> None:
        try:
            for host in self.hosts.values():
                host.load()
            for host in self.hosts.values():
                host.find_puzzles()
        except LoopwiseError as error:
            self.failure = error
        except BaseException as error:  # the server's loop looks for it and ends with it
            log("loading failed", reason=str(error))
            self.failure = error
