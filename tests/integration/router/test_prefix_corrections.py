"""What routers believe to be cached is corrected: by evictions, by sleep, by new processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from chiron.client import Client
from chiron.client.prefix import prefix_hashes
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.requests.prefixes import salted
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.app import Router
from services.router.config import RouterConfig
from tests.integration.router.conftest import RunningRouter
from tests.support.fake_router_controller import FakeRouterController
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
KV_TOKENS = 4096
SPEC = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 4,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.2, "kv_capacity_tokens": KV_TOKENS},
}
NAMES = ("a", "b")


class Cluster:
    """Two workers with room for about four prompts each, and routers before them."""

    def __init__(self, folder: Path, stack: AsyncExitStack, controller: FakeRouterController) -> None:
        self.workers: dict[str, WorkerProcess] = {}
        self._folder, self._stack, self._controller = folder, stack, controller

    async def start_worker(self, name: str, incarnation: int, listen: str = "127.0.0.1:0") -> WorkerProcess:
        folder = self._folder / f"{name}-{incarnation}"
        folder.mkdir()
        started = worker_process(
            folder, SPEC, instance_id=name, incarnation=incarnation, listen=listen, require_tickets="false"
        )
        worker = self.workers[name] = await self._stack.enter_async_context(started)
        return worker

    async def start_router(self) -> RunningRouter:
        config = RouterConfig(
            listen="127.0.0.1:0",
            controller=(self._controller.address,),
            drain_timeout_s=0.0,
            report_interval_s=60.0,
            eject_s=0.05,
        )
        router = Router(config)
        running = RunningRouter(router, await router.start())
        self._stack.push_async_callback(router.stop)
        self._stack.push_async_callback(running.channel.close)
        await eventually(lambda: usable(running) == set(NAMES), what="the router sees both workers")
        return running


def usable(router: RunningRouter) -> set[str]:
    model = router.core._models.get("m")
    return {view.instance_id for view in model.views()} if model is not None else set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        controller = await FakeRouterController().start()
        stack.push_async_callback(controller.stop)
        controller.add("m")
        cluster = Cluster(tmp_path_factory.mktemp("workers"), stack, controller)
        for name in NAMES:
            worker = await cluster.start_worker(name, 1)
            controller.table.instances.append(
                control_pb2.RoutedInstance(
                    instance_id=name,
                    incarnation=1,
                    model="m",
                    address=worker.address,
                    role=types_pb2.ROLE_MIXED,
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            )
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(cluster: Cluster) -> RunningRouter:
    return await cluster.start_router()


def document(name: str) -> str:
    """About 1,000 tokens."""
    return (f"In the {name} of the sea there was a {name}. " * 100)[:3000]


def believed(router: RunningRouter, prompt: str) -> dict[str, int]:
    """Instance → how many of the prompt's beginnings the router believes to be cached there."""
    hashes = salted("", prefix_hashes(pb.GenerateRequest(prompt=prompt)))
    assert len(hashes) == 11
    return dict(router.core._models["m"].affinity.index.depths(hashes))


async def idle(router: RunningRouter) -> None:
    """Returns when no slot is taken or promised, as far as the router knows."""

    def nothing_runs() -> bool:
        views = router.core._models["m"].views()
        return len(views) == 2 and not any(view.running + view.reserved for view in views)

    await eventually(nothing_runs, what="no slot is taken")


async def ask(router: RunningRouter, prompt: str) -> tuple[str, int]:
    """Which instance answers, and how much of the prompt it had cached."""
    await idle(router)
    async with Client(router.address) as client:
        answer = await client.complete(model="m", prompt=prompt, max_tokens=4)
    return answer.timing.instance_id, answer.usage.cached_prompt_tokens


async def test_what_an_engine_evicts_its_router_believes_no_more(
    cluster: Cluster, router: RunningRouter
) -> None:
    old = document("old one")
    home, cached = await ask(router, old)
    assert cached == 0
    await eventually(lambda: believed(router, old) == {home: 11})
    # Past the router, so that only the worker can tell.
    for number in range(5):
        request = pb.GenerateRequest(model="m", prompt=document(f"flood {number}"))
        request.sampling.max_tokens = 2
        async for _ in cluster.workers[home].inference.Generate(request):
            pass
    await eventually(lambda: believed(router, old) == {}, what="the old prompt's beginnings are gone")
    flood = document("flood 4")
    await eventually(lambda: believed(router, flood) == {home: 11}, what="what took its place is known")
    again, cached = await ask(router, flood)
    assert again == home
    assert cached > 900


async def test_another_router_learns_from_the_workers(cluster: Cluster, router: RunningRouter) -> None:
    shared = document("shared one")
    home, _ = await ask(router, shared)
    await eventually(lambda: believed(router, shared) == {home: 11})
    other = await cluster.start_router()
    await eventually(lambda: believed(other, shared) == {home: 11}, what="it begins with what there is")
    late = document("late one")
    home, _ = await ask(router, late)
    await eventually(lambda: believed(other, late) == {home: 11}, what="and is kept up to date")
    assert (await ask(other, late))[0] == home


async def test_a_sleeper_forgets(cluster: Cluster, router: RunningRouter) -> None:
    prompt = document("sleeping one")
    home, _ = await ask(router, prompt)
    await eventually(lambda: believed(router, prompt) == {home: 11})
    await idle(router)
    control = cluster.workers[home].control
    await control.Sleep(worker_pb2.SleepRequest(level=1))
    await eventually(lambda: believed(router, prompt) == {}, what="a sleeper's cache is lost")
    await control.Wake(worker_pb2.WakeRequest())
    await eventually(lambda: usable(router) == set(NAMES))


async def test_a_new_process_has_nothing_cached_and_is_told_apart(
    cluster: Cluster, router: RunningRouter
) -> None:
    prompt = document("restarted one")
    home, _ = await ask(router, prompt)
    await eventually(lambda: believed(router, prompt) == {home: 11})
    old = cluster.workers[home]
    await old.close()
    await cluster.start_worker(home, 2, listen=old.address)
    await eventually(lambda: believed(router, prompt) == {}, what="the new process has nothing cached")
    await eventually(lambda: usable(router) == set(NAMES), what="it serves")
    assert (await ask(router, prompt))[1] == 0


async def test_its_state_tells_how_right_it_was(router: RunningRouter) -> None:
    prompt = document("counted one")
    affinity = router.core._models["m"].affinity
    await eventually(lambda: not affinity._open, what="every prompt so far has been told of")
    [before] = router.core.prefixes()
    home, _ = await ask(router, prompt)
    assert (await ask(router, prompt))[0] == home
    await eventually(lambda: router.core.prefixes()[0].requests == before.requests + 2)
    [state] = router.core.prefixes()
    assert 1800 < state.prompt_tokens - before.prompt_tokens < 2400
    assert 900 < state.cached_tokens - before.cached_tokens < 1200
    assert 900 < state.expected_tokens - before.expected_tokens < 1200
    assert 11 <= state.remembered <= state.limit
    assert all(
        view.prefill_tokens_per_s > 0 for view in router.core._models["m"].views() if view.instance_id == home
    )
