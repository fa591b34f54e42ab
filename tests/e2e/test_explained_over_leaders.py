"""Real processes: a placement is followed to its first request although its leader dies, and is explained."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from chiron.client import Client
from chiron.cluster import ClusterAdmin, LocalCluster
from chiron.rpc.servers import open_control_channel
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc
from tests.support.chiron_command import chiron, only_error
from tests.support.etcd_server import etcd_members
from tests.support.wait import eventually


async def scale(address: str, instances: int) -> None:
    async with open_control_channel(address) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        await stub.ScaleModel(pb.ScaleModelRequest(name="toy", instances=instances))


@asynccontextmanager
async def chiron_top(controllers: Sequence[str]) -> AsyncIterator[asyncio.StreamReader]:
    """`chiron top` with its output in a pipe; it must end by Ctrl-C."""
    command = (sys.executable, "-c", "from chiron.cli.main import main; main()", "top")
    process = await asyncio.create_subprocess_exec(
        *command, "--controller", ",".join(controllers), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(lines: asyncio.StreamReader, text: str) -> AsyncIterator[str]:
    """The lines up to the first that has the text."""
    while True:
        line = (await lines.readline()).decode()
        assert line, "it has ended"
        yield line
        if text in line:
            return


async def test_a_leader_that_dies_takes_no_outcome_with_it(tmp_path: Path) -> None:
    spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1, max_instances=2)
    spec.engine_args.update({"profile": "toy", "load_time_s": 4.0})
    with etcd_members(tmp_path / "etcd") as [etcd]:
        async with LocalCluster(
            nodes=1,
            gpus=2,
            controllers=2,
            etcd_endpoints=[etcd.endpoint],
            settings={"controller": {"store.lease_s": "2"}},
            directory=tmp_path / "run",
        ) as cluster:
            controllers = cluster.controller_addresses
            await cluster.apply([spec])
            shown = await cluster.wait_ready()
            leader = shown.controllers[0].address
            async with ClusterAdmin(controllers, timeout_s=40.0) as admin:
                async with chiron_top(controllers) as lines:
                    await scale(leader, 2)
                    async with asyncio.timeout(40):
                        # What was decided before comes first.
                        told = [line async for line in until(lines, "instead of 1")]
                assert any("placed toy-" in line and "READY" not in line for line in told)
                scaled = next(one for one in await admin.decisions() if one.action == "scale")
                [placed] = (await admin.decision(scaled.decision_id)).followed_by
                assert "ready" not in [one.name for one in placed.outcome.milestones]
                process = next(
                    one for one in cluster.processes.values() if one.announced.get("address") == leader
                )
                process.signal(signal.SIGKILL)

                async def known() -> pb.DecisionOutcome | None:
                    outcome = (await admin.decision(placed.decision_id)).decision.outcome
                    return outcome if "ready" in [one.name for one in outcome.milestones] else None

                await eventually(known, within_s=30.0)
                async with Client(cluster.router_addresses) as client:

                    async def served() -> pb.DecisionOutcome | None:
                        asks = (client.complete(model="toy", prompt="hi", max_tokens=64) for _ in range(4))
                        await asyncio.gather(*asks)
                        outcome = (await admin.decision(placed.decision_id)).decision.outcome
                        return outcome if outcome.state == pb.OUTCOME_STATE_DONE else None

                    outcome = await eventually(served, within_s=30.0)
                after = {one.name: one.after_s for one in outcome.milestones}
                assert after["ready"] >= 4.0
                assert after["ready"] <= after["first_request"]
                assert outcome.HasField("need")
                answer = await admin.decision("")
                assert answer.decision.term >= placed.term
            told = await chiron("explain", placed.decision_id, "--controller", ",".join(controllers))
            assert told.status == 0, told.stderr
            assert "an operator asked for 2 instances instead of 1" in told.stdout
            assert "It was needed" in told.stdout or "It was not needed" in told.stdout
            newest = await chiron("explain", "--last", "--json", "--controller", ",".join(controllers))
            assert newest.json()["decision"]["decision_id"] == answer.decision.decision_id
            wrong = await chiron("explain", "no-such", "--controller", ",".join(controllers))
            assert only_error(wrong, 1) == "no decision 'no-such' is kept"
