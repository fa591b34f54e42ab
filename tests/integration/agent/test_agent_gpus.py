"""A real agent on GPUs that a fake NVML shows: who may have them, when they are free, when they are sick."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.procfs import workers_below
from tests.support.agent_cases import kill_agent, stopped_level, toy_level
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY
PENDING = types_pb2.INSTANCE_STATE_PENDING
DRAINING = types_pb2.INSTANCE_STATE_DRAINING
FAILED = types_pb2.INSTANCE_STATE_FAILED
STOPPED = types_pb2.INSTANCE_STATE_STOPPED
SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING
LOADING = types_pb2.INSTANCE_STATE_LOADING


class Gpus:
    """The file that the agent's NVML reads."""

    def __init__(self, file: Path, count: int) -> None:
        self.file = file
        self.now: list[dict[str, Any]] = [{"uuid": f"GPU-{uuid.uuid4()}"} for _ in range(count)]
        self._write()

    def set(self, index: int, **facts: object) -> None:
        self.now[index].update(facts)
        self._write()

    def _write(self) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.now))
        temporary.replace(self.file)


@pytest.fixture
def gpus(tmp_path: Path) -> Gpus:
    return Gpus(tmp_path / "nvml.json", 2)


Start = Callable[..., Awaitable[AgentProcess]]


@pytest.fixture
async def agent(
    tmp_path: Path, controller: FakeController, scripted_python: Path, gpus: Gpus
) -> AsyncIterator[Start]:
    started: list[AgentProcess] = []

    async def start(**keys: object) -> AgentProcess:
        process = nvml_agent(tmp_path, controller, gpus, worker_python=scripted_python, **keys)
        started.append(process)
        assert await process.start() != {}, process.log()
        await controller.until_connected()
        return process

    yield start
    for process in started:
        await process.end()


def nvml_agent(folder: Path, controller: FakeController, gpus: Gpus, **keys: object) -> AgentProcess:
    settings: dict[str, Any] = {"gpus": -1, "gpu_check_interval_s": 0.1, **keys}
    environ = {"CHIRON_TEST_NVML": str(gpus.file)}
    return AgentProcess(
        folder, controller.port, module="tests.support.nvml_agent", environ=environ, **settings
    )


def gpu(controller: FakeController, index: int) -> cluster_pb2.Gpu:
    return controller.reports[-1].gpus[index]


async def test_a_second_agent_on_the_same_gpus_is_refused_whatever_its_folder(
    agent: Start, controller: FakeController, gpus: Gpus, tmp_path: Path
) -> None:
    first = await agent()
    second = nvml_agent(tmp_path / "other", controller, gpus)
    (tmp_path / "other").mkdir()
    assert await second.start() == {}
    assert await second.wait() == 2
    (line,) = [line for line in second.log().splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: gpus: GPU 0 ({gpus.now[0]['uuid']}) belongs to another agent on this host "
        f"(pid {first.pid}); run one agent for each node"
    )
    await kill_agent(first, controller)
    assert await second.start() != {}, "the kernel has freed them with their holder"
    await second.end()


async def test_a_lock_file_that_is_removed_lets_nobody_in(
    agent: Start, controller: FakeController, gpus: Gpus, tmp_path: Path
) -> None:
    first = await agent()
    (first.state_dir / "lock").unlink()
    second = nvml_agent(tmp_path, controller, gpus)
    assert await second.start() == {}
    assert await second.wait() == 2
    assert f"is in use by another agent (pid {first.pid})" in second.log()


async def test_a_gpu_is_free_only_when_nobody_computes_on_it(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    process = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    gpus.set(0, processes=[4242])
    controller.send([stopped_level(), toy_level("toy-2")])
    why = "GPU 0 is not free: process 4242 computes on it"
    await controller.until_reason("toy-1", why)
    assert (await controller.until("toy-1", DRAINING)).reason == why
    await controller.until_reason("toy-2", "GPU 0 is still held by toy-1")
    assert list(workers_below(process.state_dir / "instances")) == []
    assert STOPPED not in controller.history["toy-1"]
    gpus.set(0, processes=[])
    await controller.until("toy-1", STOPPED)
    await controller.until("toy-2", READY)


async def test_nothing_starts_beside_a_stranger(agent: Start, controller: FakeController, gpus: Gpus) -> None:
    gpus.set(0, processes=[77, 78])
    await agent()
    controller.send([toy_level()])
    await controller.until_reason("toy-1", "GPU 0 is not free: process 77 computes on it, process 78")
    assert (await controller.until("toy-1", PENDING)).restarts == 0
    gpus.set(0, processes=[])
    await controller.until("toy-1", READY)


async def test_a_restart_waits_for_what_a_crash_has_left_on_the_gpu(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    process = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    gpus.set(0, processes=[4242])
    os.kill(process.records()["toy-1"].pid, 9)
    await controller.until_reason("toy-1", "GPU 0 is not free: process 4242 computes on it")
    gpus.set(0, processes=[])
    assert (await controller.until("toy-1", READY)).restarts == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"xids": [13, 79]}, "cordoned: XID 79"),
        ({"ecc": 3}, "cordoned: 3 memory errors that ECC could not correct"),
    ],
)
async def test_a_fault_cordons_its_gpu_until_an_operator_lifts_that(
    agent: Start, controller: FakeController, gpus: Gpus, facts: dict[str, object], reason: str
) -> None:
    first = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    gpus.set(0, **facts)
    await eventually(lambda: gpu(controller, 0).cordoned)
    assert (gpu(controller, 0).healthy, gpu(controller, 0).reason) == (False, reason)
    assert gpu(controller, 1).healthy
    assert (await controller.until("toy-1", READY)).restarts == 0, "what runs there runs on"
    os.kill(first.records()["toy-1"].pid, 9)
    await controller.until_reason("toy-1", f"GPU 0 is not healthy: {reason}")

    await kill_agent(first, controller)
    gpus.set(0, xids=[])
    second = await agent()
    assert gpu(controller, 0).reason == reason, "it outlives the agent"
    assert controller.hellos[-1].gpus[0].cordoned
    assert list(workers_below(second.state_dir / "instances")) == []

    order = control_pb2.GpuOrder(gpu_uuid=gpus.now[0]["uuid"], cordoned=False)
    controller.send([toy_level()], gpu_orders=[order])
    await eventually(lambda: gpu(controller, 0).healthy)
    await controller.until("toy-1", READY)
    await kill_agent(second, controller)
    await agent()
    assert gpu(controller, 0).healthy, "errors that were accepted count no more"


async def test_nothing_starts_on_a_gpu_that_a_restarted_agent_finds_no_more(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    first = await agent()
    controller.send([toy_level(gpus=(1,))])
    await controller.until("toy-1", READY)
    await kill_agent(first, controller)
    del gpus.now[1]
    gpus.set(0)
    second = await agent()
    await controller.until_reason("toy-1", "GPU 1 is not there: this node has 1")
    assert list(workers_below(second.state_dir / "instances")) == []
    controller.send([stopped_level(gpus=(1,))])
    await controller.until("toy-1", STOPPED)


async def test_an_operators_cordon_is_kept(agent: Start, controller: FakeController, gpus: Gpus) -> None:
    first = await agent()
    order = control_pb2.GpuOrder(gpu_uuid=gpus.now[1]["uuid"], cordoned=True, reason="its fan rattles")
    controller.send([], gpu_orders=[order])
    await eventually(lambda: gpu(controller, 1).reason == "cordoned: its fan rattles")
    await kill_agent(first, controller)
    await agent()
    assert gpu(controller, 1).reason == "cordoned: its fan rattles"


async def test_a_lasting_fault_is_reported_while_it_lasts(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    await agent()
    for fact, reason in {
        "remap_failed": "row remapping has failed",
        "pages_pending": "pages of its memory wait to be retired",
        "lost": "NVML: GPU is lost",
    }.items():
        gpus.set(1, **{fact: True})
        await eventually(lambda reason=reason: gpu(controller, 1).reason.startswith(reason))
        assert not gpu(controller, 1).cordoned
        gpus.set(1, **{fact: False})
        await eventually(lambda: gpu(controller, 1).healthy)


async def test_starts_that_fail_on_one_gpu_alone_cordon_it(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    await agent(max_restarts=2, cordon_after_failed_starts=3)
    bad = {"crash": "CUDA error: unspecified launch failure"}
    controller.send([toy_level(gpus=(1,))])
    await controller.until("toy-1", READY)
    controller.send([toy_level(gpus=(1,)), toy_level("toy-2", arguments=bad)])
    await eventually(lambda: gpu(controller, 0).cordoned)
    assert gpu(controller, 0).reason == (
        "cordoned: 3 starts in a row failed on it (toy); last: exit status 3: "
        "CUDA error: unspecified launch failure"
    )
    assert gpu(controller, 1).healthy


async def test_a_model_that_never_works_is_to_blame_itself(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    await agent(max_restarts=4, cordon_after_failed_starts=3)
    controller.send([toy_level(arguments={"crash": "bad weights"})])
    await controller.until("toy-1", FAILED)
    await asyncio.sleep(0)
    assert gpu(controller, 0).healthy


async def test_a_gpu_is_free_for_others_once_its_sleeper_keeps_no_more_than_it_may(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    process = await agent()
    controller.send([toy_level("a")])
    await controller.until("a", READY)
    pid = process.records()["a"].pid
    gpus.set(0, processes=[pid], memory={str(pid): 6 << 30})
    sleep, mib = control_pb2.DESIRED_STATE_SLEEPING, 2**20
    controller.send(
        [toy_level("a", state=sleep, generation=2, sleep_residual_bytes=512 * mib), toy_level("b")]
    )
    much = "6144 MiB of GPU 0 are in use, 512 MiB may be (autoscaling.sleep_residual_mib)"
    await controller.until_reason("a", much)
    assert (await controller.until("a", DRAINING)).reason == much
    assert (await controller.until("b", PENDING)).reason == "GPU 0 is still held by a"
    gpus.set(0, memory={str(pid): 300 * mib})
    assert (await controller.until("a", SLEEPING)).kept.gpu_bytes == 300 * mib
    await controller.until("b", READY)

    # A stranger is no sleeper.
    stopped = stopped_level("b")
    controller.send([toy_level("a", state=sleep, generation=2), stopped])
    await controller.until("b", STOPPED)
    gpus.set(0, processes=[pid, 1], memory={str(pid): 300 * mib})
    controller.send([toy_level("a", generation=3), stopped])
    await controller.until_reason("a", "GPU 0 is not free: process 1 computes on it")
    await controller.until("a", LOADING)
    gpus.set(0, processes=[pid])
    await controller.until("a", READY)


async def test_where_nvml_does_not_tell_processes_apart_the_whole_gpu_counts(
    agent: Start, controller: FakeController, gpus: Gpus
) -> None:
    process = await agent()
    controller.send([toy_level("a")])
    await controller.until("a", READY)
    pid, mib = process.records()["a"].pid, 2**20
    gpus.set(0, processes=[pid], used=900 * mib)
    sleep = control_pb2.DESIRED_STATE_SLEEPING
    controller.send([toy_level("a", state=sleep, generation=2, sleep_residual_bytes=800 * mib)])
    await controller.until_reason("a", "900 MiB of GPU 0 are in use, 800 MiB may be")
    gpus.set(0, used=700 * mib)
    assert (await controller.until("a", SLEEPING)).kept.gpu_bytes == 700 * mib
