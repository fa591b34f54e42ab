"""The blocking client: the same behaviour from ordinary threads."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chiron.client import (
    Cancelled,
    ClientClosed,
    InvalidRequest,
    ModelNotFound,
    StreamInterrupted,
    SyncClient,
)
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from tests.support.fake_inference import FakeDoor, FakeRouter, answer, break_off, refuse, serving, stall
from tests.support.wait import eventually


@pytest.fixture
async def worker():
    return FakeDoor("w-1")


@pytest.fixture
async def router(worker):
    router = FakeRouter(worker)
    async with serving(worker, router):
        yield router


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "chiron-client"]


async def test_a_stream_is_an_ordinary_iterator(router):
    def work() -> list[str]:
        with SyncClient(router.address) as client:
            return [chunk.text for chunk in client.generate(model="toy", prompt="x")]

    assert "".join(await asyncio.to_thread(work)) == "Once upon a time"
    assert not client_threads()


async def test_a_whole_answer_and_the_counts(router, worker):
    second = FakeDoor("w-2")
    worker.script = [refuse(Reason.RETRY_ELSEWHERE)]

    def work() -> tuple[str, int, int]:
        with SyncClient([router.address]) as client:
            whole = client.complete(model="toy", prompt="x")
            return whole.text, whole.attempts, client.stats.retried

    async with serving(second):
        router.workers.append(second)
        assert await asyncio.to_thread(work) == ("Once upon a time", 2, 1)


async def test_errors_are_the_same(router, worker):
    def unknown() -> None:
        with SyncClient(router.address) as client:
            client.complete(model="nope", prompt="x")

    def interrupted() -> None:
        with SyncClient(router.address) as client:
            list(client.generate(model="toy", prompt="x"))

    def wrong() -> None:
        with SyncClient(router.address) as client:
            client.generate(model="toy")

    worker.script = [break_off("Once")]
    with pytest.raises(StreamInterrupted) as caught:
        await asyncio.to_thread(interrupted)
    assert caught.value.delivered[0].text == "Once"
    with pytest.raises(InvalidRequest):
        await asyncio.to_thread(wrong)
    router.refusal = ServerError(Reason.MODEL_NOT_FOUND, "no such model")
    with pytest.raises(ModelNotFound):
        await asyncio.to_thread(unknown)
    assert not client_threads()


async def test_several_threads_share_one_client(router, worker):
    def work() -> list[str]:
        with SyncClient(router.address) as client, ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: client.complete(model="toy", prompt="x").text, range(32)))

    assert await asyncio.to_thread(work) == ["Once upon a time"] * 32
    assert len(worker.generated) == 32


async def test_closing_a_stream_cancels_the_request_on_the_worker(router, worker):
    worker.script = [stall("Once")]

    def work() -> str:
        with SyncClient(router.address) as client, client.generate(model="toy", prompt="x") as stream:
            return next(stream).text

    assert await asyncio.to_thread(work) == "Once"
    await eventually(lambda: worker.cancelled == 1)


async def test_a_stream_can_be_closed_while_another_thread_reads_it(router, worker):
    # Without a first chunk, after which the reader would not be reading for a moment.
    worker.script = [stall()]
    with SyncClient(router.address) as client:
        stream = client.generate(model="toy", prompt="x")
        reading = asyncio.create_task(asyncio.to_thread(list, stream))
        await eventually(lambda: worker.running == 1)
        await asyncio.to_thread(stream.close)
        with pytest.raises(Cancelled, match="closed while it was being read"):
            await reading
        await eventually(lambda: worker.cancelled == 1)
        assert await asyncio.to_thread(list, stream) == []
        worker.script = [answer()]
        assert (await asyncio.to_thread(client.complete, model="toy", prompt="x")).text == "Once upon a time"


async def test_a_second_reader_of_a_stream_is_told_so(router, worker):
    # Without a first chunk, after which the reader would not be reading for a moment.
    worker.script = [stall()]
    with SyncClient(router.address) as client:
        stream = client.generate(model="toy", prompt="x")
        reading = asyncio.create_task(asyncio.to_thread(list, stream))
        await eventually(lambda: worker.running == 1)
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(next, stream)
        await asyncio.to_thread(stream.close)
        with pytest.raises(Cancelled):
            await reading


async def test_closing_the_client_ends_what_other_threads_wait_for(router, worker):
    worker.script = [stall()]
    client = SyncClient(router.address)
    waiting = asyncio.create_task(asyncio.to_thread(client.complete, model="toy", prompt="x"))
    await eventually(lambda: worker.running == 1)
    await asyncio.to_thread(client.close)
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        client.complete(model="toy", prompt="x")
    await asyncio.to_thread(client.close)
    assert not client_threads()


async def test_a_stream_can_be_closed_after_its_client(router, worker):
    worker.script = [stall("Once")]

    def work() -> None:
        with SyncClient(router.address) as client:
            stream = client.generate(model="toy", prompt="x")
            next(stream)
        stream.close()
        with pytest.raises(ClientClosed):
            next(stream)

    await asyncio.to_thread(work)


async def test_a_client_that_is_dropped_ends_its_thread(router):
    def work() -> None:
        SyncClient(router.address).complete(model="toy", prompt="x")
        gc.collect()

    await asyncio.to_thread(work)
    await eventually(lambda: not client_threads())


async def test_a_client_lives_as_long_as_its_stream(router):
    def work() -> str:
        return "".join(chunk.text for chunk in SyncClient(router.address).generate(model="toy", prompt="x"))

    assert await asyncio.to_thread(work) == "Once upon a time"


NEVER_CLOSED = """
import sys
from chiron.client import SyncClient

client = SyncClient(sys.argv[1])
print(client.complete(model="toy", prompt="x").text)
stream = client.generate(model="toy", prompt="x")
print(next(stream).text)
"""


async def test_a_program_that_never_closes_its_client_ends_quietly(router):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", NEVER_CLOSED, router.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"Once upon a time\nOnce\n", b"")


FORKED = """
import os, sys
from chiron.client import Cancelled, ClientClosed, SyncClient

client = SyncClient(sys.argv[1])
print(client.complete(model="toy", prompt="x").text, flush=True)
child = os.fork()
if not child:
    try:
        client.complete(model="toy", prompt="x")
    except ClientClosed as error:
        print(error, flush=True)
    client.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(client.complete(model="toy", prompt="x").text)
client.close()
"""


async def test_a_fork_cannot_use_its_parents_client_and_does_not_hang(router):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKED, router.address, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    told = "the client was made in another process: make one after the fork"
    assert out.decode().splitlines() == ["Once upon a time", told, "7", "Once upon a time"]
