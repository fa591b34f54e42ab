from __future__ import annotations

import asyncio
from pathlib import Path

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.workers import WorkerProcess
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

TOKENS = 300


def spec() -> pb.ModelSpec:
    model = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=2, max_batch_size=16)
    # 10 ms a token: each stream takes 3 s, so that the kill comes in its middle.
    model.engine_args.update({"profile": "toy", "time_scale": 5})
    return model


def is_back(snapshot: pb.ClusterSnapshot, victim: WorkerProcess) -> bool:
    return any(
        instance.instance_id == victim.instance_id
        and instance.incarnation > victim.incarnation
        and instance.state == types_pb2.INSTANCE_STATE_READY
        and instance.restarts == 1
        for instance in snapshot.instances
    )


async def test_a_worker_killed_under_load_comes_back_and_nothing_else_suffers(tmp_path: Path) -> None:
    async with LocalCluster(nodes=2, gpus=1, directory=tmp_path) as cluster:
        await cluster.apply([spec()])
        await cluster.wait_ready()
        victim, survivor = cluster.workers()
        started: set[int] = set()
        all_run = asyncio.Event()

        async with Client(cluster.router_addresses) as client:

            async def stream(number: int) -> tuple[str, int, int]:
                """(instance, attempts, tokens received)"""
                received = 0
                async for chunk in client.generate(
                    model="toy",
                    prompt="hello",
                    max_tokens=TOKENS,
                    ignore_eos=True,
                    request_id=f"r{number}",
                ):
                    received += len(chunk.token_ids)
                    started.add(number)
                    if len(started) == 8:
                        all_run.set()
                    if chunk.timing is not None:
                        return chunk.timing.instance_id, chunk.attempts, received
                raise AssertionError("a stream ends with its timing")

            streams = [asyncio.create_task(stream(number)) for number in range(8)]
            await all_run.wait()
            victim.kill()
            ended = await asyncio.gather(*streams)
            stats = client.stats
            after = await asyncio.gather(*(stream(number) for number in range(100, 104)))
            await cluster.wait_for(lambda seen: is_back(seen, victim))
            reborn = next(w for w in cluster.workers() if w.instance_id == victim.instance_id)

    assert [count for _, _, count in [*ended, *after]] == [TOKENS] * 12
    resumed = [where for where, attempts, _ in ended if attempts > 1]
    assert 0 < len(resumed) < len(ended)
    assert {where for where, _, _ in ended} == {survivor.instance_id}
    assert stats.resumed == len(resumed)
    assert stats.failed == 0
    assert reborn.pid != victim.pid
