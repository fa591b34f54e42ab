"""A worker in this process, on a real port, so that the steps of its engine can be counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from chiron.rpc.servers import Server, open_channel
from chiron.v1 import cluster_pb2, inference_pb2_grpc
from services.worker.app import CONTROL
from services.worker.config import PreemptionSettings, WorkerConfig
from services.worker.core import Worker
from services.worker.engines.base import EngineOutput, EngineRequest
from services.worker.inference import SERVICE, InferenceServicer
from tests.support.wait import eventually


class WorkerHere:
    """A worker, a stub that calls it, and how many steps each request waited for its first token."""

    def __init__(self, worker: Worker, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        self.worker = worker
        self.inference = stub
        self.steps_to_first_token: dict[str, int] = {}
        """Request id → steps that the engine began from its submission to its first token."""
        assert worker.engine is not None
        self._generate = worker.engine.generate
        worker.engine.generate = self._counted  # type: ignore[method-assign]

    async def _counted(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        engine = self.worker.engine
        assert engine is not None
        before = engine.stats().steps
        async with contextlib.aclosing(self._generate(request)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                taken = engine.stats().steps - before
                self.steps_to_first_token.setdefault(request.request_id, taken)
                yield output


@contextlib.asynccontextmanager
async def worker_here(
    folder: Path, spec: dict[str, Any], *, within_s: float = 15.0, **preemption: Any
) -> AsyncIterator[WorkerHere]:
    """Starts a worker without tickets and ends it afterwards; `preemption` are its PreemptionSettings."""
    config = WorkerConfig(
        instance_id="here",
        incarnation=1,
        spec_file=folder / "spec",
        socket=folder / "socket",
        require_tickets=False,
        preemption=PreemptionSettings(**preemption),
    )
    worker = Worker(config, json_format.ParseDict(spec, cluster_pb2.ModelSpec()))
    server = Server([SERVICE, CONTROL])
    server.grpc.add_generic_rpc_handlers((InferenceServicer(worker).handler(),))
    port = server.bind("127.0.0.1:0")
    await server.start()
    loading = asyncio.create_task(worker.load())
    try:
        await eventually(lambda: worker.state.name != "loading", within_s=within_s)
        assert worker.state.name == "ready", worker.state.reason
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield WorkerHere(worker, inference_pb2_grpc.InferenceServiceStub(channel))
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await server.stop(None)
        await worker.close()
