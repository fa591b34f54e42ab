"""What the requests that were answered whole add up to, by class. Pure."""

from __future__ import annotations

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2
from services.worker.pace import Pace
from services.worker.promises import NO_PROMISE, Promise


class Finished:
    """Sums since the worker's start; they only grow."""

    def __init__(self) -> None:
        self._interactive = cluster_pb2.FinishedRequests()
        self._batch = cluster_pb2.FinishedRequests()
        self.failed = 0
        """Requests that failed through a fault of the engine or of the worker itself."""

    def add(self, pace: Pace, *, batch: bool, promise: Promise = NO_PROMISE) -> None:
        """Adds a request whose last token is there, by what its caller is told of it.

        One that the engine gave up is left out: its length is no answer's, and its promise is broken.
        """
        sums = self._batch if batch else self._interactive
        if "abort" in pace.finish_reasons:
            self.broken(promise)
            return
        promise.count(pace, sums)
        usage = pace.usage()
        sums.requests += 1
        sums.output_tokens += usage.completion_tokens
        sums.output_tokens_sq += usage.completion_tokens**2
        sums.prompt_tokens += usage.prompt_tokens
        sums.service_ms += pace.total_ms
        sums.start_ms += pace.start_ms

    def broken(self, promise: Promise) -> None:
        """A request failed here for good."""
        if promise.given:
            (self._batch if promise.batch else self._interactive).slo_failed += 1

    def left(self, promise: Promise, since_door_ms: float) -> None:
        """A caller left without a token, so long after its request came to the first door."""
        if promise.given_up_late(since_door_ms):
            self._interactive.slo_left += 1

    def fill(self, load: cluster_pb2.InstanceLoad | worker_pb2.WorkDone) -> None:
        """Writes the present sums into a report."""
        load.finished_interactive.CopyFrom(self._interactive)
        load.finished_batch.CopyFrom(self._batch)
        if isinstance(load, cluster_pb2.InstanceLoad):
            load.failed_requests = self.failed
