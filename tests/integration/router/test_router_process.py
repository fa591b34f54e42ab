"""`python -m services.router`: starts, says so, stops in order; a bad start is one line and exit status 2."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

import pytest

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.wait import eventually


async def start(*settings: str) -> asyncio.subprocess.Process:
    arguments = [part for setting in settings for part in ("--set", setting)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.router",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_sigterm_finishes_what_runs_refuses_new_and_exits_0() -> None:
    worker = await FakeWorker("a").start()
    controller = await FakeRouterController().start()
    controller.add("m", [worker])
    process = await start("listen=127.0.0.1:0", f"controller={controller.address}", "router_id=r1")
    announced = json.loads(await process.stdout.readline())
    assert announced["service"] == "router"
    async with open_channel(announced["address"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        hello = await controller.hellos.get()
        assert (hello.router_id, hello.address) == ("r1", announced["address"])
        call = stub.Generate(pb.GenerateRequest(model="m", prompt="x"), wait_for_ready=True)
        answered = await worker.calls.get()
        answered.text("one")
        chunks = call.__aiter__()
        assert (await anext(chunks)).deltas[0].text == "one"
        process.send_signal(signal.SIGTERM)

        async def refused() -> bool:
            try:
                await stub.Route(pb.RouteRequest(model="m"))
            except Exception as error:
                return "shutting down" in str(error)
            return False

        await eventually(refused)
        answered.text("two")
        answered.finish()
        assert [chunk.deltas[0].text async for chunk in chunks] == ["two"]
    assert await process.wait() == 0
    await process.communicate()
    await worker.stop()
    await controller.stop()


async def test_a_port_in_use_is_one_line_and_exit_status_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await start(f"listen={address}")
        out, err = await process.communicate()
    assert process.returncode == 2
    assert out == b""
    lines = [line for line in err.decode().splitlines() if line.startswith("error:")]
    assert lines == [f"error: cannot listen on {address}: is the port in use?"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("max_attempts=0", "max_attempts"),
        ("dispatcher=random", "dispatcher"),
        ("qeue_limit=3", "qeue_limit"),
    ],
)
async def test_a_bad_setting_is_one_line_that_names_it(setting: str, named: str) -> None:
    process = await start(setting)
    _, err = await process.communicate()
    assert process.returncode == 2
    [line] = err.decode().splitlines()
    assert line.startswith("error: ")
    assert named in line
