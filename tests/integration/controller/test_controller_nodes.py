"""Nodes that join, fall silent, return and are drained."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller import control_servicer
from tests.integration.controller.conftest import serving
from tests.support.fake_agent import FakeAgent
from tests.support.wait import eventually

STOPPED = control_pb2.DESIRED_STATE_STOPPED


async def settled(served) -> None:
    await served.controller.settled.wait()


async def placed(served, *, ready: int, on: set[str]) -> None:
    async def holds() -> bool:
        shown = (await served.snapshot()).instances
        serving = [one for one in shown if one.state == types_pb2.INSTANCE_STATE_READY]
        return len(serving) == ready and {one.node_id for one in serving} == on

    await eventually(holds, what=f"{ready} ready instances on {sorted(on)}")


async def test_a_lost_node_dies_after_the_timeout_and_its_instance_is_replaced_elsewhere(served) -> None:
    lost = await served.agent("lost", gpus=1)
    await served.apply(name="chat", min_instances=1)
    await placed(served, ready=1, on={"lost"})
    await settled(served)
    spare = await served.agent("spare", gpus=1)
    await lost.disconnect()
    shown = {one.node_id: one for one in (await served.snapshot()).nodes}
    assert shown["lost"].live
    await spare.until(lambda agent: agent.wanted())
    shown = {one.node_id: one for one in (await served.snapshot()).nodes}
    assert not shown["lost"].live
    assert shown["lost"].report_age_ms >= 1000
    [replaced] = [one for one in await served.decisions("replace") if one.node_id == "spare"]
    assert replaced.numbers["silent_s"] >= 1.0


async def test_what_was_ready_on_a_lost_node_is_not_counted_beside_what_cannot_be_placed(served) -> None:
    await served.agent("kept", gpus=1)
    lost = await served.agent("lost", gpus=1)
    await served.apply(name="chat", min_instances=2)
    await placed(served, ready=2, on={"kept", "lost"})
    await settled(served)
    assert (await served.snapshot()).models[0].ready_instances == 2
    await lost.disconnect()

    async def short() -> bool:
        return "1 of 2 instances cannot be placed" in (await served.snapshot()).models[0].reason

    await eventually(short)
    assert (await served.snapshot()).models[0].ready_instances == 1


async def test_a_node_that_returns_is_told_to_stop_what_was_replaced(served) -> None:
    lost = await served.agent("lost", gpus=1)
    await served.apply(name="chat", min_instances=1)
    await placed(served, ready=1, on={"lost"})
    await settled(served)
    spare = await served.agent("spare", gpus=1)
    await lost.disconnect()
    await spare.until(lambda agent: agent.wanted())

    async def given_up() -> bool:
        states = {one.node_id: one.state for one in (await served.snapshot()).instances}
        return states == {
            "lost": types_pb2.INSTANCE_STATE_DRAINING,
            "spare": types_pb2.INSTANCE_STATE_READY,
        }

    await eventually(given_up)
    await lost.connect()
    await lost.until(lambda agent: agent.levels and not agent.levels[-1].instances, "the old one is gone")
    await placed(served, ready=1, on={"spare"})


async def test_a_drained_node_empties_after_its_replacements_serve_and_can_be_taken_back(served) -> None:
    old = await served.agent("old", gpus=1)
    await served.apply(name="chat", min_instances=1)
    await placed(served, ready=1, on={"old"})
    await settled(served)
    new = await served.agent("new", gpus=1, state=types_pb2.INSTANCE_STATE_LOADING)
    answer = await served.cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="old"))
    assert answer.node.draining
    await new.until(lambda agent: agent.wanted())
    assert old.wanted(STOPPED) == []
    for status in new.statuses.values():
        status.state = types_pb2.INSTANCE_STATE_READY
    await new.report()
    await old.until(lambda agent: not agent.levels[-1].instances)
    await placed(served, ready=1, on={"new"})
    answer = await served.cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="old", undo=True))
    assert not answer.node.draining
    await served.apply(name="chat", min_instances=2)
    await old.until(lambda agent: agent.wanted())


async def test_a_node_that_leaves_is_replaced_at_once_and_forgotten_once_all_has_stopped() -> None:
    """The liveness timeout is an hour: nothing here waits for it."""
    async with serving(timeout_s=3600) as served:
        old = await served.agent("old", gpus=1)
        await served.apply(name="chat", min_instances=1)
        await placed(served, ready=1, on={"old"})
        new = await served.agent("new", gpus=1)
        old.obey, old.leaving = False, True
        [status] = old.statuses.values()
        status.state = types_pb2.INSTANCE_STATE_DRAINING
        await old.report()
        await new.until(lambda agent: agent.wanted())
        [leaving] = await served.decisions("node_leaving")
        assert (leaving.node_id, leaving.numbers["instances"]) == ("old", 1)
        assert "its agent stops" in leaving.reason
        [replacement] = await served.decisions("replace")
        assert "whose node old is leaving" in replacement.reason
        shown = {one.node_id: one for one in (await served.snapshot()).nodes}
        assert (shown["old"].live, shown["old"].draining) == (True, True)

        status.state = types_pb2.INSTANCE_STATE_STOPPED
        await old.report()

        async def forgotten() -> bool:
            shown = await served.snapshot()
            nodes = {one.node_id for one in shown.nodes}
            return nodes == {one.node_id for one in shown.instances} == {"new"}

        await eventually(forgotten)
        [left] = await served.decisions("node_left")
        assert left.node_id == "old"
        await old.disconnect()
        assert await forgotten()

        old.obey, old.leaving = True, False
        old.statuses.clear()
        await old.connect()
        await served.apply(name="chat", min_instances=2)
        await placed(served, ready=2, on={"old", "new"})


async def test_a_node_that_dies_while_it_leaves_is_lost_like_any_other(served) -> None:
    agent = await served.agent("a", gpus=1)
    await served.apply(name="chat", min_instances=1)
    await placed(served, ready=1, on={"a"})
    agent.obey, agent.leaving = False, True
    await agent.report()
    await agent.disconnect()

    async def lost() -> bool:
        return [one.live for one in (await served.snapshot()).nodes] == [False]

    await eventually(lost)
    assert await served.decisions("node_left") == []


async def test_an_unknown_node_cannot_be_drained_and_those_there_are_are_named(served) -> None:
    await served.agent("a", gpus=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="b"))
    assert reason_of(caught.value) == "NODE_NOT_FOUND"
    assert "'b'; there are: a" in caught.value.details()


async def test_survivors_of_a_forgotten_model_run_on_until_it_is_applied_and_are_then_adopted(served) -> None:
    agent = FakeAgent(served.address, "a")
    agent.run("chat-old", "chat", 1, spec_version=3)
    await served.stack.enter_async_context(agent)
    await settled(served)
    await agent.until(lambda agent: agent.levels)
    [shown] = (await served.snapshot()).instances
    assert (shown.instance_id, shown.state) == ("chat-old", types_pb2.INSTANCE_STATE_READY)
    assert agent.wanted(STOPPED) == []

    answer = await served.apply(name="chat", min_instances=1)
    assert answer.model.spec_version == 4
    assert [one.instance_id for one in await served.decisions("adopt")] == ["chat-old"]
    await agent.until(
        lambda agent: [one.spec_version for one in agent.levels[-1].instances] == [4],
        "the survivor served until one of the applied spec took its place",
    )


async def test_a_level_is_sent_again_to_a_node_that_connects_again(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: agent.wanted())
    before = agent.wanted()
    await agent.disconnect()
    await agent.connect()
    await agent.until(lambda agent: agent.wanted() == before)


async def test_the_newer_of_two_streams_of_one_node_wins(served) -> None:
    first = await served.agent("a")
    await first.until(lambda agent: agent.levels)
    second = await served.agent("a")
    assert await first._call.code() is grpc.StatusCode.ABORTED
    assert "another stream of node a" in await first._call.details()
    await served.apply(name="chat", min_instances=1)
    await second.until(lambda agent: agent.wanted())


async def test_a_second_agent_with_the_node_id_of_a_live_one_is_refused(served) -> None:
    first = await served.agent("a")
    await first.until(lambda agent: agent.levels)
    rival = served.control.ConnectAgent()
    hello = control_pb2.AgentHello(node_id="a", state_id="of another folder")
    await rival.write(control_pb2.ConnectAgentRequest(hello=hello))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rival.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "node_id 'a' belongs to another agent, with another state_dir" in caught.value.details()
    await served.apply(name="chat", min_instances=1)
    await first.until(lambda agent: agent.wanted(), "the first agent keeps its stream")


async def test_another_state_folder_may_take_a_node_over_once_it_is_dead(served) -> None:
    lost = await served.agent("a")
    await lost.disconnect()

    async def dead() -> bool:
        return not (await served.snapshot()).nodes[0].live

    await eventually(dead)
    rebuilt = await served.agent("a", state_id="of a new disk")
    await rebuilt.until(lambda agent: agent.levels)


async def test_the_next_run_of_an_agent_is_taken_once_the_end_of_the_last_one_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(control_servicer, "_LATE_END_S", 60.0)
    async with serving(60.0) as served:
        last = await served.agent("a", run_id="r1")
        await last.until(lambda agent: agent.levels)
        looks: list[str] = []
        look = served.controller.registry.held_by_twin
        monkeypatch.setattr(
            served.controller.registry, "held_by_twin", lambda *hello: looks.append(hello[2]) or look(*hello)
        )
        joining = asyncio.create_task(served.agent("a", run_id="r2"))
        await eventually(lambda: looks, what="the next one's hello is looked at")
        assert served.controller.registry.agents["a"].run_id == "r1"
        await last.disconnect()
        following = await joining
        await following.until(lambda agent: agent.levels)
        assert served.controller.registry.agents["a"].run_id == "r2"


async def test_an_agent_that_has_seen_a_later_term_is_refused(served) -> None:
    agent = FakeAgent(served.address, "a", highest_term=served.controller.term + 1)
    call = served.control.ConnectAgent()
    hello = control_pb2.AgentHello(node_id="a", state_id="s1", highest_term=agent._highest_term)
    await call.write(control_pb2.ConnectAgentRequest(hello=hello))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == "STALE_TERM"
    assert list((await served.snapshot()).nodes) == []


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (control_pb2.ConnectAgentRequest(report=control_pb2.AgentReport()), "the first must be hello"),
        (control_pb2.ConnectAgentRequest(hello=control_pb2.AgentHello()), "hello.node_id: is required"),
        (
            control_pb2.ConnectAgentRequest(hello=control_pb2.AgentHello(node_id="a")),
            "hello.state_id: is required",
        ),
    ],
)
async def test_a_stream_that_starts_wrong_is_refused(served, message, text) -> None:
    call = served.control.ConnectAgent()
    await call.write(message)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in await call.details()


async def test_the_welcome_tells_term_and_times(served) -> None:
    agent = await served.agent("a")
    assert agent.welcome.term == served.controller.term
    assert agent.welcome.report_interval_ms == 100
    assert agent.welcome.liveness_timeout_ms == 1000
