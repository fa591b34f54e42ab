"""On real vLLM: an ITL SLO that is applied live moves the batch size of the engine that runs, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, vllm_spec
from chiron.testing.models import CACHE, random_llama
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

CEILING = 12
STREAMS = 16


def spec(weights: Path, itl_ms: float) -> pb.ModelSpec:
    made = vllm_spec(str(weights), name="tiny")
    made.max_batch_size = CEILING
    made.slo_defaults.interactive.CopyFrom(types_pb2.Slo(itl_ms=itl_ms))
    made.engine_args.update({"dtype": "float32", "max_num_batched_tokens": 512})
    return made


async def ask_on_and_on(client: Client, number: int) -> None:
    while True:
        prompt = f"Tell me tale {number}. "
        await client.complete(model="tiny", prompt=prompt, max_tokens=30, ignore_eos=True, temperature=0.0)


@pytest.mark.timeout(240)
async def test_the_batch_size_falls_when_the_itl_slo_is_tightened_live_and_rises_when_it_is_loosened(
    tmp_path: Path,
) -> None:
    # Large enough for a step to take the longer the more requests it serves.
    weights = random_llama(CACHE / "random-llama-8x512", hidden_size=512, layers=8)
    quick = {"controller": {"report_interval_ms": "250"}, "agent": {"statistics_interval_ms": "500"}}
    async with LocalCluster(
        nodes=1, gpus=1, directory=tmp_path, worker_env=CPU_WORKER_ENV, settings=quick
    ) as cluster:

        async def seen(condition: Callable[[pb.InstanceStatus], object]) -> pb.InstanceStatus:
            return (await cluster.wait_for(lambda found: condition(found.instances[0]))).instances[0]

        await cluster.apply([spec(weights, 60_000.0)])
        first = (await cluster.wait_ready()).instances[0]
        async with Client(cluster.router_addresses) as client:
            asking = [asyncio.create_task(ask_on_and_on(client, number)) for number in range(STREAMS)]
            full = await seen(lambda one: one.load.running.interactive == CEILING and one.load.itl_mean_ms)
            # What a full batch takes on this machine now, and much less than that.
            await cluster.apply([spec(weights, full.load.itl_mean_ms / 2)])
            tight = await seen(lambda one: one.load.batch_size <= CEILING * 2 // 3)
            await cluster.apply([spec(weights, 60_000.0)])
            loose = await seen(lambda one: one.load.batch_size == CEILING)
            assert not any(one.done() for one in asking)
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    assert tight.local.itl_slo_ms == pytest.approx(full.load.itl_mean_ms / 2)
    assert tight.load.safe_batch_size < CEILING
    assert loose.local.itl_slo_ms == 60_000.0
    assert {tight.incarnation, loose.incarnation} == {first.incarnation}
    assert tight.local.autoscaler == "model"
