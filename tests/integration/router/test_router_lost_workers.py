"""A worker that dies, freezes or is cut off takes no request with it: the router notices on its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chiron.internal.v1 import control_pb2
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.integration.router.conftest import RunningRouter
from tests.support.link import Link
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

SPEC = {"name": "m", "engine": "sim", "gpusPerInstance": 1, "maxBatchSize": 4}
SILENCE_S = 0.5


class Rig:
    """Two workers behind links, a router, and clients that never stop asking for one token."""

    def __init__(self, router: RunningRouter, workers: list[WorkerProcess], links: list[Link]) -> None:
        self.router, self.workers, self.links = router, workers, links
        self.answers = 0
        self._lanes: list[asyncio.Task[None]] = []

    def ejected(self) -> dict[str, str]:
        return {one.instance_id: one.reason for one in self.router.core.ejected(0.0)}

    def waiting(self) -> int:
        """Requests that wait in the router."""
        return sum(self.router.waiting() or ())

    def begun(self) -> int:
        """Streams that have had their token and not their end."""
        return sum(stream.delivered for stream in self.router.router._streams._streams)

    def start_load(self) -> None:
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(8)]

    async def answered(self, count: int) -> None:
        """Waits for more answers; a failed request fails the test."""
        target = self.answers + count
        await eventually(lambda: self.answers >= target or any(lane.done() for lane in self._lanes))
        for lane in self._lanes:
            if lane.done():
                lane.result()

    async def tokens(self, request: pb.GenerateRequest) -> AsyncIterator[int]:
        """One stream's tokens."""
        async for chunk in self.router.stub.Generate(request):
            for delta in chunk.deltas:
                for token in delta.token_ids:
                    yield token

    async def stop_load(self) -> None:
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _lane(self) -> None:
        request = pb.GenerateRequest(
            model="m", prompt="one", sampling=pb.SamplingParams(max_tokens=1, ignore_eos=True)
        )
        while True:
            chunks = [chunk async for chunk in self.router.stub.Generate(request)]
            assert sum(len(delta.token_ids) for chunk in chunks for delta in chunk.deltas) == 1
            self.answers += 1


@pytest.fixture
async def rig(
    stack: AsyncExitStack,
    tmp_path: Path,
    controller: object,
    start_router: Callable[..., Awaitable[RunningRouter]],
) -> AsyncIterator[Rig]:
    workers, links = [], []
    controller.add("m")  # type: ignore[attr-defined]
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        worker = await stack.enter_async_context(worker_process(folder, SPEC, instance_id=name))
        await worker.until()
        link = await Link(worker.address).start()
        stack.push_async_callback(link.stop)
        controller.table.instances.append(  # type: ignore[attr-defined]
            control_pb2.RoutedInstance(
                instance_id=name,
                incarnation=7,
                model="m",
                address=link.address,
                role=types_pb2.ROLE_MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
            )
        )
        workers.append(worker)
        links.append(link)
    router = await start_router(eject_silence_s=SILENCE_S)
    await eventually(lambda: len([one for one in router.core._instances.values() if one.usable]) == 2)
    rig = Rig(router, workers, links)
    rig.start_load()
    await rig.answered(50)
    yield rig
    await rig.stop_load()


async def test_a_killed_worker(rig: Rig) -> None:
    rig.workers[0].process.kill()
    await eventually(lambda: rig.ejected().get("a"))
    await rig.answered(100)
    # The latter once a new connection has been tried in vain.
    assert rig.ejected() in ({"a": "connection lost"}, {"a": "cannot be reached"})


async def test_a_stopped_worker_that_goes_on_later(rig: Rig) -> None:
    rig.workers[0].process.send_signal(signal.SIGSTOP)
    try:
        await eventually(lambda: rig.ejected().get("a", "").startswith("silent for"))
        await rig.answered(100)
    finally:
        rig.workers[0].process.send_signal(signal.SIGCONT)
    await eventually(lambda: rig.ejected() == {})
    await rig.answered(100)


async def test_a_worker_behind_a_link_that_forwards_nothing(rig: Rig) -> None:
    rig.links[0].freeze()
    await eventually(lambda: rig.ejected().get("a", "").startswith("silent for"))
    await rig.answered(100)
    rig.links[0].thaw()
    await eventually(lambda: rig.ejected() == {})
    await rig.answered(100)


async def test_a_stream_of_a_frozen_worker_goes_on_at_another_one_while_it_is_frozen(rig: Rig) -> None:
    await rig.stop_load()
    request = pb.GenerateRequest(
        model="m", prompt="long", sampling=pb.SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    )
    whole = [token async for token in rig.tokens(request)]
    streams = rig.router.router._streams._streams
    tokens = []
    async for token in rig.tokens(request):
        tokens.append(token)
        if len(tokens) == 1:
            (stream,) = streams
            first = stream.instance_id
            rig.links["ab".index(first)].freeze()
        (stream,) = streams or (stream,)
    assert tokens == whole
    assert stream.instance_id != first
    assert rig.ejected()[first].startswith("silent for")


async def test_when_every_worker_freezes_requests_wait_and_none_fails(rig: Rig) -> None:
    for link in rig.links:
        link.freeze()
    await eventually(lambda: len(rig.ejected()) == 2)
    # What had no token yet waits in the router now; an answer of which only the end is missing is left alone.
    await eventually(lambda: rig.waiting() + rig.begun() == 8)
    for link in rig.links:
        link.thaw()
    await rig.answered(100)
