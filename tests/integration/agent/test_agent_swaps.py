"""Two instances take turns on one GPU: real agents and workers, killed in the midst of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

from chiron.internal.v1 import control_pb2
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from services.local_agent.journal_file import JournalFile
from tests.support.agent_cases import StartAgent, kill_agent, stopped_level, toy_level
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

PENDING, LOADING = types_pb2.INSTANCE_STATE_PENDING, types_pb2.INSTANCE_STATE_LOADING
READY, DRAINING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_DRAINING
SLEEPING, FAILED = types_pb2.INSTANCE_STATE_SLEEPING, types_pb2.INSTANCE_STATE_FAILED
STOPPED = types_pb2.INSTANCE_STATE_STOPPED
SLEEP = control_pb2.DESIRED_STATE_SLEEPING


def turn(awake: str, generation: int, **arguments: object) -> list[control_pb2.DesiredInstance]:
    """Of a and b, both on GPU 0, one is to serve and the other one to sleep."""
    return [
        toy_level(name, arguments=arguments, generation=generation)
        if name == awake
        else toy_level(name, arguments=arguments, state=SLEEP, generation=generation)
        for name in ("a", "b")
    ]


async def test_a_stream_ends_before_its_gpu_goes_to_another_and_both_come_back(
    agent: StartAgent, controller: FakeController
) -> None:
    await agent(sleep_host_memory_gib=3)
    # Slow enough for the other one to have to wait.
    controller.send([toy_level("a", arguments={"time_scale": 4})])
    first = await controller.until("a", READY)
    async with open_channel(first.address) as channel:
        request = inference_pb2.GenerateRequest(
            request_id="r-1",
            model="toy",
            prompt="Tell me",
            sampling=inference_pb2.SamplingParams(max_tokens=60, ignore_eos=True),
        )
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request).__aiter__()
        deltas = list((await anext(stream)).deltas)
        controller.send(
            [
                toy_level("a", arguments={"time_scale": 4}, state=SLEEP, generation=2),
                toy_level("b", arguments={"time_scale": 4}),
            ]
        )
        await controller.until("a", DRAINING)
        waits = await controller.until("b", PENDING)
        assert waits.reason == "GPU 0 is still held by a"
        async for response in stream:
            deltas += response.deltas
    assert deltas[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert sum(len(delta.token_ids) for delta in deltas) == 60
    asleep = await controller.until("a", SLEEPING)
    second = await controller.until("b", READY)
    assert (asleep.incarnation, list(asleep.gpu_indexes)) == (first.incarnation, [0])
    assert asleep.kept.host_bytes > 2**20, "what a process keeps"
    assert asleep.kept.gpu_bytes == 0, "nobody can look at a declared GPU"
    assert controller.reports[-1].sleep_host_bytes == 3 * 2**30

    controller.send(
        [
            toy_level("a", arguments={"time_scale": 4}, generation=3, role=types_pb2.ROLE_BATCH),
            toy_level("b", arguments={"time_scale": 4}, state=SLEEP, generation=2),
        ]
    )
    awake = await controller.until("a", READY)
    assert (awake.incarnation, awake.restarts, awake.role) == (first.incarnation, 0, types_pb2.ROLE_BATCH)
    assert not awake.HasField("kept")
    assert (await controller.until("b", SLEEPING)).incarnation == second.incarnation
    assert controller.history["a"][-4:] == [DRAINING, SLEEPING, LOADING, READY]


async def test_a_change_of_mind_while_it_drains_brings_it_back_at_once(
    agent: StartAgent, controller: FakeController
) -> None:
    await agent()
    controller.send([toy_level("a")])
    first = await controller.until("a", READY)
    async with open_channel(first.address) as channel:
        request = inference_pb2.GenerateRequest(
            request_id="r-1",
            model="toy",
            prompt="Tell me",
            sampling=inference_pb2.SamplingParams(max_tokens=4000, ignore_eos=True),
        )
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request).__aiter__()
        await anext(stream)
        controller.send([toy_level("a", state=SLEEP, generation=2, drain_timeout_s=600)])
        await controller.until("a", DRAINING)
        controller.send([toy_level("a", generation=3)])
        await controller.until("a", READY)
        assert (await anext(stream)).deltas


async def test_a_successor_finds_one_awake_and_one_asleep_and_goes_on_taking_turns(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level("a")])
    before = [(await controller.until("a", READY)).incarnation]
    controller.send(turn("b", 2))
    before.append((await controller.until("b", READY)).incarnation)
    await controller.until("a", SLEEPING)
    await kill_agent(first, controller)
    second = await agent()
    at_once = {one.status.instance_id: one.status for one in controller.reports[0].instances}
    assert {name: status.state for name, status in at_once.items()} == {"a": SLEEPING, "b": READY}
    assert [at_once[name].incarnation for name in "ab"] == before
    controller.send(turn("a", 3))
    assert (await controller.until("a", READY)).incarnation == before[0]
    assert (await controller.until("b", SLEEPING)).incarnation == before[1]

    # Without a journal only the workers know.
    await kill_agent(second, controller)
    (second.state_dir / "journal").unlink()
    await agent()
    await controller.until("a", READY)
    await controller.until("b", SLEEPING)
    controller.send(turn("b", 4))
    assert (await controller.until("b", READY)).incarnation == before[1]
    assert (await controller.until("a", SLEEPING)).incarnation == before[0]


async def test_whenever_the_agent_is_killed_no_two_are_awake_on_one_gpu(
    agent: StartAgent, controller: FakeController, scripted_python: Path, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    arguments = {"diary": str(diary), "sleep_time_s": 0.1, "wake_time_s": 0.1}
    chance = random.Random(7)
    process = await agent(worker_python=scripted_python)
    controller.send([toy_level("a", arguments=arguments)])
    await controller.until("a", READY)
    for number in range(8):
        controller.send(turn("ba"[number % 2], number + 2, **arguments))
        await asyncio.sleep(chance.uniform(0, 0.5))
        await kill_agent(process, controller)
        process = await agent(worker_python=scripted_python)
    # The last word was for a: with nobody killed any more it takes its turn.
    controller.send(turn("a", 20, **arguments))
    await controller.until("a", READY)
    await controller.until("b", SLEEPING)
    entries = [line.split() for line in diary.read_text().splitlines()]
    assert len(entries) > 4, "turns were taken"
    assert not overlaps(entries), entries
    assert len({entry[2] for entry in entries}) == 2


def overlaps(entries: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Who began to own the GPU while another one did."""
    found, owner = [], ""
    for _, what, name in sorted(entries, key=lambda entry: float(entry[0])):
        if what == "owns":
            if owner not in ("", name):
                found.append((owner, name))
            owner = name
        elif name == owner:
            owner = ""
    return found


async def test_a_sleeper_that_dies_is_not_started_again_until_it_is_woken(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level("a")])
    first = await controller.until("a", READY)
    controller.send(turn("b", 2))
    await controller.until("b", READY)
    os.kill(process.records()["a"].pid, signal.SIGKILL)
    gone = await controller.until("a", FAILED)
    assert gone.reason == "failed once; last: killed by SIGKILL"
    await controller.until("b", READY)
    await kill_agent(process, controller)
    await agent()
    assert (await controller.until("a", FAILED)).reason == gone.reason, "its successor knows"
    controller.send([toy_level("a", generation=3), stopped_level("b")])
    again = await controller.until("a", READY)
    assert again.incarnation > first.incarnation


async def test_a_sleeper_that_died_while_no_agent_watched_stays_so(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level("a", state=SLEEP)])
    await controller.until("a", SLEEPING)
    pid = process.records()["a"].pid
    await kill_agent(process, controller)
    os.kill(pid, signal.SIGKILL)
    await agent()
    assert "while no agent watched" in (await controller.until("a", FAILED)).reason


async def test_a_worker_that_crashes_as_it_wakes_has_failed_to_start(
    agent: StartAgent, controller: FakeController, scripted_python: Path
) -> None:
    await agent(worker_python=scripted_python, cordon_after_failed_starts=2)
    arguments = {"crash_on_wake": "out of memory"}
    controller.send([toy_level("a", arguments=arguments, state=SLEEP)])
    before = await controller.until("a", SLEEPING)
    controller.send([toy_level("a", arguments=arguments, generation=2)])
    again = await controller.until("a", READY)
    assert (again.restarts, again.incarnation > before.incarnation) == (1, True)
    await controller.until_reason("a", "exit status 3: out of memory")


async def test_a_full_disk_lets_nobody_have_a_sleepers_gpu(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level("a")])
    await controller.until("a", READY)
    journal = process.state_dir / "journal"
    kept = journal.read_bytes()
    journal.unlink()
    journal.mkdir()
    (process.state_dir / ".journal.new").mkdir(exist_ok=True)
    controller.send(turn("b", 2))
    await controller.until_reason("a", "cannot be written")
    assert controller.history["a"][-1] == DRAINING
    assert (await controller.until("b", PENDING)).reason == "GPU 0 is still held by a"
    (process.state_dir / ".journal.new").rmdir()
    journal.rmdir()
    journal.write_bytes(kept)
    await controller.until("b", READY)
    await controller.until("a", SLEEPING)
    asleep = {
        name: one.worker.asleep
        for name, one in JournalFile(journal).memory.instances.items()
        if one.worker is not None
    }
    assert asleep == {"a": True, "b": False}
    await eventually(lambda: not controller.reports[-1].problems)
