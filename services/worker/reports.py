"""What a worker tells routers (load) and its agent (statistics)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from chiron.internal.v1 import worker_pb2
from chiron.policy.snapshots import decodes
from chiron.v1 import cluster_pb2, types_pb2
from services.worker import credits
from services.worker.board import Subscriber
from services.worker.core import Worker
from services.worker.engines.base import EngineStats
from services.worker.meter import Reading, mean_itl_ms, quantile_itl_ms
from services.worker.saturation import saturated
from services.worker.state import READY

_NO_STATS = EngineStats(0, 0, 0.0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an interval begins."""

    time: float
    meter: Reading
    stats: EngineStats
    own_preemptions: int
    full_s: float
    """See Saturation."""


class Statistics:
    """One subscriber's statistics: each message covers the time since the one before."""

    def __init__(self, worker: Worker) -> None:
        """The first message covers no time."""
        self._worker = worker
        self._begin: Mark | None = None

    def take(self) -> worker_pb2.WatchStatisticsResponse:
        """The figures since the last call, and the state now.

        An engine whose figures cannot be reported makes the worker FAILED; the message then has none.
        """
        worker = self._worker
        try:
            end = _mark(worker)
            response = _statistics(worker, self._begin or end, end)
        except Exception as error:
            # Whoever watches must learn why the worker does not serve, not lose the stream.
            worker.cannot_report(error)
            return _statement(worker)
        self._begin = end
        return response


def load_response(worker: Worker, subscriber: Subscriber) -> worker_pb2.WatchLoadResponse:
    """The load now, with the requests that began and ended since the subscriber last heard, and its credits.

    An engine whose figures cannot be reported makes the worker FAILED; the message then has none.
    """
    started, finished, interrupted = subscriber.take()
    try:
        load = _load(worker, subscriber)
        if subscriber.wants_done(time.monotonic()):
            load.done.output_tokens = _stats(worker).output_tokens
            worker.finished.fill(load.done)
    except Exception as error:
        worker.cannot_report(error)
        load = worker_pb2.WatchLoadResponse(
            instance_id=worker.config.instance_id,
            incarnation=worker.config.incarnation,
            role=worker.role,
            state=worker.state.value,
            clock_ms=worker.tickets.clock_ms,
        )
    load.started_request_ids.extend(started)
    load.finished_request_ids.extend(finished)
    load.interrupted_request_ids.extend(interrupted)
    if subscriber.ends:
        ends, subscriber.ends = subscriber.ends, []
        load.ended_requests.extend(ends)
    return load


def _mark(worker: Worker) -> Mark:
    worker.note_saturation()
    now, stats = time.monotonic(), _stats(worker)
    return Mark(
        time=now,
        meter=worker.meter.read(),
        stats=stats,
        own_preemptions=worker.own_preemptions.total(stats.preemptions),
        full_s=worker.saturation.full_s(now),
    )


def _load(worker: Worker, subscriber: Subscriber) -> worker_pb2.WatchLoadResponse:
    stats, occupancy = _stats(worker), worker.occupancy()
    capacity = worker.engine.info.kv_capacity_tokens if worker.engine is not None else 0
    now, max_waiting = time.monotonic(), worker.config.max_waiting
    spare = credits.spare(
        worker.role,
        ready=worker.state.value == READY,
        batch_size=stats.batch_size,
        taken=sum(worker.live.slots),
        max_waiting=max_waiting,
        held_up=occupancy.waiting.interactive > 0 or any(live.preempted for live in worker.live),
    )
    return worker_pb2.WatchLoadResponse(
        instance_id=worker.config.instance_id,
        incarnation=worker.config.incarnation,
        role=worker.role,
        state=worker.state.value,
        batch_size=stats.batch_size,
        running=occupancy.running,
        waiting=occupancy.waiting,
        kv_free_tokens=int(capacity * (1 - stats.kv_usage)),
        clock_ms=worker.tickets.clock_ms,
        itl_mean_ms=worker.meter.recent_itl_ms(now),
        batch_credits=worker.load_board.share(subscriber, spare, int(now / credits.TURN_S)),
        batch_credit_ttl_ms=round(1e3 * credits.TTL_S),
        max_waiting=max_waiting,
        yielding=worker.mixed.yielding(occupancy.running.batch),
    )


def _statement(worker: Worker, **figures: Any) -> worker_pb2.WatchStatisticsResponse:
    return worker_pb2.WatchStatisticsResponse(
        instance_id=worker.config.instance_id,
        incarnation=worker.config.incarnation,
        state=worker.state.value,
        reason=worker.state.reason,
        role=worker.role,
        address=worker.address,
        **figures,
    )


def _statistics(worker: Worker, begin: Mark, end: Mark) -> worker_pb2.WatchStatisticsResponse:
    interval_s = end.time - begin.time
    occupancy, info = worker.occupancy(), worker.engine.info if worker.engine is not None else None
    old, new = begin.stats, end.stats
    output_tokens = new.output_tokens - old.output_tokens
    prompt_tokens = new.prompt_tokens - old.prompt_tokens
    cached_tokens = new.cached_prompt_tokens - old.cached_prompt_tokens
    drafted = new.draft_tokens - old.draft_tokens
    accepted = new.accepted_tokens - old.accepted_tokens
    steps = new.steps - old.steps
    computed = decodes(output_tokens, accepted) + drafted + prompt_tokens - cached_tokens
    load = cluster_pb2.InstanceLoad(
        batch_size=new.batch_size,
        step_token_budget=new.step_token_budget,
        running=occupancy.running,
        waiting=occupancy.waiting,
        kv_usage=new.kv_usage,
        itl_mean_ms=mean_itl_ms(begin.meter, end.meter),
        itl_p95_ms=quantile_itl_ms(begin.meter, end.meter, 0.95),
        tokens_per_s=output_tokens / interval_s if interval_s > 0 else 0.0,
        step_tokens=computed / steps if steps else 0.0,
        preemptions=new.preemptions,
        max_context_tokens=info.max_context_tokens if info else 0,
        kv_capacity_tokens=info.kv_capacity_tokens if info else 0,
        load_ms=worker.load_ms,
        preempted_for_interactive=worker.mixed.preempted,
        preempted_tokens=worker.mixed.lost_tokens,
        handed_back_requests=worker.mixed.handed_back,
        handed_over_requests=worker.hand_overs.done,
    )
    worker.finished.fill(load)
    finished = [new - old for old, new in zip(begin.meter.finished, end.meter.finished, strict=True)]
    return _statement(
        worker,
        load=load,
        interval_ms=1e3 * interval_s,
        steps=steps,
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=cached_tokens,
        tightest_itl_slo_ms=occupancy.tightest_itl_slo_ms,
        saturated=saturated(end.full_s - begin.full_s, interval_s),
        finished=types_pb2.ClassCounts(interactive=finished[0], batch=finished[1]),
        max_batch_size=info.max_batch_size if info else 0,
        max_step_token_budget=info.max_step_token_budget if info else 0,
        preemptions=end.own_preemptions - begin.own_preemptions,
        draft_tokens=drafted,
        accepted_tokens=accepted,
    )


def _stats(worker: Worker) -> EngineStats:
    return worker.engine.stats() if worker.engine is not None else _NO_STATS
