"""The controller on etcd: its state outlives it; a store that cannot be used ends its start with one line."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from chiron.rpc.errors import reason_of
from chiron.store.etcd import Connection, EtcdStore
from chiron.v1 import cluster_pb2
from tests.support.controller_process import controllers, spec
from tests.support.etcd_server import EtcdServer, etcd_members, settings
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


async def refusal(*settings: str) -> str:
    """The line with which a start is refused."""
    process = await start(*settings)
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    [line] = err.decode().splitlines()
    return line


async def test_the_state_survives_a_sigkill_of_the_controller(etcd: EtcdServer, tmp_path: Path) -> None:
    async with (
        controllers(tmp_path, [etcd.endpoint], "store.prefix=/chiron/one", count=1) as alone,
        alone.admin(timeout_s=30.0) as admin,
    ):
        [process] = alone.processes
        await alone.leader()
        async with FakeAgent(process.address, "a") as agent:
            await admin.apply_model(spec())
            await agent.until(lambda agent: any(level.instances for level in agent.levels))
            before = await admin.snapshot()
            term = agent.welcome.term
            await process.kill()
        await process.start()
        # Its earlier self's lease has to end first.
        await alone.leader()
        after = await admin.snapshot()
        log = await process.cluster.ListDecisions(cluster_pb2.ListDecisionsRequest(model="chat"))
        async with FakeAgent(process.address, "a") as agent:
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
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_term_that_someone_takes_without_an_election_ends_the_reign(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    async with (
        controllers(tmp_path, [etcd.endpoint], "store.prefix=/chiron/two", count=1) as alone,
        alone.admin(timeout_s=30.0) as admin,
    ):
        [process] = alone.processes
        await alone.leader()
        other = EtcdStore(Connection(settings(etcd.endpoint)), "/chiron/two")
        taken = await other.acquire_term()
        await other.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await process.cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec()))
        assert reason_of(caught.value) == "NOT_LEADER"
        # It wins the next election, and nothing of that write has happened.
        after = await admin.snapshot()
        assert after.term > taken
        assert list(after.models) == []


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
