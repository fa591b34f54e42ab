"""Route answers a ticket for an instance and keeps a slot there until it is used or lapses."""

from __future__ import annotations

import grpc
import pytest

from chiron.auth.tickets import open_unsigned
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.wait import eventually


def route(request_id: str = "r", **fields: object) -> pb.RouteRequest:
    return pb.RouteRequest(**{"request_id": request_id, "model": "m", **fields})


async def test_the_ticket_names_request_and_instance(start_worker, start_router) -> None:
    worker = await start_worker("a", incarnation=7)
    router = await start_router(worker)
    answer = await router.stub.Route(
        route(
            "r",
            attempt=1,
            priority=5,
            request_class=types_pb2.REQUEST_CLASS_BATCH,
            slo=types_pb2.Slo(ttft_ms=200),
            max_tokens=9,
            elapsed_ms=30,
        )
    )
    assert (answer.instance_id, answer.incarnation, answer.address) == ("a", 7, worker.address)
    assert (answer.request_id, answer.ticket_ttl_ms) == ("r", 2000)
    ticket = open_unsigned(answer.ticket)
    assert ticket.elapsed_ms >= 30
    assert ticket.expires_at_ms > 0
    for field in ("elapsed_ms", "expires_at_ms", "nonce"):
        ticket.ClearField(field)
    assert ticket == worker_pb2.Ticket(
        request_id="r",
        attempt=1,
        instance_id="a",
        incarnation=7,
        model="m",
        request_class=types_pb2.REQUEST_CLASS_BATCH,
        priority=5,
        slo=types_pb2.Slo(ttft_ms=200),
        max_tokens=9,
        max_choices=1,
    )


async def test_the_ticket_carries_the_models_present_slo_for_what_the_request_leaves_open(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    defaults = {"interactive": {"ttft_ms": 500, "itl_ms": 50}, "batch": {"deadline_s": 60}}
    controller.add("m", [worker], slo_defaults=defaults)
    router = await start_router(worker)

    async def slo(**fields: object) -> types_pb2.Slo:
        return open_unsigned((await router.stub.Route(route("", **fields))).ticket).slo

    assert await slo(slo=types_pb2.Slo(itl_ms=20)) == types_pb2.Slo(ttft_ms=500, itl_ms=20)
    assert await slo(request_class=types_pb2.REQUEST_CLASS_BATCH) == types_pb2.Slo(deadline_s=60)

    def tightened() -> bool:
        return router.router._placer.model("m").slo_defaults.interactive.itl_ms == 10

    controller.send(models=[control_pb2.RoutedModel(name="m", slo_defaults={"interactive": {"itl_ms": 10}})])
    await eventually(tightened)
    assert await slo() == types_pb2.Slo(itl_ms=10)


async def test_a_request_without_an_id_gets_one(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    answer = await router.stub.Route(route(""))
    assert answer.request_id
    assert open_unsigned(answer.ticket).request_id == answer.request_id


async def test_a_ticket_reserves_its_slot_until_the_worker_counts_the_request(
    start_worker, start_router
) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, worker_queue=0, ticket_ttl_s=3600)
    await router.stub.Route(route("first"))
    second = router.stub.Route(route("second"))
    await router.queued(1)
    # The worker counts it now: the slot is as taken as before.
    worker.load.running.interactive = 1
    worker.publish(started=["first"])
    await eventually(lambda: router.core._reservations.count("a") == 0)
    assert not second.done()
    worker.load.running.interactive = 0
    worker.publish(finished=["first"])
    assert (await second).instance_id == "a"


async def test_an_unused_ticket_gives_its_slot_back(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, worker_queue=0, ticket_ttl_s=0.1)
    await router.stub.Route(route("never-used"))
    assert (await router.stub.Route(route("second"))).instance_id == "a"


async def test_a_ticket_that_lapses_at_once_does_no_harm(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, worker_queue=0, ticket_ttl_s=1e-9)
    for number in range(3):
        assert (await router.stub.Route(route(f"r{number}"))).instance_id == "a"


async def test_a_ticket_given_to_one_that_waited_lapses_by_itself_too(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, worker_queue=0, ticket_ttl_s=0.3)
    proxied = router.stub.Generate(pb.GenerateRequest(model="m", prompt="x", request_id="proxied"))
    running = await worker.calls.get()
    # The worker counts the first itself, so that no other promise keeps the router's clock.
    worker.publish(started=["proxied"])
    await eventually(lambda: router.core._reservations.count("a") == 0)
    worker.load.running.interactive = 1
    worker.publish()
    first, second = router.stub.Route(route("first")), router.stub.Route(route("second"))
    await router.queued(2)
    worker.load.running.interactive = 0
    running.finish()
    worker.publish(finished=["proxied"])
    assert {(await first).instance_id, (await second).instance_id} == {"a"}
    assert [response async for response in proxied] == []


async def test_a_request_that_cannot_use_its_ticket_is_one_request_with_one_slot(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, worker_queue=0, ticket_ttl_s=3600, report_interval_s=0.05)
    await router.stub.Route(route("r"))
    call = router.stub.Generate(pb.GenerateRequest(model="m", prompt="x", request_id="r"))
    (await worker.calls.get()).finish()
    assert [response async for response in call] == []
    arrived = finished = 0
    while not finished:
        report = await controller.reports.get()
        arrived += sum(model.arrived.interactive for model in report.demand)
        finished += sum(model.finished.interactive for model in report.demand)
    assert (arrived, finished) == (1, 1)


async def test_excluded_instances_are_not_picked(start_worker, start_router) -> None:
    refused, busy = await start_worker("a"), await start_worker("b", batch_size=1)
    busy.load.running.interactive = 1
    router = await start_router(refused, busy)
    answer = await router.stub.Route(route(excluded_instance_ids=["a", "gone long ago"], attempt=1))
    assert answer.instance_id == "b"


async def test_a_cancelled_route_leaves_the_queue(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    call = router.stub.Route(route())
    await router.queued(1)
    call.cancel()
    await router.queued(0)


async def test_bad_fields_are_named(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Route(route(priority=5000, slo=types_pb2.Slo(ttft_ms=-1)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "priority" in (caught.value.details() or "")
    assert "slo.ttft_ms" in (caught.value.details() or "")
    assert reason_of(caught.value) == "INVALID_ARGUMENT"
