"""The controller as a process: how it starts, how it refuses to, how it stops."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.servers import open_channel, open_control_channel
from chiron.v1 import cluster_pb2, cluster_pb2_grpc
from tests.support.fake_agent import FakeAgent

ROOT = Path(__file__).resolve().parents[3]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.global_controller",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def started() -> tuple[asyncio.subprocess.Process, str]:
    process = await start("--set", "listen=127.0.0.1:0")
    assert process.stdout is not None
    facts = json.loads(await process.stdout.readline())
    assert facts["service"] == "controller"
    return process, facts["address"]


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_it_serves_until_sigterm_and_exits_0_with_streams_open() -> None:
    process, address = await started()
    try:
        async with open_channel(address) as channel, FakeAgent(address, "a") as agent:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="chiron.v1.ClusterService")
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            await agent.until(lambda agent: agent.levels)
            watch = cluster_pb2_grpc.ClusterServiceStub(channel).WatchCluster(
                cluster_pb2.WatchClusterRequest()
            )
            shown = (await watch.read()).snapshot
            assert [(one.address, one.leader) for one in shown.controllers] == [(address, True)]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert await agent._call.code() is not None
    finally:
        await stop(process)


async def test_a_controller_that_freezes_is_given_up_by_whoever_is_tied_to_it() -> None:
    """Without a limit to the wait for a ping's answer it would take longer than a test may."""
    process, address = await started()
    try:
        async with open_control_channel(address) as channel:
            stream = control_pb2_grpc.ControlServiceStub(channel).ConnectAgent()
            hello = control_pb2.AgentHello(node_id="a", state_id="s")
            await stream.write(control_pb2.ConnectAgentRequest(hello=hello))
            assert (await stream.read()).HasField("welcome")
            process.send_signal(signal.SIGSTOP)
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await stop(process)


async def test_a_restarted_controller_has_a_higher_term() -> None:
    terms = []
    for _ in range(2):
        process, address = await started()
        try:
            async with FakeAgent(address, "a") as agent:
                terms.append(agent.welcome.term)
        finally:
            await stop(process)
    assert terms[1] > terms[0]


async def test_a_port_in_use_is_one_line_and_exit_2() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    process = await start("--set", f"listen=127.0.0.1:{port}")
    try:
        out, err = await process.communicate()
        assert process.returncode == 2
        assert out == b""
        assert err.decode().splitlines() == [f"error: cannot listen on 127.0.0.1:{port}: is the port in use?"]
    finally:
        await stop(process)
        await server.stop(0)


async def test_an_unknown_key_is_one_line_that_names_it_and_exit_2(tmp_path: Path) -> None:
    file = tmp_path / "chiron.toml"
    file.write_text('[controller]\nlissen = "127.0.0.1:0"\n')
    process = await start("--config", str(file))
    try:
        out, err = await process.communicate()
        assert process.returncode == 2
        assert out == b""
        [line] = err.decode().splitlines()
        assert "unknown key 'lissen'" in line
        assert str(file) in line
    finally:
        await stop(process)


async def test_values_that_cannot_work_together_are_refused_naming_the_key() -> None:
    process = await start("--set", "liveness_timeout_s=1", "--set", "report_interval_ms=1000")
    try:
        _, err = await process.communicate()
        assert process.returncode == 2
        [line] = err.decode().splitlines()
        assert "liveness_timeout_s: must be at least two report intervals (2 s), not 1" in line
    finally:
        await stop(process)
