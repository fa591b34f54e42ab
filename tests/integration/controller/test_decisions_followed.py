"""Decisions of a served controller: what they rest on, what they follow from, and what comes of them."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.store import MemoryStore, ModelRecord
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from services.global_controller.config import ControllerConfig
from services.global_controller.controller import Controller
from services.global_controller.decisions import book
from services.global_controller.view import Act
from services.global_controller.writer import Draft
from tests.integration.controller.conftest import Served
from tests.support.wait import eventually

DONE, OVERTAKEN = pb.OUTCOME_STATE_DONE, pb.OUTCOME_STATE_OVERTAKEN


async def scale(served: Served, instances: int) -> None:
    await served.cluster.ScaleModel(pb.ScaleModelRequest(name="chat", instances=instances))


async def newest(served: Served, action: str) -> pb.Decision:
    found = await eventually(lambda: served.decisions(action))
    return found[0]


async def serving(served: Served, instances: int) -> None:
    async def ready() -> bool:
        return (await served.snapshot()).models[0].ready_instances == instances

    await eventually(ready)


def reached(decision: pb.Decision) -> list[str]:
    return [one.name for one in decision.outcome.milestones]


async def test_a_scale_leads_to_placements_whose_instances_are_followed(served: Served) -> None:
    await served.agent("a")
    await served.apply(name="chat", min_instances=1, max_instances=2)
    await serving(served, 1)
    await scale(served, 2)

    async def ready() -> bool:
        return "ready" in reached(await newest(served, "place"))

    await eventually(ready)
    placed, scaled = await newest(served, "place"), await newest(served, "scale")
    assert reached(placed)[:2] == ["sent", "received"]
    assert placed.outcome.kind == pb.OUTCOME_KIND_STARTED
    assert placed.cause == scaled.decision_id
    assert placed.trace_id == ""
    inputs = placed.inputs
    assert (inputs.gpus, inputs.free_gpus, dict(inputs.free_gpus_on)) == (2, 1, {"a": 1})
    assert [(one.role, one.count) for one in inputs.instances] == [(types_pb2.ROLE_MIXED, 1)]
    assert inputs.live_nodes == 1
    assert inputs.oldest_report_s < 5.0

    answer = await served.cluster.GetDecision(pb.GetDecisionRequest(decision_id=placed.decision_id))
    assert [one.decision_id for one in answer.causes] == [scaled.decision_id]
    answer = await served.cluster.GetDecision(pb.GetDecisionRequest(decision_id=scaled.decision_id))
    assert [one.decision_id for one in answer.followed_by] == [placed.decision_id]

    # Before anybody knows what it was good for, it goes again.
    await scale(served, 1)

    async def overtaken() -> bool:
        states = {one.instance_id: one.outcome for one in await served.decisions("place")}
        stop = await newest(served, "stop")
        undone = states[stop.instance_id]
        return undone.state == OVERTAKEN and undone.reversed_by == stop.decision_id

    await eventually(overtaken)


async def test_a_stop_that_a_start_follows_at_once_is_reversed(served: Served) -> None:
    await served.agent("a")
    await served.apply(name="chat", min_instances=1, max_instances=2)
    await scale(served, 2)
    await serving(served, 2)
    await scale(served, 1)
    stopped = await newest(served, "stop")
    [other] = stopped.alternatives
    assert other.action.startswith("stop chat-")
    assert stopped.instance_id not in other.action
    assert other.why_not.startswith("it has as much to do (0 requests)")
    await scale(served, 2)

    async def undone() -> bool:
        answer = await served.cluster.GetDecision(pb.GetDecisionRequest(decision_id=stopped.decision_id))
        placed = await newest(served, "place")
        return answer.decision.outcome.reversed_by == placed.decision_id

    await eventually(undone)


async def test_what_a_report_tells_is_what_a_decision_rests_on(served: Served) -> None:
    await served.agent("a")
    async with asyncio.timeout(5):
        stream = served.control.ConnectRouter()
        hello = control_pb2.RouterHello(router_id="r", address="r:1")
        await stream.write(control_pb2.ConnectRouterRequest(hello=hello))
        report = control_pb2.RouterReport(sequence=1, interval_ms=500)
        demand = report.demand.add(model="chat", queued=types_pb2.ClassCounts(interactive=4, batch=2))
        demand.arrived.interactive = 3
        demand.batch_groups.add(deadline_in_ms=60_000, requests=2)
        report.batch_queue.queue_id = "q"
        report.batch_queue.models.add(model="chat").groups.add(requests=9)
        await stream.write(control_pb2.ConnectRouterRequest(report=report))
        routers = served.controller.registry.routers
        await eventually(lambda: any(link.report.demand for link in routers.values()))
    await served.apply(name="chat", min_instances=1)
    inputs = (await newest(served, "apply_model")).inputs
    assert (inputs.queued.interactive, inputs.queued.batch, inputs.batch_items) == (4, 2, 9)
    assert inputs.interactive_per_s == 6.0
    assert [(one.requests, one.HasField("deadline_in_s")) for one in inputs.groups] == [(2, True), (9, False)]
    assert 50.0 < inputs.groups[0].deadline_in_s <= 60.0
    stream.cancel()


async def test_pages_follow_each_other_and_times_and_models_filter(served: Served) -> None:
    for name in ("chat", "code", "chat2"):
        await served.apply(name=name)
    every = list((await served.cluster.ListDecisions(pb.ListDecisionsRequest())).decisions)
    pages: list[pb.Decision] = []
    while True:
        before = pages[-1].decision_id if pages else ""
        request = pb.ListDecisionsRequest(limit=2, before=before)
        page = (await served.cluster.ListDecisions(request)).decisions
        pages += page
        if len(page) < 2:
            break
    assert pages == every
    recent = await served.cluster.ListDecisions(pb.ListDecisionsRequest(since_s=3600.0, model="code"))
    assert [one.model for one in recent.decisions] == ["code"]
    assert not (await served.cluster.ListDecisions(pb.ListDecisionsRequest(since_s=1e-9))).decisions


async def test_a_decision_that_is_not_kept_is_named(served: Served) -> None:
    for call in (
        served.cluster.GetDecision(pb.GetDecisionRequest(decision_id="7-7")),
        served.cluster.GetDecision(pb.GetDecisionRequest()),
        served.cluster.ListDecisions(pb.ListDecisionsRequest(before="7-7")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason_of(caught.value) == "DECISION_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError, match="since_s"):
        await served.cluster.ListDecisions(pb.ListDecisionsRequest(since_s=-1.0))


async def test_who_watches_hears_of_each_decision_and_of_what_comes_of_it(served: Served) -> None:
    await served.agent("a")
    await served.apply(name="old")
    call = served.cluster.WatchDecisions(pb.WatchDecisionsRequest(newest=1))
    async with asyncio.timeout(20):
        first = await call.read()
        assert (first.decision.action, first.decision.model) == ("apply_model", "old")
        await served.apply(name="chat", min_instances=1)
        heard: list[tuple[str, list[str]]] = []
        while not heard or "ready" not in heard[-1][1]:
            decision = (await call.read()).decision
            heard.append((decision.action, reached(decision)))
    assert [action for action, _ in heard[:2]] == ["apply_model", "place"]
    call.cancel()


async def test_the_next_leader_goes_on_with_what_was_open_and_writes_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(book, "_WRITE_EVERY_S", 0.05)
    config = ControllerConfig(listen="127.0.0.1:0", report_interval_ms=50, liveness_timeout_s=3000.0)
    store = MemoryStore()
    offset = 0.0

    def clock() -> float:
        return time.monotonic() + offset

    def report(
        state: types_pb2.InstanceState.ValueType, instance: str, generation: int
    ) -> control_pb2.AgentReport:
        told = control_pb2.AgentReport(sequence=1)
        status = told.instances.add(known=True).status
        status.instance_id, status.model, status.state = instance, "chat", state
        status.generation, status.role = generation, types_pb2.ROLE_MIXED
        status.load.batch_size = 4
        status.load.finished_interactive.requests = 3
        return told

    hello = control_pb2.AgentHello(node_id="a", state_id="s", gpus=[pb.Gpu(index=0, uuid="u", healthy=True)])
    first = Controller(config, store, clock=clock)
    await first.start()
    link = await first.join(hello)
    await first.report(link, control_pb2.AgentReport(sequence=1))

    def wanted(_: object) -> Draft:
        spec = pb.ModelSpec(name="chat", engine="sim", gpus_per_instance=1, min_instances=1)
        record = ModelRecord("chat", spec.SerializeToString(), 1, 1, 1)
        return Draft(puts=[record], acts=[Act("apply_model", "new", "chat")])

    await first.write(wanted)
    await first.reconcile()
    [instance] = first.snapshot.instances
    [placed] = [one for one in await store.decisions(limit=9) if one.action == "place"]
    assert placed.outcome is not None
    assert not placed.outcome.milestones
    first.close()

    second = Controller(config, store, clock=clock)
    await second.start()
    running = asyncio.create_task(second.run())
    try:
        link = await second.join(hello)
        second.desired(link)
        await second.report(link, report(types_pb2.INSTANCE_STATE_READY, instance, 1))
        offset = 700.0
        await second.report(link, report(types_pb2.INSTANCE_STATE_READY, instance, 1))

        async def recorded() -> bool:
            stored = {one.decision_id: one.outcome for one in await store.decisions(limit=9)}
            outcome = stored[placed.decision_id]
            return outcome is not None and outcome.state == DONE

        await eventually(recorded)
    finally:
        second.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
    outcome = next(one.outcome for one in await store.decisions(limit=9) if one.action == "place")
    assert outcome is not None
    assert [name for name, _ in outcome.milestones] == ["sent", "received", "ready", "first_request"]
    assert outcome.need is not None
    assert outcome.need.needed
