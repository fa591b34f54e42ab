"""`chiron nodes` on a real cluster: a GPU is taken out of use and back, across the death of its agent."""

from __future__ import annotations

from pathlib import Path

from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.chiron_command import chiron


def ready_nodes(snapshot: pb.ClusterSnapshot) -> list[str]:
    """Nodes of the instances, once all of those serve."""
    ready = all(one.state == types_pb2.INSTANCE_STATE_READY for one in snapshot.instances)
    return [one.node_id for one in snapshot.instances] if ready else []


async def test_what_runs_on_a_cordoned_gpu_moves_and_the_cordon_outlives_the_agent(tmp_path: Path) -> None:
    spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args["profile"] = "toy"
    quick = {"controller": {"report_interval_ms": "200"}}
    async with LocalCluster(nodes=2, gpus=1, directory=tmp_path, settings=quick) as cluster:
        await cluster.apply([spec])
        first = (await cluster.wait_ready()).instances[0].node_id
        (other,) = set(cluster.nodes) - {first}
        at = f"--controller={cluster.controller_address}"

        done = await chiron("nodes", "cordon", first, "0", "--reason=its fan rattles", at)
        await cluster.wait_for(lambda seen: ready_nodes(seen) == [other])
        listed = await chiron("nodes", "list", at)

        cluster.processes[first].kill()
        await cluster.processes[first].wait()
        await cluster.start_again(first)
        await cluster.wait_for(lambda seen: all(one.live for one in seen.nodes))
        status = await chiron("status", at)
        lifted = await chiron("nodes", "uncordon", first, "0", at)
        nobody = await chiron("nodes", "cordon", "nowhere", "0", at)

    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == f"GPU 0 of {first} (declared-0): cordoned: its fan rattles\n"
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith(first)]
    assert "GPU 0: cordoned: its fan rattles" in row
    (row,) = [line for line in status.stdout.splitlines() if line.startswith(first)]
    assert "GPU 0: cordoned: its fan rattles" in row
    assert lifted.stdout == f"GPU 0 of {first} (declared-0): healthy and in use\n"
    assert nobody.status == 1
    assert "node 'nowhere' is not connected" in nobody.stderr
    assert nobody.stderr.count("\n") == 1
