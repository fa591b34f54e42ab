"""The controller on etcd: its state outlives it; a store that cannot be used ends its start with one line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, cluster_pb2_grpc
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.fake_agent import FakeAgent

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


async def start(*settings: str) -> asyncio.subprocess.Process:
    chosen = ["listen=127.0.0.1:0", "report_interval_ms=100", "liveness_timeout_s=1", *settings]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.global_controller",
        *(argument for setting in chosen for argument in ("--set", setting)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def announced(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = await process.stdout.readline()
    assert line, (await process.stderr.read()).decode()
    return str(json.loads(line)["address"])


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def refusal(*settings: str) -> str:
    """The line with which a start is refused."""
    process = await start(*settings)
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    [line] = err.decode().splitlines()
    return line


async def test_the_state_survives_a_sigkill_of_the_controller(etcd: EtcdServer) -> None:
    settings = ("store.kind=etcd", f"store.endpoints={etcd.endpoint}", "store.prefix=/chiron/one")
    process = await start(*settings)
    try:
        address = await announced(process)
        async with open_channel(address) as channel, FakeAgent(address, "a") as agent:
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
            spec = cluster_pb2.ModelSpec(name="chat", gpus_per_instance=1, engine="sim", min_instances=1)
            await cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec))
            await agent.until(lambda agent: any(level.instances for level in agent.levels))
            before = (await cluster.GetSnapshot(cluster_pb2.GetSnapshotRequest())).snapshot
            term = agent.welcome.term
            process.send_signal(signal.SIGKILL)
            await process.wait()
    finally:
        await stop(process)
    process = await start(*settings)
    try:
        address = await announced(process)
        async with open_channel(address) as channel:
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
            after = (await cluster.GetSnapshot(cluster_pb2.GetSnapshotRequest())).snapshot
            log = await cluster.ListDecisions(cluster_pb2.ListDecisionsRequest(model="chat"))
            async with FakeAgent(address, "a") as agent:
                assert agent.welcome.term > term
                await agent.until(lambda agent: agent.levels)
                level = agent.levels[0]
        [instance] = before.instances
        assert [(one.instance_id, one.gpu_indexes) for one in after.instances] == [
            (instance.instance_id, instance.gpu_indexes)
        ]
        assert [model.spec for model in after.models] == [model.spec for model in before.models]
        assert after.revision >= before.revision
        assert [one.instance_id for one in level.instances] == [instance.instance_id]
        assert instance.instance_id in [one.instance_id for one in log.decisions]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        await stop(process)


async def test_a_newer_controller_under_the_same_prefix_ends_the_older(etcd: EtcdServer) -> None:
    settings = ("store.kind=etcd", f"store.endpoints={etcd.endpoint}", "store.prefix=/chiron/two")
    older = await start(*settings)
    newer = None
    try:
        address = await announced(older)
        newer = await start(*settings)
        await announced(newer)
        # Its next write is refused, and it goes.
        async with open_channel(address) as channel:
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
            spec = cluster_pb2.ModelSpec(name="chat", gpus_per_instance=1, engine="sim")
            with pytest.raises(Exception, match="term"):
                await cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec))
        assert await older.wait() != 0
        assert newer.returncode is None
    finally:
        await stop(older)
        if newer is not None:
            await stop(newer)


async def test_an_etcd_that_refuses_the_password_ends_the_start_with_one_line(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("a secret\n")
    line = await refusal(
        "store.kind=etcd",
        f"store.endpoints={etcd.endpoint}",
        "store.user=chiron",
        f"store.password_file={password}",
    )
    assert line.startswith(f"error: [controller] store: etcd at {etcd.endpoint}: ")
    assert "authentication is not enabled" in line
    assert "a secret" not in line
