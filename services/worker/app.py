"""Puts a worker together and runs it until it is told to stop or its engine dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from chiron.internal.v1 import worker_pb2_grpc
from chiron.rpc.servers import Server
from chiron.service import announce
from services.worker.config import WorkerConfig
from services.worker.core import Worker
from services.worker.inference import SERVICE as INFERENCE
from services.worker.inference import InferenceServicer
from services.worker.model import read_spec
from services.worker.servicer import ControlServicer, NetworkServicer
from services.worker.state import READY

CONTROL = "chiron.internal.v1.WorkerService"
EXIT_ENGINE_DEAD = 3
_LAST_WORDS_S = 1.0
"""Time that agents and routers have to read why the engine died."""
_STOP_GRACE_S = 1.0

_log = logging.getLogger(__name__)


async def serve(config: WorkerConfig, stop: asyncio.Event) -> None:
    """Serves from the start, loads the engine meanwhile.

    On `stop`, drains for at most config.drain_timeout_s and returns. Raises ConfigError and BindError for a
    bad start, SystemExit(EXIT_ENGINE_DEAD) after the engine has died.
    """
    worker = Worker(config, read_spec(config.spec_file))
    network, control = Server([INFERENCE, CONTROL]), Server([CONTROL])
    network.grpc.add_generic_rpc_handlers((InferenceServicer(worker).handler(),))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(NetworkServicer(worker), network.grpc)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(ControlServicer(worker), control.grpc)
    host = config.advertise_host or config.listen.rpartition(":")[0]
    worker.address = f"{host}:{network.bind(config.listen)}"
    control.bind_unix(config.socket)
    await network.start()
    await control.start()
    announce("worker", instance_id=config.instance_id, address=worker.address, socket=str(config.socket))
    tasks = [
        asyncio.create_task(worker.load(), name="engine"),
        asyncio.create_task(worker.watch_readers(), name="stalled readers"),
        asyncio.create_task(_follow_health(worker, network, control), name="health"),
    ]
    try:
        await _until_over(worker, stop)
    finally:
        for task in tasks[:2]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await worker.close()
        await asyncio.gather(network.stop(_STOP_GRACE_S), control.stop(_STOP_GRACE_S), tasks[2])
    if worker.died.is_set():
        raise SystemExit(EXIT_ENGINE_DEAD)


async def _until_over(worker: Worker, stop: asyncio.Event) -> None:
    """Returns once the engine is dead and known to be, or once `stop` is set and the requests have ended."""
    waits = [asyncio.create_task(event.wait()) for event in (stop, worker.died)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if worker.died.is_set():
        await asyncio.sleep(_LAST_WORDS_S)
        return
    _log.info("draining %d requests", len(worker.live))
    cut = await worker.drain(worker.config.drain_timeout_s)
    if cut:
        _log.warning("%d requests were cut off after %g s", cut, worker.config.drain_timeout_s)


async def _follow_health(worker: Worker, *servers: Server) -> None:
    """Keeps the health services in step with the worker's state."""
    with worker.statistics_board.subscribe([]) as subscriber:
        while await subscriber.news(0.0):
            for server in servers:
                await server.set_serving(worker.state.value == READY)
