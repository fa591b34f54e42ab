"""A worker without an engine, for what a real one does only by misfortune.

The model's engine_args say what happens: `crash` (text: printed before exit status 3), `fail_load` (text),
`load_time_s`, `refuse_limits`, `drain_time_s`, `ignore_sigterm`, `engine_core` (a child that outlives it and
ignores SIGTERM), `sleep_time_s`, `wake_time_s`, `crash_on_wake`, and `diary` (a file to which it adds a line
when it begins to own its GPU and when it has left it: time, what, instance). Takes the arguments of
`services.worker`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.servers import Server
from chiron.v1 import cluster_pb2, types_pb2


class ScriptedWorker(worker_pb2_grpc.WorkerServiceServicer):
    """The control socket of one scripted worker."""

    def __init__(self, settings: dict[str, str], arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._under_way: asyncio.Task[None] | None = None
        self._now = worker_pb2.WatchStatisticsResponse(
            instance_id=settings["instance_id"],
            incarnation=int(settings["incarnation"]),
            state=types_pb2.INSTANCE_STATE_LOADING,
            role=types_pb2.Role.Value(f"ROLE_{settings['role'].upper()}"),
            address=settings["listen"],
            load=cluster_pb2.InstanceLoad(batch_size=8, step_token_budget=512),
        )

    def become(self, state: types_pb2.InstanceState.ValueType, reason: str = "") -> None:
        self._now.state, self._now.reason = state, reason
        self._changed.set()

    async def WatchStatistics(
        self, request: worker_pb2.WatchStatisticsRequest, context: object
    ) -> AsyncIterator[worker_pb2.WatchStatisticsResponse]:
        while True:
            self._changed.clear()
            yield self._now
            await asyncio.wait({asyncio.ensure_future(self._changed.wait())}, timeout=0.1)

    async def SetLimits(
        self,
        request: worker_pb2.SetLimitsRequest,
        context: grpc.aio.ServicerContext[worker_pb2.SetLimitsRequest, worker_pb2.SetLimitsResponse],
    ) -> worker_pb2.SetLimitsResponse:
        if self._arguments.get("refuse_limits"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "batch_size: above the ceiling")
        load = self._now.load
        load.batch_size = request.batch_size or load.batch_size
        load.step_token_budget = request.step_token_budget or load.step_token_budget
        return worker_pb2.SetLimitsResponse(
            batch_size=load.batch_size, step_token_budget=load.step_token_budget
        )

    async def SetWorkerRole(
        self, request: worker_pb2.SetWorkerRoleRequest, context: object
    ) -> worker_pb2.SetWorkerRoleResponse:
        self._now.role = request.role
        self._changed.set()
        return worker_pb2.SetWorkerRoleResponse()

    async def SetTicketKeys(
        self, request: worker_pb2.SetTicketKeysRequest, context: object
    ) -> worker_pb2.SetTicketKeysResponse:
        return worker_pb2.SetTicketKeysResponse()

    async def Drain(self, request: worker_pb2.DrainRequest, context: object) -> worker_pb2.DrainResponse:
        self.become(types_pb2.INSTANCE_STATE_DRAINING)
        wanted = float(self._arguments.get("drain_time_s", 0))
        await asyncio.sleep(min(wanted, request.timeout_s))
        return worker_pb2.DrainResponse(aborted=1 if wanted > request.timeout_s else 0)

    async def Sleep(self, request: worker_pb2.SleepRequest, context: object) -> worker_pb2.SleepResponse:
        await asyncio.shield(self._one_after_the_other(self._fall_asleep()))
        return worker_pb2.SleepResponse()

    async def Wake(self, request: worker_pb2.WakeRequest, context: object) -> worker_pb2.WakeResponse:
        await asyncio.shield(self._one_after_the_other(self._wake_up()))
        return worker_pb2.WakeResponse()

    def note(self, what: str) -> None:
        """Adds to the diary that it owns its GPU from now on, or that it has left it."""
        if diary := self._arguments.get("diary"):
            with Path(diary).open("a") as file:
                file.write(f"{time.monotonic()} {what} {self._now.instance_id}\n")

    def _one_after_the_other(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def turn() -> None:
            async with self._turn:
                await work

        self._under_way = asyncio.create_task(turn())
        return self._under_way

    async def _fall_asleep(self) -> None:
        if self._now.state == types_pb2.INSTANCE_STATE_SLEEPING:
            return
        self.become(types_pb2.INSTANCE_STATE_DRAINING)
        await asyncio.sleep(float(self._arguments.get("sleep_time_s", 0)))
        self.note("leaves")
        self.become(types_pb2.INSTANCE_STATE_SLEEPING)

    async def _wake_up(self) -> None:
        if self._now.state == types_pb2.INSTANCE_STATE_READY:
            return
        self.note("owns")
        self.become(types_pb2.INSTANCE_STATE_LOADING)
        if "crash_on_wake" in self._arguments:
            print(self._arguments["crash_on_wake"], file=sys.stderr, flush=True)
            os._exit(3)
        await asyncio.sleep(float(self._arguments.get("wake_time_s", 0)))
        self.become(types_pb2.INSTANCE_STATE_READY)


async def serve(settings: dict[str, str], arguments: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, (lambda: None) if arguments.get("ignore_sigterm") else stop.set
    )
    worker = ScriptedWorker(settings, arguments)
    worker.note("owns")
    server = Server(["chiron.internal.v1.WorkerService"])
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server.grpc)
    server.bind_unix(Path(settings["socket"]))
    await server.start()
    await asyncio.sleep(float(arguments.get("load_time_s", 0)))
    if "fail_load" in arguments:
        worker.become(types_pb2.INSTANCE_STATE_FAILED, str(arguments["fail_load"]))
    else:
        worker.become(types_pb2.INSTANCE_STATE_READY)
    await stop.wait()
    await server.stop(0)


def main() -> None:
    settings = dict(item.split("=", 1) for item in sys.argv if "=" in item)
    spec = json_format.Parse(Path(settings["spec_file"]).read_text(), cluster_pb2.ModelSpec())
    arguments = json_format.MessageToDict(spec.engine_args)
    if "crash" in arguments:
        print(arguments["crash"], file=sys.stderr)
        sys.exit(3)
    if arguments.get("engine_core"):
        subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 600"], process_group=0)
    asyncio.run(serve(settings, arguments))


if __name__ == "__main__":
    main()
