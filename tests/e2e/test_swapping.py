"""Two models take turns on the only GPU of a real cluster, under load, while its processes are killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chiron.client import ChironError, Client
from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from services.local_agent.procfs import FoundWorker, workers_below
from services.local_agent.worker_link import WorkerLink
from tests.support.chiron_command import chiron

READY, SLEEPING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_SLEEPING
TOKENS = 60


def spec(name: str, least: int) -> pb.ModelSpec:
    made = pb.ModelSpec(name=name, engine="sim", gpus_per_instance=1, min_instances=least)
    made.engine_args.update({"profile": "toy", "time_scale": 2})
    made.autoscaling.sleep_level = 1
    return made


def states(snapshot: pb.ClusterSnapshot) -> dict[str, int]:
    return {one.model: one.state for one in snapshot.instances}


def instance_of(snapshot: pb.ClusterSnapshot, model: str) -> pb.InstanceStatus:
    return next(one for one in snapshot.instances if one.model == model)


class Load:
    """Streams of one model, one after the other in several places, each of which must come whole."""

    def __init__(self, client: Client, model: str) -> None:
        self._client, self._model = client, model
        self._stop = asyncio.Event()
        self.whole = self.refused = 0
        self.broken: list[str] = []

    async def _stream(self) -> None:
        tokens = 0
        try:
            stream = self._client.generate(
                model=self._model, prompt="Tell me", max_tokens=TOKENS, ignore_eos=True
            )
            async for delta in stream:
                tokens += len(delta.token_ids)
        except ChironError as error:
            # Once nothing of the model is wanted, a router says so to newcomers.
            turned_away = not tokens and "no instance is wanted" in str(error)
            self.refused += turned_away
            self.broken += [] if turned_away else [f"{error} after {tokens} tokens"]
            return
        self.whole += tokens == TOKENS
        self.broken += [f"{tokens} tokens"] if tokens != TOKENS else []

    async def _place(self) -> None:
        while not self._stop.is_set() and not self.refused:
            await self._stream()

    @asynccontextmanager
    async def on(self, places: int = 3) -> AsyncIterator[None]:
        """Load until the body has told the model to sleep."""
        tasks = [asyncio.create_task(self._place()) for _ in range(places)]
        try:
            await asyncio.sleep(0.3)
            yield
            self._stop.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


class AwakeWatch:
    """Asks all workers of a node again and again who is awake; one that does not answer may be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.looks = 0
        self.two_awake: list[tuple[str, ...]] = []

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            workers = list(workers_below(self._folder))
            # The first one is asked again: it was awake in between only if it still is.
            if len(workers) > 1:
                awake = [one for one in workers if await _is_awake(one)]
                if len(awake) > 1 and await _is_awake(awake[0]) and await _is_awake(awake[1]):
                    self.two_awake.append(tuple(one.settings["instance_id"] for one in awake))
                self.looks += 1
            await asyncio.sleep(0.02)


async def _is_awake(worker: FoundWorker) -> bool:
    link = WorkerLink(Path(worker.settings["socket"]), int(worker.settings["incarnation"]))
    try:
        state = await link.state(1.0)
    finally:
        await link.close()
    return state is not None and state != SLEEPING


@asynccontextmanager
async def two_models(directory: Path, **options: object) -> AsyncIterator[tuple[LocalCluster, AwakeWatch]]:
    """A cluster with one GPU, on which model a serves and model b sleeps."""
    settings = {"controller": {"report_interval_ms": "200", "drain_notice_s": "0.3"}}
    async with LocalCluster(nodes=1, gpus=1, directory=directory, settings=settings, **options) as cluster:  # type: ignore[arg-type]
        await cluster.apply([spec("b", 1)])
        watch = AwakeWatch(cluster.node_directory("node-0") / "instances")
        task = asyncio.create_task(watch.run())
        try:
            seen = await cluster.wait_for(lambda seen: states(seen) == {"b": READY} and seen)
            await cluster.apply([spec("b", 0)])
            await cluster.admin.set_sleeping(instance_of(seen, "b").instance_id, sleeping=True)
            await cluster.wait_for(lambda seen: states(seen) == {"b": SLEEPING})
            # Its only GPU is b's in its sleep.
            await cluster.apply([spec("a", 1)])
            await cluster.wait_for(lambda seen: states(seen) == {"a": READY, "b": SLEEPING})
            await cluster.apply([spec("a", 0)])
            yield cluster, watch
        finally:
            task.cancel()


async def test_models_take_turns_on_one_gpu_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    async with two_models(tmp_path) as (cluster, watch):
        at = f"--controller={cluster.controller_address}"
        before = await cluster.admin.snapshot()
        ids = {model: instance_of(before, model).instance_id for model in "ab"}
        early = await chiron("instances", "wake", ids["b"], at)
        again = await chiron("instances", "sleep", ids["b"], at)
        loads = []
        async with Client(cluster.router_addresses) as client:
            for model, other in ("ab", "ba", "ab"):
                loads.append(load := Load(client, model))
                async with load.on():
                    slept = await chiron("instances", "sleep", ids[model], at)
                await cluster.wait_for(lambda seen, model=model: states(seen)[model] == SLEEPING)
                woken = await chiron("instances", "wake", ids[other], at)
                await cluster.wait_for(lambda seen, other=other: states(seen)[other] == READY)
        after = await cluster.admin.snapshot()
        decisions = [one.action for one in await cluster.admin.decisions(limit=50)]

    assert early.status == 1
    assert f"{ids['b']} cannot have its GPUs of node-0: GPU 0 is {ids['a']}'s" in early.stderr
    assert again.status == 1
    assert "sleeps already" in again.stderr
    assert (slept.status, slept.stderr, woken.status, woken.stderr) == (0, "", 0, "")
    assert [load.broken for load in loads] == [[], [], []]
    assert all(load.whole >= 3 for load in loads), "each had streams that ran when it was told to sleep"
    assert watch.two_awake == []
    assert watch.looks > 5
    assert {one.instance_id: one.incarnation for one in after.instances} == {
        one.instance_id: one.incarnation for one in before.instances
    }, "nobody was started again"
    assert (decisions.count("sleep"), decisions.count("wake")) == (4, 3)


async def test_a_swap_goes_on_over_the_deaths_of_agent_leader_and_worker(tmp_path: Path) -> None:
    async with two_models(tmp_path, controllers=2, etcd=True) as (cluster, watch):
        admin = cluster.admin
        ids = {model: instance_of(await admin.snapshot(), model).instance_id for model in "ab"}
        async with Client(cluster.router_addresses) as client:
            load = Load(client, "a")
            async with load.on():
                await admin.set_sleeping(ids["a"], sleeping=True)
            # The agent dies while a drains or falls asleep, and its successor goes on.
            cluster.processes["node-0"].kill()
            await cluster.processes["node-0"].wait()
            await cluster.start_again("node-0")
            await cluster.wait_for(lambda seen: states(seen).get("a") == SLEEPING)
        await admin.set_sleeping(ids["b"], sleeping=False)
        [leader] = [one.address for one in (await admin.snapshot()).controllers if one.leader]
        (name,) = [key for key, one in cluster.processes.items() if one.announced.get("address") == leader]
        cluster.processes[name].kill()
        await cluster.processes[name].wait()
        await cluster.start_again(name)
        await cluster.wait_for(lambda seen: states(seen) == {"a": SLEEPING, "b": READY})

        asleep = next(
            one
            for one in workers_below(cluster.node_directory("node-0") / "instances")
            if one.settings["instance_id"] == ids["a"]
        )
        os.kill(asleep.pid, signal.SIGKILL)
        seen = await cluster.wait_for(lambda seen: states(seen) == {"b": READY} and seen)
        reasons = [one.reason for one in await admin.decisions(limit=50) if one.instance_id == ids["a"]]

    assert load.broken == []
    assert watch.two_awake == []
    assert instance_of(seen, "b").restarts == 0
    assert any("its worker ended in its sleep" in reason for reason in reasons)
