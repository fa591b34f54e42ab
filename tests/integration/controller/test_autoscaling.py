"""The autoscaler's loop in a real controller: a policy's decisions happen, operators' words count."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from chiron.cli import autoscaling as commands
from chiron.cli import drain_calls
from chiron.cli.runner import CliError
from chiron.cluster import AdminError
from chiron.internal.v1 import control_pb2
from chiron.policy.fleet import ChironSettings
from chiron.policy.words import Role
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.autoscaler_config import AutoscalerConfig, AutoscalerMode
from tests.integration.controller.conftest import Served, serving
from tests.support import target_autoscaler
from tests.support.fake_agent import FakeAgent
from tests.support.fake_router import FakeRouter
from tests.support.target_autoscaler import Target
from tests.support.wait import eventually

TICK_S = 0.05
FAILED = types_pb2.INSTANCE_STATE_FAILED


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    Target.wanted, Target.snapshots, Target.mistake = {}, [], ""


@contextlib.asynccontextmanager
async def autoscaled(
    *, mode: AutoscalerMode = AutoscalerMode.ACTIVE, gpu_budget: int = 0, gpus: int = 4, nodes: str = "ab"
) -> AsyncIterator[tuple[Served, list[FakeAgent]]]:
    """A controller whose policy is the test's, agents, and a router that reports that all is calm."""
    config = AutoscalerConfig(target_autoscaler.NAME, mode, TICK_S, gpu_budget)
    async with serving(autoscaler=config) as served:
        agents = [await served.agent(name, gpus=gpus) for name in nodes]
        router = await served.stack.enter_async_context(FakeRouter(served.address))
        reporting = asyncio.create_task(calm(router))
        served.stack.callback(reporting.cancel)
        yield served, agents


async def calm(router: FakeRouter) -> None:
    while True:
        await router.report()
        await asyncio.sleep(0.05)


async def apply(served: Served, *, enabled: bool = True, name: str = "chat", **fields: object) -> None:
    scaling = cluster_pb2.AutoscalingSpec(enabled=enabled)
    await served.apply(**{"name": name, "min_instances": 1, "autoscaling": scaling} | fields)


async def roles(served: Served, name: str = "chat") -> Counter[str]:
    """Role → instances of the model that are wanted."""
    shown = await served.snapshot()
    gone = (types_pb2.INSTANCE_STATE_DRAINING, types_pb2.INSTANCE_STATE_STOPPED)
    return Counter(
        types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower()
        for one in shown.instances
        if one.model == name and one.state not in gone
    )


async def status(served: Served, name: str = "chat") -> cluster_pb2.ModelStatus:
    return next(one for one in (await served.snapshot()).models if one.spec.name == name)


async def becomes(served: Served, name: str = "chat", **wanted: int) -> None:
    """Returns once the model runs exactly so many instances by role and wants so many."""

    async def right() -> bool:
        desired = (await status(served, name)).desired_instances
        return await roles(served, name) == Counter(wanted) and desired == sum(wanted.values())

    await eventually(right, what=f"{name} has {wanted}")


async def ticks(count: int = 3) -> None:
    """Returns after so many further decisions."""
    seen = len(Target.snapshots)
    await eventually(lambda: len(Target.snapshots) >= seen + count)


async def test_a_policy_s_decisions_are_carried_out_and_recorded_once() -> None:
    async with autoscaled() as (served, agents):
        await apply(served, max_instances=6)
        Target.wanted = {"chat": {Role.MIXED: 2, Role.BATCH: 3}}
        await becomes(served, mixed=2, batch=3)
        [one] = {one.reason for one in await served.decisions("start") if "batch" in one.reason}
        assert one == "3 batch: more are wanted"
        assert {one.numbers["ibp"] for one in await served.decisions("start")} == {0.5}
        Target.wanted = {"chat": {Role.MIXED: 3, Role.BATCH: 2}}
        await becomes(served, mixed=3, batch=2)
        Target.wanted = {"chat": {Role.MIXED: 1}}
        await becomes(served, mixed=1)
        await ticks()
        shown = (await status(served)).autoscale
        assert (shown.state, shown.theta, shown.wanted_mixed) == (cluster_pb2.AUTOSCALE_STATE_ACTIVE, 0.8, 1)
        assert shown.reason == "the test wants it"
        # Each act once: nothing was undone and done again.
        kinds = Counter(
            one.action
            for one in (await served.cluster.ListDecisions(cluster_pb2.ListDecisionsRequest())).decisions
        )
        assert (kinds["start"], kinds["change_role"], kinds["retire"], kinds["stop"]) == (2, 1, 4, 0)
        gpus = Counter(
            (agent.node_id, i) for agent in agents for s in agent.statuses.values() for i in s.gpu_indexes
        )
        assert set(gpus.values()) <= {1}


async def test_what_does_not_fit_is_not_owed_and_limits_hold() -> None:
    async with autoscaled(gpu_budget=3, nodes="a") as (served, _):
        await apply(served, max_instances=8)
        Target.wanted = {"chat": {Role.MIXED: 7}}
        await becomes(served, mixed=3)
        await ticks()
        shown = (await status(served)).autoscale
        assert shown.wanted_mixed == 7
        assert "the GPU budget allows 0 more" in shown.reason
        assert (await status(served)).desired_instances == 3
        # The free GPU is not taken by a model that nobody scales either.
        await apply(served, name="other", enabled=False)
        await ticks()
        assert not await roles(served, "other")


async def test_only_models_whose_spec_asks_for_it_are_scaled() -> None:
    async with autoscaled() as (served, _):
        await apply(served, enabled=False, min_instances=1, max_instances=4)
        await apply(served, name="code")
        Target.wanted = {"chat": {Role.MIXED: 3}, "code": {Role.MIXED: 2}}
        await becomes(served, "code", mixed=2)
        await ticks()
        assert await roles(served) == {"mixed": 1}
        assert not (await status(served)).HasField("autoscale")
        assert {model.name for one in Target.snapshots for model in one.models} == {"code"}


async def test_who_watches_hears_of_each_new_mistake_of_the_policy_and_when_it_began() -> None:
    async with autoscaled() as (served, _):
        await apply(served)
        await ticks()
        stream = served.cluster.WatchCluster(cluster_pb2.WatchClusterRequest())

        async def told(what: str) -> str:
            async for shown in stream:
                reason = shown.snapshot.models[0].autoscale.reason
                if what in reason:
                    return reason
            raise AssertionError("the stream has ended")

        for mistake in ("boo", "nay"):
            Target.mistake = mistake
            async with asyncio.timeout(20):
                reason = await told(mistake)
            assert re.match(
                r"since \d\d:\d\d:\d\d UTC the policy failed: autoscaler \S+ failed: Runtime", reason
            )
            # The clock that the policy sees is no operator's.
            assert f" {Target.snapshots[-1].now_s:.0f}" not in reason
        Target.mistake = ""
        async with asyncio.timeout(20):
            assert await told("the test wants it") == "the test wants it"


async def test_a_decision_tells_no_figure_of_an_autoscaler_that_has_no_part_in_it() -> None:
    async with autoscaled() as (served, _):
        await apply(served)
        await ticks()
        await apply(served, enabled=False)
        await apply(served, enabled=False, min_instances=3)
        await becomes(served, mixed=3)
        newest = (await served.decisions("place"))[0]
        assert newest.inputs.ibp == 0.0
        assert not newest.inputs.HasField("theta")


async def test_a_lost_instance_is_replaced_in_its_role() -> None:
    async with autoscaled(nodes="abc") as (served, agents):
        await apply(served, max_instances=6)
        Target.wanted = {"chat": {Role.MIXED: 1, Role.BATCH: 1, Role.INTERACTIVE: 1}}
        await becomes(served, mixed=1, batch=1, interactive=1)
        [victim] = [
            agent
            for agent in agents
            if any(one.role == types_pb2.ROLE_BATCH for one in agent.statuses.values())
        ]
        await victim.disconnect()

        async def moved() -> bool:
            elsewhere = [agent for agent in agents if agent is not victim]
            kinds = Counter(one.role for agent in elsewhere for one in agent.statuses.values())
            return kinds[types_pb2.ROLE_BATCH] == 1

        await eventually(moved, what="a batch instance elsewhere")


async def test_advice_is_recorded_once_and_changes_nothing() -> None:
    async with autoscaled(mode=AutoscalerMode.ADVISORY) as (served, _):
        await apply(served)
        await becomes(served, mixed=1)
        Target.wanted = {"chat": {Role.MIXED: 2, Role.BATCH: 1}}
        await eventually(lambda: served.decisions("advised"))
        await ticks(5)
        [advised] = await served.decisions("advised")
        assert advised.reason.startswith("start batch 1, start mixed 1 (advisory mode): the test wants it")
        assert (advised.model, advised.numbers["theta"]) == ("chat", 0.8)
        assert await roles(served) == {"mixed": 1}
        shown = (await status(served)).autoscale
        assert shown.state == cluster_pb2.AUTOSCALE_STATE_ADVISORY
        assert (shown.wanted_mixed, shown.wanted_batch) == (2, 1)


async def test_a_pin_is_shown_in_advisory_mode_and_nothing_is_advised_against_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with autoscaled(mode=AutoscalerMode.ADVISORY) as (served, _):
        await apply(served, max_instances=4)
        await commands.scale(served.address, "chat", 2, auto=False)
        await becomes(served, mixed=2)
        Target.wanted = {"chat": {Role.MIXED: 1}}
        await ticks(5)
        shown = (await status(served)).autoscale
        assert (shown.state, shown.pinned_instances) == (cluster_pb2.AUTOSCALE_STATE_PINNED, 2)
        assert shown.reason == "wanted 1, an operator pinned 2; advisory mode; the test wants it"
        assert not await served.decisions("advised")
        await commands.scale(served.address, "chat", None, auto=True)
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == "chat: 2 of 2 instances ready, its number is nobody's now: advisory mode"
        await eventually(lambda: served.decisions("advised"))
        assert (await status(served)).autoscale.state == cluster_pb2.AUTOSCALE_STATE_ADVISORY


async def test_a_paused_model_stays_as_it_is_until_it_is_resumed() -> None:
    async with autoscaled() as (served, _):
        await apply(served)
        await becomes(served, mixed=1)
        pause = cluster_pb2.SetAutoscalingRequest(model="chat", paused=True, reason="load test")
        await served.cluster.SetAutoscaling(pause)
        Target.wanted = {"chat": {Role.MIXED: 3}}
        await ticks()
        shown = (await status(served)).autoscale
        assert shown.state == cluster_pb2.AUTOSCALE_STATE_PAUSED
        assert shown.reason.startswith("paused by an operator (load test)")
        assert (shown.wanted_mixed, (await status(served)).desired_instances) == (3, 1)
        await served.cluster.SetAutoscaling(cluster_pb2.SetAutoscalingRequest(model="chat"))
        await becomes(served, mixed=3)
        assert len(await served.decisions("pause")) == len(await served.decisions("resume")) == 1


async def test_a_number_that_an_operator_sets_stays_until_it_is_given_back() -> None:
    async with autoscaled() as (served, _):
        await apply(served, max_instances=6)
        Target.wanted = {"chat": {Role.MIXED: 3}}
        await becomes(served, mixed=3)
        await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", instances=5))
        await becomes(served, mixed=5)
        await ticks()
        shown = (await status(served)).autoscale
        assert (shown.state, shown.pinned_instances) == (cluster_pb2.AUTOSCALE_STATE_PINNED, 5)
        assert shown.reason.startswith("wanted 3, an operator pinned 5")
        await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", auto=True))
        await becomes(served, mixed=3)
        assert not (await status(served)).autoscale.HasField("pinned_instances")


async def test_a_role_that_an_operator_sets_stays_until_it_is_given_back() -> None:
    async with autoscaled() as (served, _):
        await apply(served)
        await becomes(served, mixed=1)
        [one] = (await served.snapshot()).instances
        batch = cluster_pb2.SetRoleRequest(instance_id=one.instance_id, role=types_pb2.ROLE_BATCH)
        assert (await served.cluster.SetRole(batch)).instance.role_pinned
        Target.wanted = {"chat": {Role.MIXED: 1}}
        await ticks()
        await becomes(served, batch=1)
        assert "an operator has set the role" in (await status(served)).autoscale.reason
        await served.cluster.SetRole(cluster_pb2.SetRoleRequest(instance_id=one.instance_id, auto=True))
        await becomes(served, mixed=1)


async def test_failed_starts_are_given_up_and_tried_again_after_a_pause() -> None:
    async with autoscaled(nodes="a") as (served, [agent]):
        await apply(served)
        await becomes(served, mixed=1)
        agent.state, agent.reason = FAILED, "no such weights"
        Target.wanted = {"chat": {Role.MIXED: 2}}
        await eventually(lambda: served.decisions("give_up"))
        await ticks(5)
        assert len(await served.decisions("start")) == 1
        shown = await status(served)
        assert "the last start has failed" in shown.autoscale.reason
        assert "no such weights" in shown.autoscale.reason
        assert shown.desired_instances == 1


async def test_while_routers_say_nothing_nothing_goes_and_what_is_missing_comes() -> None:
    config = AutoscalerConfig(target_autoscaler.NAME, AutoscalerMode.ACTIVE, TICK_S)
    async with serving(autoscaler=config) as served:
        await served.agent("a", gpus=4)
        await apply(served)
        Target.wanted = {"chat": {Role.MIXED: 3}}
        await becomes(served, mixed=3)
        Target.wanted = {"chat": {Role.MIXED: 1}}
        await ticks()
        shown = (await status(served)).autoscale
        assert shown.state == cluster_pb2.AUTOSCALE_STATE_HOLDING
        assert "no router reports what is asked for" in shown.reason
        assert (await status(served)).desired_instances == 3
        router = await served.stack.enter_async_context(FakeRouter(served.address))
        reporting = asyncio.create_task(calm(router))
        served.stack.callback(reporting.cancel)
        await becomes(served, mixed=1)


async def test_chiron_adds_instances_under_a_burst_and_takes_them_away_after_its_hold() -> None:
    settings = ChironSettings(min_hold_s=0.3, theta_warmup_loads=1e6)
    config = AutoscalerConfig(interval_s=TICK_S, chiron=settings)
    async with serving(autoscaler=config, load_time_s=0.2) as served:
        await served.agent("a", gpus=6)
        router = await served.stack.enter_async_context(FakeRouter(served.address))
        waiting = 0

        async def report() -> None:
            while True:
                demand = control_pb2.ModelDemand(
                    model="chat", queued=types_pb2.ClassCounts(interactive=waiting)
                )
                await router.report(chat=demand)
                await asyncio.sleep(0.05)

        reporting = asyncio.create_task(report())
        served.stack.callback(reporting.cancel)
        await apply(served, initial_batch_size=2, max_instances=6)
        await becomes(served, mixed=1)
        waiting = 6
        await becomes(served, mixed=4)
        [start, *_] = await served.decisions("start")
        assert start.numbers["demand"] == 6
        assert start.numbers["theta"] == 0.85
        waiting = 0
        await becomes(served, mixed=1)
        assert {one.numbers["demand"] for one in await served.decisions("retire")} == {0}


async def test_a_backlog_with_a_deadline_gets_batch_instances_that_go_when_it_is_done() -> None:
    settings = ChironSettings(min_hold_s=0.3, batch_idle_s=0.2)
    config = AutoscalerConfig(interval_s=TICK_S, chiron=settings)
    async with serving(autoscaler=config, load_time_s=0.2) as served:
        agent = await served.agent("a", gpus=6)
        router = await served.stack.enter_async_context(FakeRouter(served.address))
        groups: list[control_pb2.RequestGroup] = []

        async def work() -> None:
            """Each instance makes 100 tokens a second while something waits; an item has 100."""
            while True:
                await router.report(chat=control_pb2.ModelDemand(model="chat", batch_groups=groups))
                for one in agent.statuses.values():
                    one.load.batch_size, one.load.running.batch = 2, 2 * bool(groups)
                    one.load.tokens_per_s = 100.0 * bool(groups)
                    if groups:
                        ended = one.load.finished_batch
                        ended.requests += 5
                        ended.output_tokens += 500
                        ended.output_tokens_sq += 50_000
                await asyncio.sleep(0.05)

        working = asyncio.create_task(work())
        served.stack.callback(working.cancel)
        await apply(served, initial_batch_size=2, max_instances=6)
        await becomes(served, mixed=1)
        groups = [control_pb2.RequestGroup(requests=300, deadline_in_ms=60_000, prompt_tokens=3000)]

        async def helped() -> bool:
            return (await roles(served))["batch"] > 1

        await eventually(helped, what="batch instances")
        [start, *_] = await served.decisions("start")
        assert start.numbers["bbp"] == 1
        groups = []
        await becomes(served, mixed=1)


async def test_a_model_at_none_gets_its_first_instance_at_once_when_requests_wait() -> None:
    # The interval alone would take longer than the test may.
    config = AutoscalerConfig(interval_s=1000.0)
    async with serving(autoscaler=config) as served:
        await served.agent("a")
        await apply(served, min_instances=0)
        router = await served.stack.enter_async_context(FakeRouter(served.address))
        await eventually(lambda: served.controller.settled.is_set())
        await router.report(
            chat=control_pb2.ModelDemand(model="chat", queued=types_pb2.ClassCounts(interactive=3))
        )
        await becomes(served, mixed=1)


async def test_what_is_drained_is_replaced_and_keeps_its_role(capsys: pytest.CaptureFixture[str]) -> None:
    async with autoscaled() as (served, _):
        await apply(served, max_instances=5)
        Target.wanted = {"chat": {Role.MIXED: 1, Role.BATCH: 2}}
        await becomes(served, mixed=1, batch=2)

        async def ids(role: types_pb2.Role.ValueType) -> set[str]:
            return {one.instance_id for one in (await served.snapshot()).instances if one.role == role}

        mixed, batch = await ids(types_pb2.ROLE_MIXED), await ids(types_pb2.ROLE_BATCH)
        [one] = mixed
        await drain_calls.drain_instance(served.address, one)
        await drain_calls.drain_role(served.address, "chat", "batch")

        async def others() -> bool:
            now = await ids(types_pb2.ROLE_MIXED), await ids(types_pb2.ROLE_BATCH)
            return tuple(map(len, now)) == (1, 2) and not (mixed | batch) & (now[0] | now[1])

        await eventually(others, what="others have taken their places")
        await becomes(served, mixed=1, batch=2)
        assert not await served.decisions("retire")
        await drain_calls.drain_node(served.address, "a", undo=False)
        await drain_calls.drain_node(served.address, "a", undo=True)
        assert capsys.readouterr().out.splitlines() == [
            f"{one}: drains, another instance of chat takes its place",
            "chat: 2 batch instances drain",
            "a: draining",
            "a: in service",
        ]


async def test_operators_commands_reach_the_autoscaler(capsys: pytest.CaptureFixture[str]) -> None:
    async with autoscaled() as (served, _):
        await apply(served, max_instances=4)
        await becomes(served, mixed=1)
        [one] = (await served.snapshot()).instances
        role = one.instance_id
        await commands.pause(served.address, "chat", paused=True, reason="tests")
        await commands.pause(served.address, "chat", paused=False)
        await commands.scale(served.address, "chat", 1, auto=False)
        await commands.scale(served.address, "chat", None, auto=True)
        await commands.set_role(served.address, role, "batch", auto=False)
        await commands.set_role(served.address, role, None, auto=True)
        lines = capsys.readouterr().out.splitlines()
        # On a busy machine the router's reports may be late, and then nothing goes.
        assert lines.pop(1).replace("holding", "active") == "chat: active, 1 of 1 instances ready"
        assert lines == [
            "chat: paused, 1 of 1 instances ready",
            "chat: 1 of 1 instances ready, until `--auto` gives the number back",
            "chat: 1 of 1 instances ready, set by the autoscaler",
            f"{role}: batch, set by an operator",
            f"{role}: batch, set by the autoscaler",
        ]
        for mistake in (
            commands.scale(served.address, "chat", None, auto=False),
            commands.set_role(served.address, role, "both", auto=False),
            commands.set_role(served.address, role, "batch", auto=True),
        ):
            with pytest.raises(CliError):
                await mistake
        await apply(served, name="other", enabled=False)
        with pytest.raises(AdminError, match="other is not autoscaled: its spec does not"):
            await commands.pause(served.address, "other", paused=True)
