"""Two models that are asked in turn share the only GPU of a real cluster: the autoscaler swaps them."""

from __future__ import annotations

from pathlib import Path

from chiron.client import Client
from chiron.cluster import ClusterAdmin, LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

QUICK = {
    "controller": {
        "report_interval_ms": "200",
        "presumed_load_time_s": "1",
        "autoscaler.interval_s": "0.2",
        # Long enough that nothing goes because it is idle: what goes here goes for the other model.
        "autoscaler.chiron.min_hold_s": "300",
    },
    "agent": {"local_autoscaler": "off"},
}
TOKENS = 30


def spec(name: str) -> pb.ModelSpec:
    made = pb.ModelSpec(
        name=name,
        engine="sim",
        gpus_per_instance=1,
        min_instances=0,
        autoscaling=pb.AutoscalingSpec(enabled=True, sleep_level=1),
    )
    made.engine_args.update({"profile": "toy"})
    return made


async def test_a_model_that_is_asked_gets_the_gpu_of_one_that_is_not_and_back(tmp_path: Path) -> None:
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path, settings=QUICK) as cluster:
        await cluster.apply([spec("left"), spec("right")])
        async with Client(cluster.router_addresses) as client:
            for name in ("left", "right", "left", "right"):
                answer = await client.complete(
                    model=name, prompt="Tell me", max_tokens=TOKENS, ignore_eos=True
                )
                assert len(answer.token_ids) == TOKENS
        ended = {"left": types_pb2.INSTANCE_STATE_SLEEPING, "right": types_pb2.INSTANCE_STATE_READY}
        await cluster.wait_for(lambda seen: {one.model: one.state for one in seen.instances} == ended)
        async with ClusterAdmin(cluster.controller_addresses) as admin:
            decisions = await admin.decisions()
    acts = sorted((one.action, one.model) for one in decisions if one.action in ("sleep", "wake"))
    assert acts == [("sleep", "left")] * 2 + [("sleep", "right"), ("wake", "left"), ("wake", "right")]
    assert all("can spare the instance now" in one.reason for one in decisions if one.action == "sleep")
