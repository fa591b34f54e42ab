"""What a request that has no instance waits for, in words and numbers. Pure; times are monotonic seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from chiron.internal.v1 import control_pb2
from chiron.policy.words import RequestClass
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.pool import ModelPool
from services.router.request import PendingRequest
from services.router.table import Table

_PLACES_S = 0.5
"""How long the places of a queue count before they are looked up anew."""
_DOING = {
    types_pb2.INSTANCE_STATE_PENDING: "is about to load",
    types_pb2.INSTANCE_STATE_LOADING: "loads",
    types_pb2.INSTANCE_STATE_SLEEPING: "wakes up",
}
_KINDS = {RequestClass.INTERACTIVE: "interactive", RequestClass.BATCH: "batch"}


@dataclass(frozen=True, slots=True)
class _Places:
    """Where each waiting request of a class stands, from 1."""

    made_at: float
    of: Mapping[int, int]
    """By the request's sequence."""


class Outlook:
    """Tells waiting requests what they wait for."""

    def __init__(self, table: Table, pool: Callable[[str], ModelPool | None]) -> None:
        """Looks at a table and at the pools of its models."""
        self._table = table
        self._pool = pool
        self._told_at: dict[str, float] = {}
        self._places: dict[tuple[str, RequestClass], _Places] = {}

    def told(self, models: Iterable[control_pb2.RoutedModel], now: float, *, all_there_are: bool) -> None:
        """The controller has just told of these models; what it says of times is as of now."""
        if all_there_are:
            self._told_at.clear()
        for model in models:
            if model.coming:
                self._told_at[model.name] = now
            else:
                self._told_at.pop(model.name, None)

    def forget(self, model: str) -> None:
        """The model is no longer there."""
        self._told_at.pop(model, None)
        for kind in RequestClass:
            self._places.pop((model, kind), None)

    def of(self, request: PendingRequest, now: float) -> pb.Progress:
        """What a request waits for."""
        pool = self._pool(request.model)
        places = self._places_of(request, pool, now)
        progress = pb.Progress(
            # One that has come since the places were looked up stands behind them all, as far as is known.
            position=places.get(request.sequence, len(places) + 1),
            waited_ms=1e3 * (now - request.arrived),
        )
        waiting = pool.queue.count(request.request_class) if pool is not None else 0
        progress.waiting = max(waiting, progress.position)
        progress.text = f"model {request.model}: {self._what(request, pool, progress, now)}"
        return progress

    def _what(
        self, request: PendingRequest, pool: ModelPool | None, progress: pb.Progress, now: float
    ) -> str:
        place = f"place {progress.position} of {progress.waiting} in the queue"
        name, kind = request.model, request.request_class
        if pool is not None and pool.takes(kind):
            return f"{place}, every instance is full"
        model = self._table.models.get(name)
        if pool is not None and pool.views() and not (model and model.coming):
            return f"no instance has a role that takes {_KINDS[kind]} requests; {place}"
        if model is None or not model.coming:
            return f"{(model.reason if model else '') or 'no instance can be reached yet'}; {place}"
        passed_ms = 1e3 * (now - self._told_at.get(name, now))
        first = model.coming[0]
        progress.instance_id = first.instance_id
        progress.loading_ms = first.loading_ms + passed_ms
        progress.ready_in_ms = max(0.0, first.ready_in_ms - passed_ms)
        return f"{_on_its_way(first, progress)}; {place}"

    def _places_of(self, request: PendingRequest, pool: ModelPool | None, now: float) -> Mapping[int, int]:
        if pool is None:
            return {}
        key = request.model, request.request_class
        known = self._places.get(key)
        if known is None or not 0 <= now - known.made_at < _PLACES_S:
            ordered = pool.queue.in_order(request.request_class, now)
            known = _Places(now, {each.sequence: place for place, each in enumerate(ordered, 1)})
            self._places[key] = known
        return known.of


def _on_its_way(first: control_pb2.ComingInstance, progress: pb.Progress) -> str:
    doing = _DOING.get(first.state, "starts")
    since_s, left_s = progress.loading_ms / 1e3, progress.ready_in_ms / 1e3
    if left_s > 0:
        times = f"{since_s:.0f} s of about {since_s + left_s:.0f} s"
    else:
        times = f"{since_s:.0f} s so far, longer than usual"
    why = f" ({first.reason})" if first.reason else ""
    return f"instance {first.instance_id} {doing}, {times}{why}"
