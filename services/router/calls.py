"""Models of which an instance must start for what waits: the controller hears of them between reports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from chiron.internal.v1 import control_pb2
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.queue import WaitingQueue


class Calls:
    """What is to be told at once; of each model once between two reports, which tell of it anyway."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._untold: set[str] = set()
        self.any = asyncio.Event()
        """Set while something is to be told."""

    def call(self, model: str) -> None:
        """A request has begun to wait for a model of which no instance serves."""
        if model not in self._told:
            self._untold.add(model)
            self.any.set()

    def take(self, queues: Mapping[str, WaitingQueue]) -> control_pb2.RouterCall:
        """What is to be told now, by what waits in the models' queues; it counts as told."""
        call = control_pb2.RouterCall()
        for model in sorted(self._untold & queues.keys()):
            queue = queues[model]
            queued = types_pb2.ClassCounts(
                interactive=queue.count(RequestClass.INTERACTIVE), batch=queue.count(RequestClass.BATCH)
            )
            call.models.add(model=model, queued=queued)
        self._told |= self._untold
        self._untold.clear()
        self.any.clear()
        return call

    def reported(self) -> None:
        """A report tells of all queues."""
        self._told.clear()
        self._untold.clear()
        self.any.clear()
