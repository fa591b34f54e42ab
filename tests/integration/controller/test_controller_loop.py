"""The controller's loop by a clock that the test moves, and what it does when its term ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chiron.internal.v1 import control_pb2
from chiron.store import FencedError, MemoryStore, Transaction
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller import operator_acts
from services.global_controller.config import ControllerConfig
from services.global_controller.controller import Controller
from services.global_controller.registry import AgentLink
from tests.support.wait import eventually


def _hello(node_id: str) -> control_pb2.AgentHello:
    gpu = cluster_pb2.Gpu(index=0, uuid="u", healthy=True)
    return control_pb2.AgentHello(node_id=node_id, host="h", gpus=[gpu])


class DistantStore(MemoryStore):
    """Takes a while for a commit, as one behind a network does."""

    async def commit(self, transaction: Transaction) -> int:
        await asyncio.sleep(0)
        return await super().commit(transaction)


class World:
    """Two nodes of one GPU each, and a model that runs on the first."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = DistantStore()
        self.controller = Controller(ControllerConfig(), self.store, clock=lambda: self.now)
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.controller.start()
        self.running = asyncio.create_task(self.controller.run())

    async def join(self, node_id: str) -> AgentLink:
        link = await self.controller.join(_hello(node_id))
        await self.report(link)
        return link

    async def report(self, link: AgentLink) -> control_pb2.AgentReport:
        """All that is wanted of the node is ready."""
        wanted = self.controller.desired(link)
        report = control_pb2.AgentReport(applied_revision=wanted.revision)
        for one in wanted.instances:
            status = cluster_pb2.InstanceStatus(
                instance_id=one.instance_id,
                model=one.spec.name,
                gpu_indexes=one.gpu_indexes,
                state=types_pb2.INSTANCE_STATE_READY,
                address="h:1",
            )
            report.instances.add(status=status, known=True)
        await self.controller.report(link, report)
        return report

    async def apply(self, name: str, gpus: int = 1) -> None:
        spec = cluster_pb2.ModelSpec(name=name, engine="sim", gpus_per_instance=gpus, min_instances=1)
        await self.controller.write(lambda snapshot: operator_acts.apply_model(snapshot, spec, ())[0])

    async def a_pass(self, name: str) -> None:
        """Returns when the loop has judged everything that happened before this call."""
        await self.apply(name, gpus=99)
        await eventually(lambda: name in self.controller.reasons)

    def nodes_used(self) -> list[str]:
        return sorted(one.node_id for one in self.controller.snapshot.instances.values())

    def finished(self, name: str) -> int:
        """Interactive requests that a model has finished since this was last asked."""
        models = self.controller.fleet.take(self.controller.snapshot).models
        return next(model.traffic.finished_interactive for model in models if model.name == name)

    async def run_on_a(self) -> tuple[AgentLink, AgentLink]:
        """A settled cluster at 1006 s that runs one instance on node a; node b has room."""
        a, b = await self.join("a"), await self.join("b")
        await self.apply("chat")
        await eventually(lambda: self.nodes_used() == ["a"])
        for self.now in (1003.0, 1006.0):
            await self.report(a)
            await self.report(b)
        await self.a_pass("settled")
        assert self.controller.settled.is_set()
        return a, b


@pytest.fixture
async def world() -> AsyncIterator[World]:
    one = World()
    await one.start()
    yield one
    assert one.running is not None
    one.running.cancel()
    await asyncio.gather(one.running, return_exceptions=True)
    await one.store.close()


async def test_a_node_that_stays_silent_is_replaced(world: World) -> None:
    _, b = await world.run_on_a()
    world.now = 1009.0
    await world.report(b)
    world.now = 1011.2
    await world.a_pass("later")
    assert world.nodes_used() == ["a", "b"]


async def test_after_standing_still_the_controller_waits_for_reports_before_it_replaces(world: World) -> None:
    a, b = await world.run_on_a()
    world.now = 1100.0
    await world.report(b)
    await world.a_pass("resumed")
    assert world.nodes_used() == ["a"]
    await world.report(a)
    world.now = 1103.0
    await world.report(a)
    world.now = 1105.1
    await world.report(b)
    await world.a_pass("settled-again")
    assert not world.controller.registry.settling()
    assert world.nodes_used() == ["a"]


async def test_a_report_that_another_stream_overtakes_changes_no_figures(world: World) -> None:
    a, _ = await world.run_on_a()
    assert world.finished("chat") == 0
    late = await world.report(a)
    late.instances[0].status.state = types_pb2.INSTANCE_STATE_PENDING
    late.instances[0].status.load.finished_interactive.requests = 5
    controller = world.controller
    _, newer = await asyncio.gather(controller.report(a, late), controller.join(_hello("a")))
    assert controller.registry.is_current(newer)
    assert world.finished("chat") == 0


async def test_a_controller_whose_term_has_ended_stops(world: World) -> None:
    seat = world.controller._seat
    seat.take(world.controller)
    await world.store.acquire_term()
    with pytest.raises(FencedError):
        await world.apply("chat")
    # Who asks now is not answered from its state any more, however long its end takes.
    assert seat.controller is None
    assert world.running is not None
    with pytest.raises(ExceptionGroup) as caught:
        await world.running
    assert caught.group_contains(FencedError)
    assert not (await world.store.read()).models


async def test_the_time_for_which_gpus_are_held_is_shown_by_phase(served) -> None:
    await served.agent("a", gpus=2)
    await served.apply(name="chat", gpus_per_instance=2, min_instances=1)
    shown = await eventually(lambda: _served_gpu_time(served))
    told = shown.models[0].gpu_seconds
    assert told.serving > 0
    assert shown.gpu_seconds.serving == told.serving
    assert (told.draining, told.sleeping) == (0, 0)
    assert told.loading + told.serving <= 2 * told.over_s
    await served.cluster.DeleteModel(cluster_pb2.DeleteModelRequest(name="chat"))
    gone = await eventually(lambda: _without_models(served))
    # Deleted models' time stays the cluster's.
    assert gone.gpu_seconds.serving >= told.serving
    assert gone.gpu_seconds.draining > 0


async def _served_gpu_time(served) -> cluster_pb2.ClusterSnapshot | None:
    shown = await served.snapshot()
    return shown if shown.gpu_seconds.serving else None


async def _without_models(served) -> cluster_pb2.ClusterSnapshot | None:
    shown = await served.snapshot()
    return shown if not shown.models and not shown.instances else None
