"""Requests with an SLO that end at a router are reported as missed, unless they go on elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import FakeRouterController
from tests.support.wait import eventually

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
SLO = types_pb2.Slo(ttft_ms=60_000, itl_ms=100)
TIGHT = types_pb2.Slo(ttft_ms=1)
DUE = types_pb2.Slo(deadline_s=60)


def request(request_id: str, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"request_id": request_id, "model": "m", "prompt": "hello", **fields})


class Told:
    """What the reports have added up to."""

    def __init__(self, controller: FakeRouterController) -> None:
        self._controller = controller
        self._sums: Counter[str] = Counter()

    def sums(self) -> dict[str, int]:
        while not self._controller.reports.empty():
            for demand in self._controller.reports.get_nowait().demand:
                self._sums["arrived"] += demand.slo_arrived
                self._sums["left"] += demand.slo_left
                for name in ("refused", "failed"):
                    counts = getattr(demand, f"slo_{name}")
                    self._sums[name] += counts.interactive
                    self._sums[f"batch {name}"] += counts.batch
                    all_counts = getattr(demand, name)
                    self._sums["all"] += all_counts.interactive + all_counts.batch
        return dict(+self._sums)

    async def become(self, **expected: int) -> None:
        wanted = {name.replace("_", " "): count for name, count in expected.items()}
        await eventually(lambda: self.sums() == wanted, what=f"{wanted}; they are {self.sums()}")


async def status(call) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


async def test_what_the_queue_refuses_has_missed_its_slo(start_worker, start_router, controller) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, queue_limit=0, report_interval_s=0.02)
    asked = [
        request("with", slo=SLO),
        request("none"),
        request("batch", request_class=BATCH, slo=DUE),
        request("batch without a deadline", request_class=BATCH, slo=SLO),
    ]
    for message in asked:
        message.request_id = message.request_id.replace(" ", "-")
        assert await status(router.stub.Generate(message)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await Told(controller).become(arrived=1, refused=1, batch_refused=1, all=4)


async def test_who_leaves_the_queue_has_been_missed_once_it_was_late(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, report_interval_s=0.02)
    calls = [
        router.stub.Generate(request("early", slo=SLO)),
        router.stub.Generate(request("late", slo=TIGHT, elapsed_ms=5)),
        router.stub.Generate(request("resumed", slo=TIGHT, elapsed_ms=5, resume=RESUMED)),
    ]
    await router.queued(3)
    for call in calls:
        call.cancel()
    await router.queued(0)
    await Told(controller).become(arrived=3, left=1)


RESUMED = pb.ResumeState(delivered_token_ids=[1], origin=pb.StreamOrigin(ttft_ms=0.5))


async def test_what_a_worker_ends_with_a_reason_is_the_workers_to_count(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, report_interval_s=0.02, max_attempts=1)
    ends = {
        "own": ChironError(Reason.INTERNAL, "the worker's fault"),
        "bad": ChironError.invalid([("prompt", "too long")]),
        "elsewhere": ChironError(Reason.RETRY_ELSEWHERE, "draining"),
    }
    for name, error in ends.items():
        worker.refuse_with = error
        assert await status(router.stub.Generate(request(name, slo=SLO))) is error.reason.code
    await Told(controller).become(arrived=3, all=3)


async def test_a_deadline_that_passes_in_the_queue_has_failed_the_request(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, report_interval_s=0.02)
    short = types_pb2.Slo(deadline_s=0.01)
    code = await status(router.stub.Generate(request("r", request_class=BATCH, slo=short)))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await Told(controller).become(batch_failed=1, all=1)
