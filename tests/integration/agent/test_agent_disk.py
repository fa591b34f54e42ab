"""An agent whose disk takes no more, and one whose journal is damaged."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from services.local_agent.procfs import workers_below
from tests.support.agent_cases import StartAgent, kill_agent, stopped_level, toy_level
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY
PENDING = types_pb2.INSTANCE_STATE_PENDING
STOPPED = types_pb2.INSTANCE_STATE_STOPPED


@contextlib.contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """No file of this process can grow: what a full disk or a quota does, without either."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def stream(address: str) -> AsyncIterator[inference_pb2.OutputDelta]:
    request = inference_pb2.GenerateRequest(
        request_id="r-1",
        model="toy",
        prompt="Tell me",
        sampling=inference_pb2.SamplingParams(max_tokens=100, ignore_eos=True),
    )
    async with open_channel(address) as channel:
        async for response in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
            for delta in response.deltas:
                yield delta


async def test_a_full_disk_stops_new_starts_and_nothing_else(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level(arguments={"time_scale": 4})])
    status = await controller.until("toy-1", READY)
    await eventually(lambda: process.records()["toy-1"].address)
    answer = stream(status.address)
    deltas = [await anext(answer)]
    levels = [toy_level(arguments={"time_scale": 4}), toy_level("toy-2", gpus=(1,))]

    with full_disk(process.pid):
        controller.send(levels)
        await controller.until_reason("toy-2", "journal cannot be written: File too large")
        assert (await controller.until("toy-2", PENDING)).restarts == 0
        role = types_pb2.ROLE_INTERACTIVE
        controller.send([toy_level(arguments={"time_scale": 4}, role=role, generation=2), levels[1]])
        await eventually(lambda: (seen := controller.instance("toy-1")) and seen.status.role == role)
        deltas += [delta async for delta in answer]
        assert len(list(workers_below(process.state_dir / "instances"))) == 1

    assert sum(len(delta.token_ids) for delta in deltas) == 100
    await controller.until("toy-2", READY)
    assert (await controller.until("toy-1", READY)).incarnation == status.incarnation
    # What the disk refused has been written since.
    level = process.memory().instances["toy-1"].level
    assert level is not None
    assert level.role == role


async def test_a_full_disk_still_lets_a_worker_stop_and_its_gpu_be_free(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    with full_disk(process.pid):
        controller.send([stopped_level()])
        await controller.until("toy-1", STOPPED)
        assert list(workers_below(process.state_dir / "instances")) == []
        # Its successor finds the worker on record, and no process.
        await kill_agent(process, controller)
    second = await agent()
    assert list(workers_below(second.state_dir / "instances")) == []


async def test_a_term_that_the_disk_does_not_take_is_reported_to_and_not_obeyed(
    agent: StartAgent, controller: FakeController
) -> None:
    process = await agent()
    controller.send([toy_level()])
    first = await controller.until("toy-1", READY)
    with full_disk(process.pid):
        await controller.stop()
        successor = FakeController(term=2)
        await successor.start(controller.port)
        try:
            again = await successor.until("toy-1", READY)
            assert again.incarnation == first.incarnation
            successor.send([stopped_level()])
            await eventually(lambda: len(successor.reports) > 5)
            assert successor.history["toy-1"] == [READY]
            assert successor.reports[-1].applied_revision == 0
            assert process.memory().term == 1
            resource.prlimit(
                process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            await successor.until("toy-1", STOPPED)
            assert process.memory().term == 2
            assert successor.reports[-1].applied_revision == 1
        finally:
            await process.end()
            await successor.stop()


async def test_a_journal_cut_off_in_its_last_line_is_taken_up_with_a_warning(
    agent: StartAgent, controller: FakeController
) -> None:
    first = await agent()
    controller.send([toy_level()])
    before = await controller.until("toy-1", READY)
    await eventually(lambda: first.records()["toy-1"].address)
    await kill_agent(first, controller)
    with (first.state_dir / "journal").open("ab") as journal:
        journal.write(b'0badc0de [{"term": {"te')
    second = await agent()
    assert (await controller.until("toy-1", READY)).incarnation == before.incarnation
    assert "a write was cut off; it took no effect and is passed over" in second.log()
    controller.send([toy_level(generation=2)])
    await eventually(lambda: (one := second.memory().instances["toy-1"].level) and one.generation == 2)


async def test_a_journal_damaged_in_its_midst_ends_the_start_with_one_line_and_the_workers_serve_on(
    agent: StartAgent, controller: FakeController, tmp_path: Path
) -> None:
    first = await agent()
    controller.send([toy_level()])
    await controller.until("toy-1", READY)
    await eventually(lambda: first.records()["toy-1"].address)
    await kill_agent(first, controller)
    journal = first.state_dir / "journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], lines[1][:-1] + b"?", *lines[2:]]))
    (worker,) = workers_below(first.state_dir / "instances")

    second = AgentProcess(tmp_path, controller.port)
    assert await second.start() == {}
    assert await second.wait() == 2

    (line,) = [line for line in second.log().splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: state_dir: {journal}, line 2: its checksum is wrong. ")
    assert f"end the workers (their command lines name {first.state_dir})" in line
    assert [found.pid for found in workers_below(first.state_dir / "instances")] == [worker.pid]
