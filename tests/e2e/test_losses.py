"""A cluster that loses a part goes on with the others."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.chiron_command import chiron

PROMPT = ("generate", "toy", "hi", "--max-tokens=4")


def toy(**arguments: object) -> pb.ModelSpec:
    spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args.update({"profile": "toy", **arguments})
    return spec


async def test_serving_goes_on_without_the_controller(tmp_path: Path) -> None:
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path) as cluster:
        await cluster.apply([toy()])
        await cluster.wait_ready()
        router = f"--router={cluster.router_addresses[0]}"

        cluster.processes["controller"].kill()
        await cluster.processes["controller"].wait()
        direct = await chiron(*PROMPT, router)
        proxied = await chiron(*PROMPT, "--proxy", router)

    assert (direct.status, direct.stderr) == (0, "")
    assert (proxied.status, proxied.stderr) == (0, "")


async def test_a_client_that_knows_two_routers_needs_one(tmp_path: Path) -> None:
    async with LocalCluster(nodes=1, gpus=1, routers=2, directory=tmp_path) as cluster:
        await cluster.apply([toy()])
        await cluster.wait_ready()
        first, second = cluster.router_addresses

        cluster.processes["router-0"].kill()
        answer = await chiron(*PROMPT, f"--router={first},{second}")

    assert (answer.status, answer.stderr) == (0, "")


async def test_instances_of_a_lost_node_come_up_elsewhere(tmp_path: Path) -> None:
    quick = {"controller": {"liveness_timeout_s": "1", "report_interval_ms": "200"}}
    async with LocalCluster(nodes=2, gpus=1, directory=tmp_path, settings=quick) as cluster:
        await cluster.apply([toy()])
        before = (await cluster.wait_ready()).instances[0]

        await cluster.kill_node(before.node_id)
        after = await cluster.wait_for(
            lambda seen: (
                [(one.model, one.state) for one in seen.instances if one.node_id != before.node_id]
                == [("toy", types_pb2.INSTANCE_STATE_READY)]
            )
        )
        answer = await chiron(*PROMPT, f"--router={cluster.router_addresses[0]}")

    assert {node.node_id: node.live for node in after.nodes}[before.node_id] is False
    assert (answer.status, answer.stderr) == (0, "")


async def test_ctrl_c_on_generate_frees_the_engine(tmp_path: Path) -> None:
    def running(snapshot: pb.ClusterSnapshot) -> int:
        return sum(instance.load.running.interactive for instance in snapshot.instances)

    quick = {"controller": {"report_interval_ms": "200"}}
    async with LocalCluster(nodes=1, gpus=1, directory=tmp_path, settings=quick) as cluster:
        await cluster.apply([toy(time_scale=10)])
        await cluster.wait_ready()
        command = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from chiron.cli.main import main; main()",
            "generate",
            "toy",
            "hi",
            "--max-tokens=4000",
            f"--router={cluster.router_addresses[0]}",
            stdout=asyncio.subprocess.DEVNULL,
        )
        await cluster.wait_for(lambda seen: running(seen) == 1)

        command.send_signal(signal.SIGINT)

        assert await command.wait() == 130
        await cluster.wait_for(lambda seen: running(seen) == 0)
