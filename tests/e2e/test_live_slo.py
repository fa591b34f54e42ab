"""An ITL SLO that an operator tightens and loosens live moves the batch size of workers that run on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

IMPOSSIBLE_MS, LOOSE_MS = 2.0, 2000.0
"""No batch size keeps the one, every one keeps the other, however busy the machine is."""
STREAMS = 12


def spec(itl_ms: float) -> pb.ModelSpec:
    made = pb.ModelSpec(
        name="toy",
        engine="sim",
        gpus_per_instance=1,
        min_instances=1,
        max_batch_size=8,
        slo_defaults=pb.SloDefaults(interactive=types_pb2.Slo(itl_ms=itl_ms)),
    )
    made.engine_args.update({"profile": "toy", "time_scale": 10})
    return made


async def ask_on_and_on(client: Client) -> None:
    while True:
        await client.complete(model="toy", prompt="Tell me", max_tokens=20, ignore_eos=True)


async def test_the_batch_size_follows_an_itl_slo_that_is_applied_live(tmp_path: Path) -> None:
    quick = {"controller": {"report_interval_ms": "200"}, "agent": {"statistics_interval_ms": "200"}}
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path, settings=quick) as cluster:
        await cluster.apply([spec(LOOSE_MS)])
        before = (await cluster.wait_ready()).instances[0]
        async with Client(cluster.router_addresses) as client:
            asking = [asyncio.create_task(ask_on_and_on(client)) for _ in range(STREAMS)]
            await cluster.wait_for(lambda seen: seen.instances[0].load.running.interactive == 8)
            await cluster.apply([spec(IMPOSSIBLE_MS)])
            tight = await cluster.wait_for(lambda seen: seen.instances[0].load.batch_size <= 4)
            await cluster.apply([spec(LOOSE_MS)])
            loose = await cluster.wait_for(lambda seen: seen.instances[0].load.batch_size >= 7)
            for one in asking:
                assert not one.done(), one
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    assert tight.instances[0].local.itl_slo_ms == IMPOSSIBLE_MS
    assert loose.instances[0].local.itl_slo_ms == LOOSE_MS
    assert {one.instances[0].incarnation for one in (tight, loose)} == {before.incarnation}
    assert [one.spec_version for one in loose.models] == [3]
