"""A request's time limit holds even where gRPC tells its callers nothing any more."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.support.fake_inference import FakeDoor, FakeRouter, answer, serving

STILL = """
import asyncio, sys
from chiron.client import Client, DeadlineExceeded

class Loop(asyncio.SelectorEventLoop):
    # grpc.aio has its answers read by a reader that it adds to the loop.
    def __init__(self):
        super().__init__()
        self.readers = []

    def add_reader(self, fd, callback, *args):
        self.readers.append(fd)
        super().add_reader(fd, callback, *args)

    def deafen(self):
        assert self.readers and [self.remove_reader(fd) for fd in self.readers] == [True] * len(self.readers)

async def main(address, door):
    told = (lambda progress: None) if door == "watched" else None
    async with Client(address, lookaside=door != "proxied", silence_s=0.2) as client:
        async def ask(**limit):
            return await client.complete(model="toy", prompt="x", on_progress=told, **limit)

        print((await ask()).text, flush=True)
        asyncio.get_running_loop().deafen()
        try:
            await ask(timeout_s=0.3)
        except DeadlineExceeded as error:
            print(error.message, client.stats.retries, client.stats.failed, flush=True)
        try:
            await ask()
        except DeadlineExceeded as error:
            print(error.message, client.stats.retries, client.stats.failed, flush=True)

with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("door", ["lookaside", "watched", "proxied"])
async def test_a_request_ends_when_grpc_no_longer_tells_of_its_deadline(door):
    worker = FakeDoor("w-1")
    router = FakeRouter(worker)
    router.script = [answer()]
    async with serving(worker, router):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STILL, router.address, door, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    told = "timeout_s=0.3 passed before the answer was complete 0 1"
    silent = "nothing was heard for silence_s=0.2 0 2"
    assert out.decode().splitlines() == ["Once upon a time", told, silent]
    assert process.returncode == 0
