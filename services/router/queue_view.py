"""A model's queue as `GetRouterState` tells it: what waits, and how long a request would that came now."""

from __future__ import annotations

import math

from chiron.internal.v1 import router_pb2
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.pool import ModelPool
from services.router.request import PendingRequest


def queue_told(name: str, pool: ModelPool, now: float) -> router_pb2.RouterQueue:
    """One model's; `now` is monotonic, in seconds."""
    counts = {kind: pool.queue.count(kind) for kind in RequestClass}
    return router_pb2.RouterQueue(
        model=name,
        waiting=types_pb2.ClassCounts(
            interactive=counts[RequestClass.INTERACTIVE], batch=counts[RequestClass.BATCH]
        ),
        interactive=_wait(RequestClass.INTERACTIVE, name, pool, now),
        batch=_wait(RequestClass.BATCH, name, pool, now),
    )


def _wait(kind: RequestClass, name: str, pool: ModelPool, now: float) -> router_pb2.RouterWait:
    wait = pool.wait(PendingRequest("", name, kind, now), now)
    told = router_pb2.RouterWait(
        ahead=wait.ahead, tokens_per_s=wait.tokens_per_s, quantile=wait.estimate.quantile
    )
    if wait.estimate.mean_s < math.inf:
        told.mean_ms, told.quantile_ms = 1e3 * wait.estimate.mean_s, 1e3 * wait.estimate.quantile_s
    return told
