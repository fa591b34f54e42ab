"""`chiron instances` on a real cluster: limits are set by hand and given back, across the agent's death."""

from __future__ import annotations

from pathlib import Path

from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.support.chiron_command import chiron


def batch_size(snapshot: pb.ClusterSnapshot) -> int:
    return snapshot.instances[0].load.batch_size


async def test_limits_are_set_by_hand_and_given_back(tmp_path: Path) -> None:
    spec = pb.ModelSpec(
        name="toy",
        engine="sim",
        gpus_per_instance=1,
        min_instances=1,
        max_batch_size=32,
        initial_batch_size=16,
    )
    spec.engine_args["profile"] = "toy"
    quick = {"controller": {"report_interval_ms": "200"}, "agent": {"statistics_interval_ms": "200"}}
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path, settings=quick) as cluster:
        await cluster.apply([spec])
        name = (await cluster.wait_ready()).instances[0].instance_id
        at = f"--controller={cluster.controller_address}"
        await cluster.wait_for(lambda seen: seen.instances[0].local.max_batch_size == 32)

        done = await chiron("instances", "limits", name, "--batch-size=4", "--step-tokens=256", at)
        await cluster.wait_for(lambda seen: batch_size(seen) == 4)
        (node,) = cluster.nodes
        cluster.processes[node].kill()
        await cluster.processes[node].wait()
        await cluster.start_again(node)
        seen = await cluster.wait_for(lambda seen: seen.nodes[0].live and batch_size(seen) > 0)
        listed = await chiron("instances", "list", at)
        back = await chiron("instances", "limits", name, "--auto", at)
        await cluster.wait_for(lambda seen: not seen.instances[0].local.set_batch_size)
        above = await chiron("instances", "limits", name, "--batch-size=33", at)
        neither = await chiron("instances", "limits", name, at)

    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == f"{name}: batch size 4 by hand, step-token budget 256 by hand\n"
    assert (batch_size(seen), seen.instances[0].load.step_token_budget) == (4, 256)
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith(name)]
    assert "set by an operator: batch size 4, step tokens 256" in row
    assert back.stdout == f"{name}: batch size is set by model, step-token budget is set by model\n"
    assert above.status == neither.status == 1
    assert f"batch_size: must be at most 32, the ceiling of {name}, not 33" in above.stderr
    assert "name --batch-size, --step-tokens or both, or else --auto" in neither.stderr
