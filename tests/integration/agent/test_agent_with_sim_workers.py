"""A real agent process and real workers with the sim engine, against a scripted controller."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from chiron.internal.v1 import control_pb2, worker_pb2, worker_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc, types_pb2
from services.local_agent.launch import socket_folder, socket_path
from services.local_agent.procfs import stat_of
from services.local_agent.socket_folders import short_folder
from services.local_agent.worker_link import CommandError, WorkerLink
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

LOADING = types_pb2.INSTANCE_STATE_LOADING
READY = types_pb2.INSTANCE_STATE_READY
FAILED = types_pb2.INSTANCE_STATE_FAILED
STOPPED = types_pb2.INSTANCE_STATE_STOPPED

Start = Callable[..., Awaitable[AgentProcess]]


def desired(
    instance_id: str = "toy-1",
    *,
    arguments: dict[str, object] | None = None,
    state: control_pb2.DesiredState.ValueType = control_pb2.DESIRED_STATE_RUNNING,
    generation: int = 1,
    gpus: tuple[int, ...] = (0,),
    **more: object,
) -> control_pb2.DesiredInstance:
    engine_args = struct_pb2.Struct()
    engine_args.update({"profile": "toy", **(arguments or {})})
    return control_pb2.DesiredInstance(
        instance_id=instance_id,
        generation=generation,
        state=state,
        spec=cluster_pb2.ModelSpec(
            name="toy", engine="sim", gpus_per_instance=1, max_batch_size=32, engine_args=engine_args
        ),
        gpu_indexes=gpus,
        **{"spec_version": 1, "role": types_pb2.ROLE_MIXED, **more},  # type: ignore[arg-type]
    )


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
async def agent(tmp_path: Path, controller: FakeController) -> AsyncIterator[Start]:
    started: list[AgentProcess] = []

    async def start(**keys: object) -> AgentProcess:
        process = AgentProcess(tmp_path, controller.port, **keys)  # type: ignore[arg-type]
        started.append(process)
        assert await process.start() != {}, process.log()
        await controller.until_connected()
        return process

    yield start
    for process in started:
        await process.end()


def pid_of(agent: AgentProcess, instance_id: str = "toy-1") -> int:
    return agent.records()[instance_id].pid


async def load_of(address: str) -> worker_pb2.WatchLoadResponse:
    async with open_channel(address) as channel:
        call = worker_pb2_grpc.WorkerServiceStub(channel).WatchLoad(worker_pb2.WatchLoadRequest())
        first = await call.read()
        call.cancel()
        assert isinstance(first, worker_pb2.WatchLoadResponse)
        return first


async def test_hello_names_the_node_and_its_gpus(agent: Start, controller: FakeController) -> None:
    await agent(gpus=3)
    hello = controller.hellos[0]
    assert (hello.node_id, hello.host, hello.highest_term) == ("node-1", "127.0.0.1", 0)
    assert [gpu.uuid for gpu in hello.gpus] == ["declared-0", "declared-1", "declared-2"]
    assert hello.agent_version


async def test_a_node_may_have_no_gpus(agent: Start, controller: FakeController) -> None:
    await agent(gpus=0)
    assert list(controller.hellos[0].gpus) == []


async def test_an_instance_loads_then_serves_at_the_reported_address(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired()])
    status = await controller.until("toy-1", READY)
    assert [state for state in controller.history["toy-1"] if state in (LOADING, READY)] == [LOADING, READY]
    assert (status.model, status.node_id, list(status.gpu_indexes)) == ("toy", "node-1", [0])
    assert (status.restarts, status.generation, status.spec_version) == (0, 1, 1)
    load = await load_of(status.address)
    assert (load.instance_id, load.incarnation) == ("toy-1", status.incarnation)
    assert controller.instance("toy-1").known  # type: ignore[union-attr]
    await eventually(lambda: controller.reports[-1].applied_revision == 1)


async def test_workers_see_their_gpus_and_the_configured_environment(
    agent: Start, controller: FakeController
) -> None:
    process = await agent(worker_env="CHIRON_TEST_MARK=here")
    controller.send([desired(gpus=(1,))])
    await controller.until("toy-1", READY)
    environ = (Path("/proc") / str(pid_of(process)) / "environ").read_bytes().split(b"\0")
    assert {b"CUDA_VISIBLE_DEVICES=1", b"CHIRON_TEST_MARK=here"} <= set(environ)


async def test_a_killed_worker_is_restarted_as_a_new_incarnation(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    os.kill(pid_of(process), signal.SIGKILL)
    await controller.until("toy-1", LOADING)
    second = await controller.until("toy-1", READY)
    assert second.restarts == 1
    assert second.incarnation > first.incarnation
    assert "worker failed: killed by SIGKILL" in process.log()


async def test_an_engine_that_cannot_load_is_failed_with_its_reason(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired(arguments={"fail_load": "the weights are not there"})])
    status = await controller.until("toy-1", FAILED)
    assert "the weights are not there" in status.reason


async def test_role_and_limits_are_changed_on_the_live_worker(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    controller.send([desired(generation=2, role=types_pb2.ROLE_BATCH, batch_size=4, step_token_budget=64)])

    def applied() -> bool:
        report = controller.instance("toy-1")
        return report is not None and (
            report.status.role,
            report.status.load.batch_size,
            report.status.load.step_token_budget,
        ) == (types_pb2.ROLE_BATCH, 4, 64)

    await eventually(applied)
    status = await controller.until("toy-1", READY)
    assert (status.incarnation, status.generation) == (first.incarnation, 2)
    assert (await load_of(status.address)).batch_size == 4


async def test_a_new_spec_version_replaces_the_worker(agent: Start, controller: FakeController) -> None:
    await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    controller.send([desired(generation=2, spec_version=2)])
    await controller.until("toy-1", LOADING)
    second = await controller.until("toy-1", READY)
    assert (second.spec_version, second.restarts) == (2, 0)
    assert second.incarnation > first.incarnation


async def test_a_stopped_instance_is_gone_and_its_gpu_free(agent: Start, controller: FakeController) -> None:
    process = await agent()
    controller.send([desired()])
    await controller.until("toy-1", READY)
    pid = pid_of(process)
    controller.send([desired(state=control_pb2.DESIRED_STATE_STOPPED, generation=2)])
    await controller.until("toy-1", STOPPED)
    assert stat_of(pid) is None
    controller.send([desired("toy-2")])
    await controller.until("toy-2", READY)
    assert controller.instance("toy-1") is None


async def test_a_stopped_instance_finishes_its_streams_first(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired(arguments={"time_scale": 4})])
    status = await controller.until("toy-1", READY)
    request = inference_pb2.GenerateRequest(
        request_id="r-1",
        model="toy",
        prompt="Tell me",
        sampling=inference_pb2.SamplingParams(max_tokens=60, ignore_eos=True),
    )
    async with open_channel(status.address) as channel:
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request).__aiter__()
        deltas = list((await anext(stream)).deltas)
        controller.send([desired(state=control_pb2.DESIRED_STATE_STOPPED, generation=2)])
        await controller.until("toy-1", types_pb2.INSTANCE_STATE_DRAINING)
        async for response in stream:
            deltas += response.deltas
    assert deltas[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert sum(len(delta.token_ids) for delta in deltas) == 60
    await controller.until("toy-1", STOPPED)


async def test_an_idle_instance_sleeps_and_wakes_in_the_same_incarnation(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    controller.send([desired(state=control_pb2.DESIRED_STATE_SLEEPING, generation=2)])
    await controller.until("toy-1", types_pb2.INSTANCE_STATE_SLEEPING)
    controller.send([desired(generation=3)])
    awake = await controller.until("toy-1", READY)
    assert (awake.incarnation, awake.restarts) == (first.incarnation, 0)


async def test_the_control_socket_answers_the_agent_and_says_when_it_is_gone(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired()])
    status = await controller.until("toy-1", READY)
    socket = socket_path(socket_folder(None, process.state_dir), "toy-1")
    link = WorkerLink(socket, status.incarnation)
    assert await link.preempt(["nobody"]) == []
    with pytest.raises(CommandError, match=r"^INVALID_ARGUMENT: "):
        await link.set_limits(10_000, 0)
    controller.send([desired(state=control_pb2.DESIRED_STATE_STOPPED, generation=2)])
    await controller.until("toy-1", STOPPED)
    with pytest.raises(CommandError, match=r"^UNAVAILABLE: "):
        await link.drain(1.0)
    await link.close()


async def test_a_repeated_level_changes_nothing(agent: Start, controller: FakeController) -> None:
    await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    for _ in range(3):
        controller.send([desired()])
    await eventually(lambda: controller.reports[-1].applied_revision == 4)
    second = await controller.until("toy-1", READY)
    assert (second.incarnation, second.restarts) == (first.incarnation, 0)


async def test_a_controller_of_an_older_term_is_refused(agent: Start, controller: FakeController) -> None:
    controller.term = 7
    process = await agent()
    controller.send([desired()])
    await controller.until("toy-1", READY)
    controller.send([desired(state=control_pb2.DESIRED_STATE_STOPPED, generation=2)], term=6)
    await eventually(lambda: "term 6 is over: this node has seen term 7" in process.log())
    await eventually(lambda: len(controller.hellos) > 1)
    assert controller.hellos[-1].highest_term == 7
    await controller.until_connected()
    assert STOPPED not in controller.history["toy-1"]
    await controller.until("toy-1", READY)


async def test_the_highest_term_outlives_the_agent(agent: Start, controller: FakeController) -> None:
    controller.term = 7
    process = await agent()
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    controller.term = 6
    await process.start()
    await eventually(lambda: "term 6 is over: this node has seen term 7" in process.log())
    assert controller.hellos[-1].highest_term == 7


async def test_a_controllers_restart_leaves_workers_untouched(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired()])
    first = await controller.until("toy-1", READY)
    await controller.stop()
    successor = FakeController(term=2)
    await successor.start(controller.port)
    try:
        again = await successor.until("toy-1", READY)
        assert (again.incarnation, again.restarts) == (first.incarnation, 0)
        assert not successor.instance("toy-1").known  # type: ignore[union-attr]
        successor.send([])
        await eventually(lambda: successor.reports[-1].applied_revision == 1)
        assert not (await _report(successor)).known
        assert stat_of(pid_of(process)) is not None
    finally:
        await process.end()
        await successor.stop()


async def _report(controller: FakeController) -> control_pb2.InstanceReport:
    report = controller.instance("toy-1")
    assert report is not None
    return report


async def test_a_second_agent_on_one_state_folder_is_refused(
    agent: Start, controller: FakeController, tmp_path: Path
) -> None:
    await agent()
    second = AgentProcess(tmp_path, controller.port)
    assert await second.start() == {}
    assert await second.wait() == 2
    assert "error: state_dir: " in second.log()
    assert "is in use by another agent (pid " in second.log()


async def test_sigterm_drains_every_worker_reports_it_and_leaves_no_process(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired(), desired("toy-2", gpus=(1,))])
    await controller.until("toy-1", READY)
    await controller.until("toy-2", READY)
    pids = [pid_of(process, "toy-1"), pid_of(process, "toy-2")]
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert [pid for pid in pids if stat_of(pid) is not None] == []
    assert [controller.history[name][-1] for name in ("toy-1", "toy-2")] == [STOPPED, STOPPED]
    assert process.records() == {}


async def test_sigterm_is_told_to_the_controller_before_the_workers_are_gone(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired()])
    await controller.until("toy-1", READY)
    assert not controller.reports[-1].leaving
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    farewell = [report for report in controller.reports if report.leaving]
    assert farewell[0].instances[0].status.state != STOPPED
    assert [one.status.state for one in farewell[-1].instances] == [STOPPED]


async def test_workers_take_the_ports_of_their_range(
    agent: Start, controller: FakeController, unused_tcp_port: int
) -> None:
    await agent(worker_ports=f"{unused_tcp_port}")
    controller.send([desired()])
    status = await controller.until("toy-1", READY)
    assert status.address == f"127.0.0.1:{unused_tcp_port}"
    controller.send([desired(), desired("toy-2", gpus=(1,))])
    await controller.until_reason("toy-2", f"no port of worker_ports={unused_tcp_port} is free")


async def test_without_nvml_a_clear_line_ends_the_start(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import ctypes, sys\n"
        "def refuse(*_, **__): raise OSError('no such library')\n"
        "ctypes.CDLL = refuse\n"
        "from chiron.service import run_service\n"
        "from services.local_agent.app import serve\n"
        "from services.local_agent.config import AgentConfig\n"
        f"sys.exit(run_service('agent', AgentConfig, serve, ['--set', 'state_dir={tmp_path}']))",
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert stderr.decode().startswith("error: gpus: NVML finds none (")


async def test_an_agent_that_stops_leaves_no_folder_of_sockets_in_tmp(
    agent: Start, controller: FakeController, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    process = await agent(state_dir=deep)
    folder = short_folder(deep)
    controller.send([desired()])
    await controller.until("toy-1", READY)
    assert [one.suffix for one in folder.iterdir()] == [".sock"]
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert not folder.exists()
