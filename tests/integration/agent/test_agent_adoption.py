"""An agent is killed, and its successor takes over what runs: real processes, real streams."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from services.local_agent.journal_file import JournalFile
from services.local_agent.launch import socket_folder, socket_path
from services.local_agent.procfs import session_members, stat_of, workers_below
from tests.support.agent_cases import StartAgent, kill_agent, stopped_level, toy_level
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

LOADING = types_pb2.INSTANCE_STATE_LOADING
READY = types_pb2.INSTANCE_STATE_READY
FAILED = types_pb2.INSTANCE_STATE_FAILED
STOPPED = types_pb2.INSTANCE_STATE_STOPPED
DRAINING = types_pb2.INSTANCE_STATE_DRAINING


def live_workers(agent: AgentProcess) -> list[int]:
    return [found.pid for found in workers_below(agent.state_dir / "instances")]


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


async def test_streams_outlive_the_agent_and_its_successor_adopts_the_worker_as_it_is(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    slow = {"time_scale": 4}
    controller.send([toy_level(arguments=slow)])
    status = await controller.until("toy-1", READY)
    level = toy_level(
        arguments=slow, generation=5, role=types_pb2.ROLE_INTERACTIVE, batch_size=4, step_token_budget=64
    )
    controller.send([level])
    await eventually(lambda: (seen := controller.instance("toy-1")) and seen.status.load.batch_size == 4)
    pid = first.records()["toy-1"].pid
    async with open_channel(status.address) as channel:
        request = inference_pb2.GenerateRequest(
            request_id="r-1",
            model="toy",
            prompt="Tell me",
            sampling=inference_pb2.SamplingParams(max_tokens=120, ignore_eos=True),
        )
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request).__aiter__()
        deltas = list((await anext(stream)).deltas)

        await kill_agent(first, controller)
        second = await agent()

        at_once = controller.reports[0].instances[0].status
        async for response in stream:
            deltas += response.deltas
    assert deltas[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert [delta.first_token_index for delta in deltas] == sorted(
        {delta.first_token_index for delta in deltas}
    )
    assert sum(len(delta.token_ids) for delta in deltas) == 120
    assert (at_once.state, at_once.incarnation, at_once.generation) == (READY, status.incarnation, 5)
    assert (at_once.role, at_once.address) == (types_pb2.ROLE_INTERACTIVE, status.address)
    assert (at_once.load.batch_size, at_once.load.step_token_budget) == (4, 64)
    assert list(at_once.gpu_indexes) == [0]
    assert not controller.reports[0].instances[0].known
    assert second.records()["toy-1"].pid == pid

    controller.send([level])
    await eventually(lambda: (seen := controller.instance("toy-1")) and seen.known)
    assert controller.history["toy-1"] == [READY]
    assert (await controller.until("toy-1", READY)).restarts == 0


async def test_an_adopted_worker_is_supervised_like_any_other(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level()])
    before = await controller.until("toy-1", READY)
    await kill_agent(first, controller)
    second = await agent()
    controller.send([toy_level()])
    os.kill(second.records()["toy-1"].pid, signal.SIGKILL)
    await controller.until("toy-1", LOADING)
    after = await controller.until("toy-1", READY)
    assert (after.restarts, after.incarnation > before.incarnation) == (1, True)
    controller.send([stopped_level()])
    await controller.until("toy-1", STOPPED)
    assert live_workers(second) == []


async def test_a_worker_that_died_while_no_agent_watched_is_replaced_and_its_socket_removed(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level(), toy_level("toy-2", gpus=(1,))])
    before = await controller.until("toy-1", READY)
    kept = await controller.until("toy-2", READY)
    workers = first.records()
    await kill_agent(first, controller)
    os.kill(workers["toy-1"].pid, signal.SIGKILL)
    await eventually(lambda: stat_of(workers["toy-1"].pid) is None)
    sockets = socket_folder(None, first.state_dir)
    assert socket_path(sockets, "toy-1").exists()

    await agent()
    assert not socket_path(sockets, "toy-1").exists()
    controller.send([toy_level(), toy_level("toy-2", gpus=(1,))])

    await controller.until_reason("toy-1", "its worker is gone: it ended while no agent watched")
    after = await controller.until("toy-1", READY)
    assert (after.restarts, after.incarnation > before.incarnation) == (1, True)
    assert controller.history["toy-2"] == [READY]
    assert (await controller.until("toy-2", READY)).incarnation == kept.incarnation


async def test_what_a_worker_leaves_behind_holds_its_gpu_until_it_is_gone(
    agent: StartAgent, controller: FakeController, scripted_python: Path
) -> None:
    first = await agent(worker_python=scripted_python)
    controller.send([toy_level(arguments={"engine_core": True})])
    await controller.until("toy-1", READY)
    leader = first.records()["toy-1"].pid
    (core,) = [member.pid for member in session_members(leader) if member.pid != leader]
    await kill_agent(first, controller)
    os.kill(leader, signal.SIGKILL)
    await eventually(lambda: stat_of(leader) is None)
    assert stat_of(core) is not None

    second = await agent(worker_python=scripted_python)
    controller.send([stopped_level(arguments={"engine_core": True}), toy_level("toy-2")])

    await controller.until("toy-2", READY)
    assert stat_of(core) is None
    assert live_workers(second) == [second.records()["toy-2"].pid]


async def test_a_worker_whose_pid_was_not_noted_yet_is_adopted_by_its_command_line(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level()])
    before = await controller.until("toy-1", READY)
    worker = first.records()["toy-1"]
    await kill_agent(first, controller)
    JournalFile(first.state_dir / "journal").commit([replace(worker, pid=0, start_time=0, address="")])

    second = await agent()
    controller.send([toy_level()])

    after = await controller.until("toy-1", READY)
    assert (after.incarnation, after.restarts) == (before.incarnation, 0)
    assert second.records()["toy-1"].pid == worker.pid
    assert live_workers(second) == [worker.pid]


async def test_a_start_that_was_announced_and_never_happened_happens(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level()])
    before = await controller.until("toy-1", READY)
    worker = first.records()["toy-1"]
    await kill_agent(first, controller)
    os.kill(worker.pid, signal.SIGKILL)
    intent = replace(worker, pid=0, start_time=0, address="", incarnation=worker.incarnation + 1)
    JournalFile(first.state_dir / "journal").commit([intent])

    second = await agent()
    controller.send([toy_level()])

    after = await controller.until("toy-1", READY)
    assert after.incarnation > before.incarnation + 1
    assert live_workers(second) == [second.records()["toy-1"].pid]


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
async def test_an_agent_killed_in_the_midst_of_a_start_leaves_one_worker_at_the_end(
    agent: StartAgent, controller: FakeController, scripted_python: Path, delay_s: float
) -> None:
    first = await agent(worker_python=scripted_python)
    controller.send([toy_level()])
    await eventually(lambda: (first.state_dir / "instances" / "toy-1").exists())
    # Not a wait for anything: the kill falls into another moment of the start each time.
    await asyncio.sleep(delay_s)
    await kill_agent(first, controller)

    second = await agent(worker_python=scripted_python)
    controller.send([toy_level()])

    await controller.until("toy-1", READY)
    assert live_workers(second) == [second.records()["toy-1"].pid]


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_worker_that_is_not_on_record_is_reported_then_adopted_or_stopped(
    agent: StartAgent, controller: FakeController, wanted: bool
) -> None:
    first = await agent()
    controller.send([toy_level(role=types_pb2.ROLE_INTERACTIVE, gpus=(1,))])
    before = await controller.until("toy-1", READY)
    await kill_agent(first, controller)
    (first.state_dir / "journal").unlink()

    second = await agent()
    found = controller.reports[0].instances[0]
    assert (found.known, found.status.state, found.status.model) == (False, READY, "toy")
    assert (found.status.incarnation, list(found.status.gpu_indexes)) == (before.incarnation, [1])
    assert (found.status.role, found.status.spec_version) == (types_pb2.ROLE_INTERACTIVE, 1)

    if wanted:
        controller.send([toy_level(role=types_pb2.ROLE_INTERACTIVE, gpus=(1,), generation=2)])
        await eventually(lambda: (seen := controller.instance("toy-1")) and seen.known)
        after = await controller.until("toy-1", READY)
        assert (after.incarnation, after.generation, after.restarts) == (before.incarnation, 2, 0)
    else:
        controller.send([stopped_level(gpus=(1,)), toy_level("toy-2", gpus=(1,))])
        await controller.until("toy-2", READY)
        assert live_workers(second) == [second.records()["toy-2"].pid]


async def test_without_a_controller_a_successor_brings_back_what_was_wanted_last(
    agent: StartAgent, controller: FakeController, tmp_path: Path
) -> None:
    first = await agent()
    controller.send([toy_level(), toy_level("toy-2", gpus=(1,))])
    await controller.until("toy-1", READY)
    await controller.until("toy-2", READY)
    workers = first.records()
    await controller.stop()
    await kill_agent(first, controller)
    os.kill(workers["toy-1"].pid, signal.SIGKILL)

    second = AgentProcess(tmp_path, controller.port)
    try:
        assert await second.start() != {}, second.log()

        def serves_anew() -> bool:
            worker = second.records().get("toy-1")
            return worker is not None and worker.pid != workers["toy-1"].pid and worker.address != ""

        await eventually(serves_anew)
        assert second.records()["toy-2"].pid == workers["toy-2"].pid
    finally:
        await second.end()


async def test_an_instance_that_was_given_up_stays_given_up(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent(max_load_retries=1)
    broken = {"fail_load": "weights are torn"}
    controller.send([toy_level(arguments=broken)])
    before = await controller.until("toy-1", FAILED)
    assert "failed 2 times in a row; last: " in before.reason
    await kill_agent(first, controller)

    second = await agent(max_load_retries=1)
    at_once = controller.reports[0].instances[0].status
    assert (at_once.state, at_once.reason, at_once.restarts) == (FAILED, before.reason, before.restarts)
    controller.send([toy_level(arguments=broken)])
    await eventually(lambda: controller.reports[-1].applied_revision == controller.desired.revision)
    assert controller.history["toy-1"] == [FAILED]
    assert live_workers(second) == []
    controller.send([toy_level(spec_version=2, generation=2)])
    await controller.until("toy-1", READY)


async def test_failures_are_counted_across_agents(agent: StartAgent, controller: FakeController) -> None:
    keys = {"max_restarts": 2, "restart_backoff_s": 0.05}
    process = await agent(**keys)
    controller.send([toy_level()])
    for _ in range(3):
        await controller.until("toy-1", READY)
        worker = process.records()["toy-1"]
        await kill_agent(process, controller)
        os.kill(worker.pid, signal.SIGKILL)
        await eventually(lambda pid=worker.pid: stat_of(pid) is None)
        process = await agent(**keys)
        controller.send([toy_level()])
    status = await controller.until("toy-1", FAILED)
    assert status.reason.startswith("failed 3 times in a row; last: it ended while no agent watched")
    assert status.restarts == 2


async def test_nothing_of_a_stopped_agent_is_brought_back(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    first.signal(signal.SIGTERM)
    assert await first.wait() == 0
    assert first.memory().instances == {}
    second = await agent()
    assert list(controller.reports[0].instances) == []
    assert live_workers(second) == []


async def test_an_agent_killed_while_it_stops_leaves_no_start_to_its_successor(
    agent: StartAgent, controller: FakeController, scripted_python: Path
) -> None:
    first = await agent(worker_python=scripted_python, drain_timeout_s=600)
    controller.send([toy_level(arguments={"drain_time_s": 600})])
    await controller.until("toy-1", READY)
    first.signal(signal.SIGTERM)
    await controller.until("toy-1", DRAINING)
    await kill_agent(first, controller)

    second = await agent(worker_python=scripted_python)

    await controller.until("toy-1", DRAINING)
    os.kill(second.records()["toy-1"].pid, signal.SIGKILL)
    await controller.until("toy-1", STOPPED)
    assert live_workers(second) == []


async def test_a_worker_that_loads_is_adopted_as_one_that_loads(
    agent: StartAgent, controller: FakeController, scripted_python: Path
) -> None:
    first = await agent(worker_python=scripted_python)
    controller.send([toy_level(arguments={"load_time_s": 3600})])
    before = await controller.until("toy-1", LOADING)
    await eventually(lambda: live_workers(first) != [])
    await kill_agent(first, controller)
    second = await agent(worker_python=scripted_python)
    assert controller.reports[0].instances[0].status.state == LOADING
    assert controller.reports[0].instances[0].status.incarnation == before.incarnation
    assert live_workers(second) == [second.records()["toy-1"].pid]


async def test_a_second_worker_of_an_instance_is_ended(agent: StartAgent, controller: FakeController) -> None:
    first = await agent()
    controller.send([toy_level()])
    before = await controller.until("toy-1", READY)
    worker = first.records()["toy-1"]
    await kill_agent(first, controller)
    replaced = {f"incarnation={before.incarnation}": "incarnation=5"}
    stray = await asyncio.create_subprocess_exec(
        *(replaced.get(part, part) for part in command_of(worker.pid)),
        "--set",
        f"socket={first.state_dir}/other.sock",
        start_new_session=True,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await eventually(lambda: len(live_workers(first)) == 2)

    await agent()

    await asyncio.wait_for(stray.wait(), 10)
    assert controller.reports[0].instances[0].status.incarnation == before.incarnation
    assert live_workers(first) == [worker.pid]


async def test_the_term_of_a_killed_agents_controller_binds_its_successor(
    agent: StartAgent, controller: FakeController
) -> None:
    controller.term = 7
    first = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    await kill_agent(first, controller)
    second = await agent()
    assert controller.hellos[-1].highest_term == 7
    controller.send([stopped_level()], term=6)
    await eventually(lambda: "term 6 is over: this node has seen term 7" in second.log())
    await controller.until_connected()
    assert controller.history["toy-1"] == [READY]
