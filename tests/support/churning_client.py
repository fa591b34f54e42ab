"""A client that opens and cancels as fast as it can until SIGTERM, in a process of its own.

    python -m tests.support.churning_client ROUTER KIND
KIND is `generate` (half are cancelled at once, half after their first message) or `route` (tickets
that nobody uses). Prints a line once it has been turned away; at the end: opened, refused by class, pauses
(seconds that it was told to wait: the least, the most), others (whatever else went wrong, with its text).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import uvloop

from chiron.client.details import from_rpc
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

ROOT = Path(__file__).parents[2]
LANES, CHANNELS = 64, 4
PROMPT = "x" * 1024


class Churn:
    """What it does and what became of it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.opened = 0
        self.refused: Counter[str] = Counter()
        self.pauses: list[float] = []
        self.others: Counter[str] = Counter()

    async def lane(self, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        while True:
            self.opened += 1
            try:
                await (self._generate(stub) if self._kind == "generate" else self._route(stub))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure)
                if error.reason != "TOO_MANY_ABANDONED":
                    self.others[f"{error.reason}: {error.message}"] += 1
                    continue
                if not self.refused:
                    print("turned away", flush=True)
                self.refused[type(error).__name__] += 1
                self.pauses.append(error.retry_after_s or 0.0)

    async def _generate(self, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        request = pb.GenerateRequest(model="m", prompt=PROMPT)
        request.sampling.max_tokens, request.sampling.ignore_eos = 1000, True
        call = stub.Generate(request)
        try:
            await (call.read() if self.opened % 2 else asyncio.sleep(0))
        finally:
            call.cancel()

    async def _route(self, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        await stub.Route(pb.RouteRequest(request_id=f"{self.opened}", model="m"))


async def run(router: str, kind: str) -> None:
    stop, churn = asyncio.Event(), Churn(kind)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    channels = [open_channel(router) for _ in range(CHANNELS)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    lanes = [asyncio.create_task(churn.lane(stubs[number % CHANNELS])) for number in range(LANES)]
    await stop.wait()
    for lane in lanes:
        lane.cancel()
    await asyncio.gather(*lanes, return_exceptions=True)
    for channel in channels:
        await channel.close()
    print(
        json.dumps(
            {
                "opened": churn.opened,
                "refused": churn.refused,
                "pauses": [min(churn.pauses, default=0), max(churn.pauses, default=0)],
                "others": churn.others,
            }
        )
    )


class ChurningClient:
    """The process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def turned_away(self) -> None:
        """Waits until it has been refused."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            assert (await self.process.stdout.readline()).decode() == "turned away\n"

    async def stop(self) -> dict[str, object]:
        """Ends it; what it has to tell."""
        self.process.terminate()
        out, _ = await self.process.communicate()
        return dict(json.loads(out))


@contextlib.asynccontextmanager
async def churning_client(router: str, kind: str) -> AsyncIterator[ChurningClient]:
    """Starts one, and ends it afterwards if it has not been stopped."""
    arguments = ("-m", "tests.support.churning_client", router, kind)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=pipe)
    try:
        yield ChurningClient(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2]))
