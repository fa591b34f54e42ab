"""The snapshots that policies get, made from what real agents, workers and routers report.

The controller runs in this process, because its snapshot is what is looked at; all others are processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from chiron.client import Client, Completion, RequestClass, Slo
from chiron.cluster.process import ServiceProcess
from chiron.internal.v1 import worker_pb2
from chiron.policy.snapshots import FleetInstance, InstanceSample, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.launch import socket_folder, socket_path
from services.local_agent.samples import sample_of
from services.local_agent.worker_link import WorkerLink
from services.worker.config import PreemptionSettings
from tests.integration.controller.conftest import Served
from tests.support.agent_process import AgentProcess
from tests.support.wait import eventually

BATCH_SIZE = 2
CEILING = 4
NODE = "node-1"
GPUS = 3
REPORTS_MS = 50
MIN_PROGRESS_TOKENS = PreemptionSettings().min_progress_tokens
SLOS = cluster_pb2.SloDefaults(
    interactive=types_pb2.Slo(ttft_ms=1500, itl_ms=70), batch=types_pb2.Slo(itl_ms=900)
)


@dataclass
class Cluster:
    """One node with one instance of `toy`, and one router."""

    served: Served
    agent: AgentProcess
    router: str
    stack: AsyncExitStack

    def take(self) -> ModelFleet:
        """The model in a snapshot of now; its traffic is since the last one."""
        controller = self.served.controller
        [model] = controller.fleet.take(controller.snapshot).models
        return model

    def free_gpus(self) -> dict[str, int]:
        """Node → free GPUs in a snapshot of now."""
        controller = self.served.controller
        return dict(controller.fleet.take(controller.snapshot).free_gpus)

    async def instance(self, condition: Callable[[FleetInstance], object]) -> FleetInstance:
        """The only instance, once a snapshot shows it so."""

        def found() -> FleetInstance | None:
            return next((one for one in self.take().instances if condition(one)), None)

        one = await eventually(found)
        assert one is not None
        return one

    async def apply(self, *, min_instances: int = 1, **engine_args: object) -> None:
        arguments = struct_pb2.Struct()
        arguments.update(engine_args)  # type: ignore[arg-type]
        await self.served.apply(
            name="toy",
            min_instances=min_instances,
            max_batch_size=CEILING,
            initial_batch_size=BATCH_SIZE,
            slo_defaults=SLOS,
            engine_args=arguments,
        )

    @asynccontextmanager
    async def statistics(self, instance_id: str) -> AsyncIterator[list[worker_pb2.WatchStatisticsResponse]]:
        """What the worker tells its agent, as a second reader of the control socket gets it."""
        socket = socket_path(socket_folder(None, self.agent.state_dir), instance_id)
        link = WorkerLink(socket, self.agent.records()[instance_id].incarnation)
        messages: list[worker_pb2.WatchStatisticsResponse] = []
        watching = asyncio.create_task(link.watch(REPORTS_MS, messages.append))
        try:
            await eventually(lambda: messages)
            yield messages
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await link.close()

    def start(
        self, client: Client, request_class: RequestClass, **options: object
    ) -> asyncio.Task[Completion]:
        """A request that runs until it is cancelled."""
        request = client.complete(
            model="toy",
            prompt="a b c",
            max_tokens=4000,
            ignore_eos=True,
            request_class=request_class,
            **options,
        )  # type: ignore[misc]
        task = asyncio.create_task(request)

        async def cancel() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self.stack.push_async_callback(cancel)
        return task


@pytest.fixture
def gives_way() -> bool:
    """Whether batch work gives way to interactive work on the instance."""
    return True


@pytest.fixture
async def cluster(served: Served, tmp_path: Path, gives_way: bool) -> AsyncIterator[Cluster]:
    agent = AgentProcess(
        tmp_path,
        int(served.address.rpartition(":")[2]),
        gpus=GPUS,
        node_id=NODE,
        statistics_interval_ms=REPORTS_MS,
        # The figures below are those of a batch size that stays.
        local_autoscaler="off",
        # What gives way waits here for as long as a test looks.
        worker_env="CHIRON_WORKER_REQUIRE_TICKETS=false,CHIRON_WORKER_PREEMPTION_HAND_BACK_S=600,"
        f"CHIRON_WORKER_PREEMPTION_ENABLED={str(gives_way).lower()}",
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(agent.end)
        await agent.start()
        router = await ServiceProcess.start(
            "router",
            "services.router",
            log=tmp_path / "router.log",
            settings={
                "listen": "127.0.0.1:0",
                "controller": served.address,
                "report_interval_s": str(REPORTS_MS / 1e3),
                "worker_queue": "1",
                "drain_timeout_s": "0",
            },
        )
        stack.push_async_callback(router.stop, 5.0)
        async with AsyncExitStack() as requests:
            yield Cluster(served, agent, str(router.announced["address"]), requests)


def added(first: Traffic, second: Traffic) -> Traffic:
    """Both together; what waits is what waited last."""
    sums = {field.name: getattr(first, field.name) + getattr(second, field.name) for field in fields(Traffic)}
    return Traffic(**{**sums, "queued_interactive": second.queued_interactive})


async def test_traffic_and_samples_hold_what_the_clients_received(cluster: Cluster) -> None:
    await cluster.apply()
    instance = await cluster.instance(lambda one: one.phase is Phase.READY)
    async with (
        cluster.statistics(instance.instance_id) as messages,
        Client(cluster.router) as lookaside,
        Client(cluster.router, lookaside=False) as proxied,
    ):
        traffic = cluster.take().traffic

        async def ask(client: Client, request_class: RequestClass, tokens: int) -> Completion:
            return await client.complete(
                model="toy",
                prompt="word " * tokens,
                max_tokens=tokens,
                ignore_eos=True,
                request_class=request_class,
            )

        clients = [lookaside, proxied, lookaside, proxied, lookaside]
        interactive = await asyncio.gather(
            *(ask(client, RequestClass.INTERACTIVE, 3 + n) for n, client in enumerate(clients))
        )
        batch = await asyncio.gather(
            *(ask(client, RequestClass.BATCH, 20 + n) for n, client in enumerate(clients[:3]))
        )
        answers = [*interactive, *batch]

        def all_told() -> bool:
            nonlocal traffic
            traffic = added(traffic, cluster.take().traffic)
            arrived = traffic.arrived_interactive + traffic.arrived_batch
            ended = traffic.finished_interactive + traffic.finished_batch
            return min(arrived, ended) >= len(answers)

        await eventually(all_told)
        outputs = sum(answer.usage.completion_tokens for answer in answers)
        await eventually(lambda: sum(message.output_tokens for message in messages) >= outputs)

    assert [answer.usage.completion_tokens for answer in answers] == [3, 4, 5, 6, 7, 20, 21, 22]
    lengths = [answer.usage.completion_tokens for answer in answers]
    prompts = [answer.usage.prompt_tokens for answer in answers]
    assert (traffic.arrived_interactive, traffic.arrived_batch) == (5, 3)
    assert (traffic.finished_interactive, traffic.finished_batch) == (5, 3)
    assert (traffic.finished_output_tokens, traffic.finished_batch_output_tokens) == (88, 63)
    assert traffic.finished_prompt_tokens == sum(prompts)
    assert traffic.finished_batch_prompt_tokens == sum(prompts[5:])
    assert traffic.finished_output_tokens_sq == sum(length**2 for length in lengths)
    assert traffic.finished_batch_output_tokens_sq == sum(length**2 for length in lengths[5:])
    assert 0 < traffic.finished_batch_service_s < traffic.finished_service_s
    at_worker_s = [answer.timing.total_ms / 1e3 for answer in answers]
    assert traffic.finished_service_s == pytest.approx(sum(at_worker_s), rel=0.01)
    assert traffic.finished_batch_service_s == pytest.approx(sum(at_worker_s[5:]), rel=0.01)
    assert traffic.queued_interactive == 0
    assert traffic.interval_s > 0

    samples = [sample for message in messages if (sample := sample_of(message)) is not None]
    assert sum(sample.output_tokens for sample in samples) == outputs
    cached = sum(answer.usage.cached_prompt_tokens for answer in answers)
    assert sum(sample.prompt_tokens for sample in samples) == sum(prompts) - cached
    assert sum(sample.steps for sample in samples) >= 22
    assert max(sample.itl_mean_s for sample in samples) > 0


@pytest.mark.parametrize("gives_way", [False])
async def test_what_runs_and_waits_is_told_where_it_does(cluster: Cluster) -> None:
    await cluster.apply(time_scale=10)
    ready = await cluster.instance(lambda one: one.phase is Phase.READY)
    interactive, batch = RequestClass.INTERACTIVE, RequestClass.BATCH
    async with Client(cluster.router) as client, cluster.statistics(ready.instance_id) as messages:
        cluster.start(client, batch)
        await cluster.instance(lambda one: one.running_batch == 1)
        cluster.start(client, interactive)
        await cluster.instance(lambda one: one.running_interactive == 1)
        cluster.start(client, interactive)
        await cluster.instance(lambda one: one.waiting_interactive == 1)
        for _ in range(2):
            cluster.start(client, interactive)
        for hours in (1, 2, 2):
            cluster.start(client, batch, slo=Slo(deadline_s=3600 * hours))

        def queued() -> ModelFleet | None:
            model = cluster.take()
            waiting = sum(group.requests for group in model.backlog)
            return model if (model.traffic.queued_interactive, waiting) == (2, 3) else None

        model = await eventually(queued)
        assert model is not None
        before = len(messages)
        await eventually(lambda: len(messages) > before + 1)
        sample = sample_of(messages[-1])
        await cluster.stack.aclose()

    soon, later = model.backlog
    assert (soon.requests, later.requests) == (1, 2)
    assert 0 < soon.deadline_in_s <= 3600 < later.deadline_in_s <= 7200
    assert later.prompt_tokens == 2 * soon.prompt_tokens > 0
    [one] = model.instances
    assert (one.instance_id, one.node_id, one.role, one.phase) == (
        ready.instance_id,
        NODE,
        Role.MIXED,
        Phase.READY,
    )
    assert (one.batch_size, one.safe_batch_size, model.initial_batch_size) == (BATCH_SIZE,) * 3
    assert (one.running_interactive, one.running_batch) == (1, 1)
    assert (one.waiting_interactive, one.waiting_batch) == (1, 0)
    assert 0 < one.kv_usage < 1
    assert one.kv_capacity_tokens > model.max_context_tokens > 4000
    assert one.ready_in_s == 0
    assert one.phase_age_s > one.report_age_s >= 0
    assert (model.ttft_slo_s, model.itl_slo_s, model.batch_itl_slo_s) == (1.5, 0.07, 0.9)

    assert isinstance(sample, InstanceSample)
    assert (sample.batch_size, sample.max_batch_size) == (BATCH_SIZE, CEILING)
    assert 0 < sample.step_token_budget <= sample.max_step_token_budget
    assert one.step_token_budget == sample.step_token_budget
    assert one.step_tokens > 0
    assert (sample.running_interactive, sample.running_batch) == (1, 1)
    assert (sample.waiting_interactive, sample.waiting_batch) == (1, 0)
    assert sample.itl_slo_s == pytest.approx(0.07)
    assert sample.saturated
    assert sample.preemptions == 0
    assert 0 < sample.kv_usage < 1
    assert sample.kv_capacity_tokens == one.kv_capacity_tokens


async def test_batch_work_that_gave_way_waits_in_the_snapshot(cluster: Cluster) -> None:
    await cluster.apply(time_scale=10)
    ready = await cluster.instance(lambda one: one.phase is Phase.READY)
    async with Client(cluster.router) as client, cluster.statistics(ready.instance_id) as messages:
        answers = cluster.start(client, RequestClass.BATCH)
        await eventually(lambda: sum(message.output_tokens for message in messages) > MIN_PROGRESS_TOKENS)
        for _ in range(BATCH_SIZE):
            cluster.start(client, RequestClass.INTERACTIVE)
        one = await cluster.instance(lambda one: one.running_interactive == BATCH_SIZE and one.waiting_batch)
        assert (one.waiting_interactive, one.running_batch, one.waiting_batch) == (0, 0, 1)
        before = len(messages)
        await eventually(lambda: len(messages) > before + 1)
        sample = sample_of(messages[-1])
        assert not answers.done()
        await cluster.stack.aclose()
    assert isinstance(sample, InstanceSample)
    assert (sample.running_interactive, sample.waiting_interactive) == (BATCH_SIZE, 0)
    assert (sample.running_batch, sample.waiting_batch) == (0, 1)
    assert sum(message.preemptions for message in messages) == 0, "the engine itself lacked no room"


async def test_an_instances_life_is_told_phase_by_phase(cluster: Cluster) -> None:
    await cluster.apply(load_time_s=0.1, time_scale=10)
    loading = await cluster.instance(lambda one: one.phase is Phase.LOADING)
    assert 0 < loading.ready_in_s <= 30, "nothing has been measured: the presumed time counts"
    assert loading.batch_size == BATCH_SIZE
    await cluster.instance(lambda one: one.phase is Phase.READY)
    model = cluster.take()
    assert 1.0 < model.load_time_s != 30.0, "10 times 0.1 s, and the start of the process"
    assert cluster.free_gpus() == {NODE: GPUS - 1}
    async with Client(cluster.router) as client:
        cluster.start(client, RequestClass.INTERACTIVE)
        await cluster.instance(lambda one: one.running_interactive == 1)
        await cluster.apply(min_instances=0, load_time_s=0.1, time_scale=10)
        await cluster.served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="toy", instances=0))
        draining = await cluster.instance(lambda one: one.phase is Phase.DRAINING)
        assert draining.running_interactive == 1
        await cluster.stack.aclose()
        await eventually(lambda: cluster.take().instances == ())
    await eventually(lambda: cluster.free_gpus() == {NODE: GPUS})


async def test_slo_attainment_is_counted_from_worker_and_router_to_the_operator(cluster: Cluster) -> None:
    await cluster.apply()
    await cluster.instance(lambda one: one.phase is Phase.READY)
    controller = cluster.served.controller

    def told() -> cluster_pb2.Attainment:
        [model] = controller.show().models
        return model.attainment

    async def ask(client: Client, **slo: float) -> None:
        await client.complete(model="toy", prompt="a b", max_tokens=5, ignore_eos=True, slo=Slo(**slo))

    never, always = 1e-6, 60_000.0
    async with Client(cluster.router) as lookaside, Client(cluster.router, lookaside=False) as proxied:
        for client in (lookaside, proxied):
            await ask(client, ttft_ms=always, itl_ms=always)
            await ask(client, ttft_ms=never, itl_ms=always)
            await ask(client, ttft_ms=always, itl_ms=never)
            await ask(client, ttft_ms=never, itl_ms=never)
            # The second one begins in time, also where it waits for a slot, and takes longer than it may.
            for deadline_s, tokens in ((always, 5), (0.5, 500)):
                await client.complete(
                    model="toy",
                    prompt="a b",
                    max_tokens=tokens,
                    ignore_eos=True,
                    request_class=RequestClass.BATCH,
                    slo=Slo(deadline_s=deadline_s),
                )
            # No SLO of its own, and the model has no deadline for batch requests.
            await client.complete(model="toy", prompt="a", max_tokens=1, request_class=RequestClass.BATCH)
        await eventually(
            lambda: told().since_start.interactive.requests == 8 and told().since_start.batch.requests == 4
        )
    expected = cluster_pb2.ClassAttainment(requests=8, met=2, missed_ttft=4, missed_itl=4, arrived=8)
    assert told().since_start.interactive == expected
    assert told().last_minute.interactive == told().last_ten_minutes.interactive == expected
    batch = cluster_pb2.ClassAttainment(requests=4, met=2, missed_deadline=2)
    assert told().since_start.batch == batch
