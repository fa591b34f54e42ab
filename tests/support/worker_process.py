"""A real worker process on a real port and a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from chiron.auth.tickets import sign
from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from tests.support.patience import patience

ROOT = Path(__file__).parents[2]
READY = types_pb2.INSTANCE_STATE_READY
_WITHIN_S = 20.0


class WorkerProcess:
    """One worker, its channels and its stubs."""

    def __init__(self, process: asyncio.subprocess.Process, announced: Mapping[str, Any], log: Path) -> None:
        self.process = process
        self.address = str(announced["address"])
        self.socket = Path(announced["socket"])
        self._log = log
        self.network_channel = open_channel(self.address)
        self.control_channel = open_channel(f"unix:{self.socket}")
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.network_channel)
        self.network = worker_pb2_grpc.WorkerServiceStub(self.network_channel)
        self.control = worker_pb2_grpc.WorkerServiceStub(self.control_channel)

    @property
    def log(self) -> str:
        """What the process wrote to stderr."""
        return self._log.read_text()

    async def until(
        self, state: types_pb2.InstanceState.ValueType = READY
    ) -> worker_pb2.WatchStatisticsResponse:
        """The first statistics that show the state."""
        async with asyncio.timeout(_WITHIN_S * patience()):
            async for statistics in self.control.WatchStatistics(worker_pb2.WatchStatisticsRequest()):
                if statistics.state == state:
                    return statistics
        raise AssertionError("the statistics stream ended")

    async def load_when(self, condition: Any) -> worker_pb2.WatchLoadResponse:
        """The first load, as routers see it, for which the condition holds."""
        async with asyncio.timeout(_WITHIN_S * patience()):
            async for load in self.network.WatchLoad(worker_pb2.WatchLoadRequest(subscriber="test")):
                if condition(load):
                    return load
        raise AssertionError("the load stream ended")

    async def idle(self) -> None:
        """Returns when nothing runs or waits."""
        await self.load_when(lambda load: slots(load.running) + slots(load.waiting) == 0)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def exit_status(self) -> int:
        """The exit status, once the process has ended."""
        async with asyncio.timeout(_WITHIN_S * patience()):
            return await self.process.wait()

    async def close(self) -> None:
        """Closes the channels and ends the process."""
        await self.network_channel.close()
        await self.control_channel.close()
        if self.process.returncode is None:
            self.terminate()
            try:
                async with asyncio.timeout(5.0):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


def worker_arguments(folder: Path, spec: Mapping[str, Any], **settings: Any) -> list[str]:
    """The command line of a worker; writes its spec into the folder."""
    spec_file = folder / "spec.json"
    spec_file.write_text(json.dumps(spec))
    chosen = {
        "instance_id": "toy-000001",
        "incarnation": 7,
        "spec_file": spec_file,
        "socket": folder / "w.sock",
        # Used alone, without a router; what tickets are for is tested where they are.
        "require_tickets": "false",
        **settings,
    }
    command = [sys.executable, "-m", "services.worker"]
    for key, value in chosen.items():
        command += ["--set", f"{key}={value}"]
    return command


@contextlib.asynccontextmanager
async def worker_process(
    folder: Path, spec: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[WorkerProcess]:
    """Starts a worker and ends it afterwards; it may still be loading."""
    log = folder / "worker.log"
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            *worker_arguments(folder, spec, **settings),
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    async with asyncio.timeout(_WITHIN_S * patience()):
        line = await process.stdout.readline()
    assert line, f"the worker announced nothing: {log.read_text()}"
    worker = WorkerProcess(process, json.loads(line), log)
    try:
        yield worker
    finally:
        await worker.close()


def slots(counts: types_pb2.ClassCounts) -> int:
    """Both classes together."""
    return counts.interactive + counts.batch


def ticket(**fields: Any) -> bytes:
    """An unsigned ticket for request `r` at the worker of `worker_process`."""
    defaults = {"request_id": "r", "model": "toy", "instance_id": "toy-000001", "incarnation": 7}
    return sign(worker_pb2.Ticket(**(defaults | fields)), None)


def request(prompt: str = "Tell me about the sea.", **fields: Any) -> pb.GenerateRequest:
    """A GenerateRequest for the model `toy`; `sampling` may be a dict."""
    sampling = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **fields.pop("sampling", {})}
    fields = {"model": "toy", **fields}
    if not {"prompt_token_ids", "chat"} & fields.keys():
        fields["prompt"] = prompt
    return pb.GenerateRequest(sampling=pb.SamplingParams(**sampling), **fields)


async def read_all(call: Any) -> list[pb.OutputDelta]:
    """Every delta of a stream."""
    deltas: list[pb.OutputDelta] = []
    # Not `async for`: a test may have read the first message already, and the two styles do not mix.
    while (response := await call.read()) is not grpc.aio.EOF:
        deltas += response.deltas
    return deltas


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call, unary or streaming, ends with."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


def violated_fields(error: grpc.aio.AioRpcError) -> list[str]:
    """Fields that google.rpc.BadRequest names."""
    fields: list[str] = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    fields += [violation.field for violation in bad.field_violations]
    return fields
