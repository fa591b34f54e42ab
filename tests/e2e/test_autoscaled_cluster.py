"""A local cluster that grows under load and shrinks afterwards, with nobody's request lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chiron.client import Client
from chiron.cluster import ClusterAdmin, LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

STREAMS = 10
TOKENS = 200
QUICK = {
    "controller": {
        "report_interval_ms": "200",
        "presumed_load_time_s": "1",
        "autoscaler.interval_s": "0.2",
        "autoscaler.chiron.min_hold_s": "1",
        "autoscaler.chiron.payback": "0.5",
    },
    "agent": {"local_autoscaler": "off"},
}


def spec() -> pb.ModelSpec:
    made = pb.ModelSpec(
        name="toy",
        engine="sim",
        gpus_per_instance=1,
        min_instances=1,
        max_instances=3,
        max_batch_size=4,
        autoscaling=pb.AutoscalingSpec(enabled=True),
        # One instance serves all in turn, but not so soon.
        slo_defaults=pb.SloDefaults(interactive=types_pb2.Slo(ttft_ms=100)),
    )
    made.engine_args.update({"profile": "toy"})
    return made


async def test_instances_come_with_a_burst_and_go_after_it(tmp_path: Path) -> None:
    async with LocalCluster(nodes=2, gpus=2, directory=tmp_path, settings=QUICK) as cluster:
        await cluster.apply([spec()])
        await cluster.wait_ready()
        ended = 0
        stop = asyncio.Event()

        async def ask(client: Client) -> None:
            nonlocal ended
            while not stop.is_set():
                answer = await client.complete(
                    model="toy", prompt="Tell me", max_tokens=TOKENS, ignore_eos=True
                )
                assert len(answer.token_ids) == TOKENS
                ended += 1

        async with Client(cluster.router_addresses) as client, asyncio.TaskGroup() as asking:
            for _ in range(STREAMS):
                asking.create_task(ask(client))
            await cluster.wait_for(lambda seen: seen.models[0].ready_instances >= 2)
            stop.set()
        calm = await cluster.wait_for(
            lambda seen: len(seen.instances) == 1 and seen.models[0].desired_instances == 1
        )
        async with ClusterAdmin(cluster.controller_addresses) as admin:
            decisions = await admin.decisions()
    assert ended >= STREAMS
    starts = [one.numbers for one in decisions if one.action == "start"]
    first = starts[-1]
    assert first["ibp_ahead"] > first["target"], "what was asked of one instance's slots"
    assert first["slots"] == 4
    assert calm.models[0].autoscale.state in (pb.AUTOSCALE_STATE_ACTIVE, pb.AUTOSCALE_STATE_HOLDING)
