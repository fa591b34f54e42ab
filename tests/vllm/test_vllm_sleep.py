"""On real vLLM: an instance sleeps, wakes and is drained while streams run, and none of them changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from chiron.client import Client
from chiron.cluster import AdminError, LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, vllm_spec
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY, SLEEPING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_SLEEPING
PROMPTS = tuple(f"A tale of {name}, told again." for name in ("foxes", "tea", "jars", "wizards", "slots"))
TOKENS = 300


def spec(weights: Path, least: int) -> pb.ModelSpec:
    made = vllm_spec(str(weights), name="tiny")
    made.min_instances = least
    # So that a wake reads the weights again. vLLM's sleep keeps all memory on the CPU, at either level.
    made.autoscaling.sleep_level = 2
    made.engine_args.update({"dtype": "float32", "max_num_batched_tokens": 512})
    return made


def states(snapshot: pb.ClusterSnapshot) -> dict[str, int]:
    return {one.instance_id: one.state for one in snapshot.instances}


async def answer(client: Client, prompt: str) -> tuple[Sequence[int], str, float]:
    """The tokens, the instance that gave the first of them, and when; others may go on, as it hands over."""
    tokens: list[int] = []
    instance, first = "", 0.0
    async for chunk in client.generate(
        model="tiny", prompt=prompt, max_tokens=TOKENS, ignore_eos=True, temperature=0.0
    ):
        tokens += chunk.token_ids
        if not instance:
            instance, first = chunk.instance_id, time.monotonic()
    return tuple(tokens), instance, first


@dataclass(frozen=True, slots=True)
class Answered:
    """One stream that came whole."""

    began: float
    first: float
    ended: float
    instance: str


class Load:
    """Streams in as many places as there are prompts, one after the other, compared with undisturbed ones."""

    def __init__(self, client: Client, undisturbed: Mapping[str, Sequence[int]]) -> None:
        self._client, self._undisturbed = client, undisturbed
        self._stop = asyncio.Event()
        self.answered: list[Answered] = []
        self.wrong: list[str] = []

    async def _place(self, prompt: str) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            tokens, instance, first = await answer(self._client, prompt)
            if tokens != self._undisturbed[prompt]:
                self.wrong.append(f"{prompt}: {len(tokens)} tokens of {instance}")
            self.answered.append(Answered(began, first, time.monotonic(), instance))

    def some(self, condition: Callable[[Answered], bool]) -> bool:
        """Whether a stream is so."""
        return any(map(condition, self.answered))

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        """Load while the body runs; what runs at its end is awaited."""
        tasks = [asyncio.create_task(self._place(prompt)) for prompt in PROMPTS]
        try:
            yield
            self._stop.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_llama: Path
) -> AsyncIterator[LocalCluster]:
    """Two instances, of which one is enough."""
    settings = {"controller": {"report_interval_ms": "250", "drain_notice_s": "0.3"}}
    async with LocalCluster(
        nodes=1,
        gpus=2,
        directory=tmp_path_factory.mktemp("cluster"),
        worker_env={**CPU_WORKER_ENV, "VLLM_LOGGING_LEVEL": "INFO"},
        settings=settings,
        drain_timeout_s=60.0,
    ) as found:
        await found.apply([spec(random_llama, 2)])
        await found.wait_ready()
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with Client(cluster.router_addresses) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(client: Client) -> Mapping[str, Sequence[int]]:
    answers = await asyncio.gather(*(answer(client, prompt) for prompt in PROMPTS))
    return {prompt: tokens for prompt, (tokens, *_) in zip(PROMPTS, answers, strict=True)}


async def busy(cluster: LocalCluster) -> tuple[pb.InstanceStatus, pb.InstanceStatus]:
    """Both instances, once each of them computes."""

    def all_compute(seen: pb.ClusterSnapshot) -> bool:
        return all(one.state == READY and one.load.running.interactive for one in seen.instances)

    one, other = (await cluster.wait_for(all_compute)).instances
    return one, other


async def test_an_instance_that_is_told_to_sleep_finishes_its_streams_and_answers_alike_when_it_wakes(
    cluster: LocalCluster, client: Client, undisturbed: Mapping[str, Sequence[int]], random_llama: Path
) -> None:
    assert len(set(undisturbed.values())) == len(PROMPTS)
    admin, load = cluster.admin, Load(client, undisturbed)
    async with load.on():
        sleeper, other = await busy(cluster)
        name = sleeper.instance_id
        with pytest.raises(AdminError, match=r"tiny must run at least 2 instances") as refused:
            await admin.set_sleeping(name, sleeping=True)
        assert states(await admin.snapshot()) == {name: READY, other.instance_id: READY}
        await cluster.apply([spec(random_llama, 1)])
        before, told = await busy(cluster), time.monotonic()
        await admin.set_sleeping(name, sleeping=True)
        await cluster.wait_for(lambda seen: states(seen) == {name: SLEEPING, other.instance_id: READY})
        slept = time.monotonic()
        await eventually(lambda: load.some(lambda one: one.began > slept), within_s=30.0)
        with pytest.raises(AdminError, match=r"tiny must run at least 1 instance \("):
            await admin.set_sleeping(other.instance_id, sleeping=True)
        woken = time.monotonic()
        await admin.set_sleeping(name, sleeping=False)
        await cluster.wait_for(lambda seen: states(seen) == {name: READY, other.instance_id: READY})
        await eventually(
            lambda: load.some(lambda one: one.instance == name and one.began > woken), within_s=30.0
        )
        after = await busy(cluster)
    log = (cluster.node_directory("node-0") / "instances" / name / "worker.log").read_text()

    assert refused.value.reason == "INVALID_ARGUMENT"
    assert load.wrong == []
    assert (client.stats.failed, client.stats.resumed) == (0, 0)
    assert load.some(lambda one: one.instance == name and one.began < told < one.ended), "it finished some"
    # One that began before may end later, where it was handed over to.
    asleep = [one for one in load.answered if slept < one.began and one.first < woken]
    assert asleep
    assert not [one for one in asleep if one.instance == name]
    assert [one.incarnation for one in after] == [one.incarnation for one in before]
    assert "seconds to fall asleep" in log
    assert "seconds to wake up" in log


async def test_an_instance_that_is_drained_finishes_its_streams(
    cluster: LocalCluster, client: Client, undisturbed: Mapping[str, Sequence[int]], random_llama: Path
) -> None:
    await cluster.apply([spec(random_llama, 1)])
    load = Load(client, undisturbed)
    async with load.on():
        drained, other = await busy(cluster)
        told = time.monotonic()
        await cluster.admin.drain_instance(drained.instance_id)
        # Nothing needs to start in its place.
        await cluster.admin.scale_model("tiny", 1)
        await cluster.wait_for(lambda seen: states(seen) == {other.instance_id: READY})
        gone = time.monotonic()
        await eventually(lambda: load.some(lambda one: one.began > gone), within_s=30.0)

    assert load.wrong == []
    assert (client.stats.failed, client.stats.resumed) == (0, 0)
    assert load.some(lambda one: one.instance == drained.instance_id and one.began < told < one.ended)
