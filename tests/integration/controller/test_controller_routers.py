"""Routing tables as routers receive them."""

from __future__ import annotations

import grpc
import pytest

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.routing import DELTAS_KEPT
from tests.support.fake_router import FakeRouter
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY


async def router(served, **options) -> FakeRouter:
    return await served.stack.enter_async_context(FakeRouter(served.address, **options))


def ready_addresses(one: FakeRouter) -> list[str]:
    return sorted(instance.address for instance in one.instances.values() if instance.state == READY)


async def test_a_router_gets_the_table_and_then_what_changes(served) -> None:
    await served.apply(
        name="chat",
        min_instances=1,
        adapters=[cluster_pb2.Adapter(name="sql", path="/x")],
        tool_parser="hermes",
    )
    early = await router(served)
    await eventually(lambda: early.snapshots == 1)
    assert list(early.models) == ["chat"]
    assert list(early.models["chat"].adapters) == ["sql"]
    assert early.models["chat"].tool_parser == "hermes"
    assert not early.instances

    agent = await served.agent("a")
    await eventually(lambda: ready_addresses(early))
    assert ready_addresses(early) == [one.address for one in agent.statuses.values()]
    assert early.models["chat"].reason == ""
    assert early.snapshots == 1
    assert early.deltas >= 1
    assert early.error is None

    late = await router(served, router_id="late")
    await eventually(lambda: late.epoch == early.epoch)
    assert late.instances.keys() == early.instances.keys()
    assert late.deltas == 0


async def test_a_deleted_model_and_its_instances_leave_the_table(served) -> None:
    await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    one = await router(served)
    await eventually(lambda: ready_addresses(one))
    await served.cluster.DeleteModel(cluster_pb2.DeleteModelRequest(name="chat"))
    await eventually(lambda: not one.models and not one.instances)
    assert one.error is None


async def test_a_model_that_cannot_be_placed_is_failed_with_the_reason(served) -> None:
    await served.agent("a", gpus=1)
    await served.apply(name="big", gpus_per_instance=2, min_instances=1)
    one = await router(served)
    await eventually(lambda: "big" in one.models and one.models["big"].failed)
    assert "most free on a node: 1" in one.models["big"].reason


async def test_a_router_that_falls_behind_gets_a_fresh_table_and_misses_nothing(served) -> None:
    slow = await router(served, reading=False)
    fast = await router(served, router_id="fast")
    changes = 3 * DELTAS_KEPT
    for number in range(changes):
        padding = [
            cluster_pb2.Adapter(name=f"{number}-{index}" + "x" * 4000, path="/x") for index in range(25)
        ]
        await served.apply(name="chat", adapters=padding)
    await eventually(lambda: "chat" in fast.models and fast.models["chat"].spec_version == changes)
    while slow.epoch < fast.epoch:
        assert await slow.read()
    assert slow.models == fast.models
    assert slow.snapshots >= 2
    assert slow.snapshots + slow.deltas < changes


async def test_a_router_with_a_table_of_an_earlier_controller_keeps_it_until_this_one_has_settled(
    served,
) -> None:
    holding = await router(served, epoch=12345)
    fresh = await router(served, router_id="fresh")
    await eventually(lambda: fresh.snapshots == 1)
    assert holding.snapshots == 0 or served.controller.settled.is_set()
    await served.controller.settled.wait()
    await eventually(lambda: holding.snapshots == 1)


async def test_queues_that_routers_report_are_shown(served) -> None:
    one = await router(served, router_id="r1")
    queued = types_pb2.ClassCounts(interactive=4, batch=2)
    await one.report(chat=control_pb2.ModelDemand(model="chat", queued=queued))

    async def shown() -> bool:
        routers = (await served.snapshot()).routers
        return [(each.router_id, each.queued) for each in routers] == [("r1", queued)]

    await eventually(shown)


async def test_a_router_that_leaves_is_no_longer_shown(served) -> None:
    async with FakeRouter(served.address, router_id="brief") as one:
        await eventually(lambda: one.snapshots == 1)
        assert [each.router_id for each in (await served.snapshot()).routers] == ["brief"]

    async def gone() -> bool:
        return not (await served.snapshot()).routers

    await eventually(gone)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (control_pb2.ConnectRouterRequest(report=control_pb2.RouterReport()), "the first must be hello"),
        (control_pb2.ConnectRouterRequest(hello=control_pb2.RouterHello()), "hello.router_id: is required"),
    ],
)
async def test_a_router_that_starts_wrong_is_refused(served, message, text) -> None:
    call = served.control.ConnectRouter()
    await call.write(message)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in await call.details()
