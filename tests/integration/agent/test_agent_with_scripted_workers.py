"""A real agent process, a scripted controller, and workers that misbehave on request."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.procfs import session_members, stat_of
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY
PENDING = types_pb2.INSTANCE_STATE_PENDING
DRAINING = types_pb2.INSTANCE_STATE_DRAINING
FAILED = types_pb2.INSTANCE_STATE_FAILED
STOPPED = types_pb2.INSTANCE_STATE_STOPPED
SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING


def desired(
    instance_id: str = "m-1",
    *,
    arguments: dict[str, object] | None = None,
    state: control_pb2.DesiredState.ValueType = control_pb2.DESIRED_STATE_RUNNING,
    generation: int = 1,
    gpus: tuple[int, ...] = (0,),
    **more: object,
) -> control_pb2.DesiredInstance:
    engine_args = struct_pb2.Struct()
    engine_args.update(arguments or {})
    return control_pb2.DesiredInstance(
        instance_id=instance_id,
        generation=generation,
        state=state,
        spec=cluster_pb2.ModelSpec(name="m", engine="sim", gpus_per_instance=1, engine_args=engine_args),
        gpu_indexes=gpus,
        **{"spec_version": 1, "role": types_pb2.ROLE_MIXED, **more},  # type: ignore[arg-type]
    )


def stopped(instance_id: str = "m-1", **more: object) -> control_pb2.DesiredInstance:
    return desired(instance_id, state=control_pb2.DESIRED_STATE_STOPPED, generation=9, **more)  # type: ignore[arg-type]


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
async def agent(
    tmp_path: Path, controller: FakeController
) -> AsyncIterator[Callable[..., Awaitable[AgentProcess]]]:
    python = tmp_path / "scripted-python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.scripted_worker "$@"\n')
    python.chmod(0o755)
    started: list[AgentProcess] = []

    async def start(**keys: object) -> AgentProcess:
        process = AgentProcess(tmp_path, controller.port, worker_python=python, **keys)  # type: ignore[arg-type]
        started.append(process)
        await process.start()
        await controller.until_connected()
        return process

    yield start
    for process in started:
        await process.end()


Start = Callable[..., Awaitable[AgentProcess]]


def live(agent: AgentProcess, instance_id: str = "m-1") -> list[int]:
    record = agent.records().get(instance_id)
    return [] if record is None else [stat.pid for stat in session_members(record.pid)]


async def test_a_crash_loop_ends_in_failed_with_the_last_words_and_frees_the_gpu(
    agent: Start, controller: FakeController
) -> None:
    process = await agent(max_restarts=2)
    controller.send([desired(arguments={"crash": "RuntimeError: driver too old"})])
    status = await controller.until("m-1", FAILED)
    assert status.restarts == 2
    assert status.reason == "failed 3 times in a row; last: exit status 3: RuntimeError: driver too old"
    assert "m-1: given up: " in process.log()
    controller.send([desired(arguments={"crash": "RuntimeError: driver too old"}), desired("m-2")])
    await controller.until("m-2", READY)


async def test_a_load_failures_reason_travels_while_others_go_on(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired(arguments={"fail_load": "no such file: /w"}), desired("m-2", gpus=(1,))])
    status = await controller.until("m-1", FAILED)
    assert status.reason == "failed 2 times in a row; last: no such file: /w"
    await controller.until("m-2", READY)


async def test_a_new_instance_waits_for_the_gpu_of_one_that_drains(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    slow = {"drain_time_s": 1.0}
    controller.send([desired(arguments=slow)])
    await controller.until("m-1", READY)
    controller.send([stopped(arguments=slow), desired("m-2")])
    await controller.until_reason("m-2", "GPU 0 is still held by m-1")
    await controller.until("m-1", DRAINING)
    await controller.until("m-2", READY)
    await controller.until("m-1", STOPPED)
    assert live(process, "m-1") == []


async def test_a_worker_that_ignores_sigterm_is_killed(agent: Start, controller: FakeController) -> None:
    process = await agent(stop_grace_s=0.2)
    controller.send([desired(arguments={"ignore_sigterm": True})])
    await controller.until("m-1", READY)
    assert live(process) != []
    controller.send([stopped()])
    await controller.until("m-1", STOPPED)
    assert live(process) == []


async def test_a_worker_that_hangs_is_replaced(agent: Start, controller: FakeController) -> None:
    process = await agent(silence_timeout_s=0.5, statistics_interval_ms=100, stop_grace_s=0.2)
    controller.send([desired()])
    first = await controller.until("m-1", READY)
    os.kill(process.records()["m-1"].pid, signal.SIGSTOP)
    await controller.until_reason("m-1", "after: no statistics for 0.5 s (silence_timeout_s)")
    second = await controller.until("m-1", READY)
    assert second.restarts == 1
    assert second.incarnation > first.incarnation


async def test_an_instance_sleeps_and_wakes(agent: Start, controller: FakeController) -> None:
    await agent()
    controller.send([desired(state=control_pb2.DESIRED_STATE_SLEEPING)])
    asleep = await controller.until("m-1", SLEEPING)
    controller.send([desired(generation=2)])
    awake = await controller.until("m-1", READY)
    assert awake.incarnation == asleep.incarnation


async def test_a_refused_command_is_reported_and_leaves_the_worker_serving(
    agent: Start, controller: FakeController
) -> None:
    process = await agent()
    controller.send([desired(arguments={"refuse_limits": True}, batch_size=64)])
    refusal = "SetLimits refused: INVALID_ARGUMENT: batch_size: above the ceiling"
    await controller.until_reason("m-1", refusal)
    assert refusal in process.log()
    controller.send([desired(arguments={"refuse_limits": True}, generation=2)])
    await eventually(lambda: (seen := controller.instance("m-1")) is not None and not seen.status.reason)
    status = await controller.until("m-1", READY)
    assert status.restarts == 0


async def test_an_impossible_placement_is_refused_with_the_field(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([desired(gpus=(5,))])
    status = await controller.until("m-1", FAILED)
    assert status.reason == "gpu_indexes: this node has GPUs 0, 1, not 5"


async def test_stopping_what_was_never_there_is_done_at_once(
    agent: Start, controller: FakeController
) -> None:
    await agent()
    controller.send([stopped()])
    await controller.until("m-1", STOPPED)
    controller.send([])
    await eventually(lambda: controller.instance("m-1") is None, what="a stopped instance is forgotten")


async def test_a_second_sigterm_stops_at_once(agent: Start, controller: FakeController) -> None:
    process = await agent(drain_timeout_s=600)
    controller.send([desired(arguments={"drain_time_s": 600, "ignore_sigterm": True})])
    await controller.until("m-1", READY)
    workers = live(process)
    process.signal(signal.SIGTERM)
    await controller.until("m-1", DRAINING)
    process.signal(signal.SIGTERM)
    assert await process.wait() != 0
    assert [pid for pid in workers if stat_of(pid) is not None] == []


async def test_sigterm_cuts_a_drain_off_at_its_timeout(agent: Start, controller: FakeController) -> None:
    process = await agent(drain_timeout_s=0.5)
    controller.send([desired(arguments={"drain_time_s": 600}, drain_timeout_s=600)])
    await controller.until("m-1", READY)
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert controller.history["m-1"][-2:] == [DRAINING, STOPPED]
    assert "1 requests were cut off" in process.log()
