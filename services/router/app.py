"""Puts a router together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time

from chiron.auth.keys import KeyRingError
from chiron.auth.settings import off_notice
from chiron.batch.contract import BatchQueueError, RefusedError, UnavailableError
from chiron.config import ConfigError
from chiron.internal.v1 import router_pb2_grpc
from chiron.rpc.controllers import Controllers
from chiron.rpc.errors import ChironError, Reason
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.telemetry.tracing import export_wanted
from chiron.v1 import batch_pb2_grpc
from services.router.batch.part import BatchPart
from services.router.batch.servicer import SERVICE as BATCH_SERVICE
from services.router.batch.servicer import BatchDoor, BatchServicer
from services.router.config import RouterConfig
from services.router.controller_link import ControllerLink
from services.router.http.app import served
from services.router.http.batches.making import Maker
from services.router.http.batches.work import SourcedBatches
from services.router.http.door import HttpDoor
from services.router.http.metrics import Metrics
from services.router.http.server import HttpServer
from services.router.placer import Placer
from services.router.proxy import Proxy
from services.router.retries import Retries
from services.router.route import Lookaside
from services.router.servicer import SERVICE, InferenceServicer
from services.router.serving import Serving
from services.router.state_servicer import SERVICE as STATE_SERVICE
from services.router.state_servicer import StateServicer
from services.router.streams import Streams
from services.router.table_file import TableFileError, TableKeeper, read_table

log = logging.getLogger(__name__)
_REACH_AGAIN_S = 1.0
_LAST_LINES_S = 5.0
"""How long the last lines of a recording may take to be written, in seconds."""


class Router:
    """One router: server, placement, link to the controller."""

    def __init__(self, config: RouterConfig, *, tracing: bool = False) -> None:
        self._config = config
        self._tracing = tracing
        self._streams = Streams(config.reader_stall_s)
        self._placer = Placer(config, self._streams.abandon)
        self._retries = Retries(config.max_attempts, config.retry_share, config.retry_floor_per_s)
        self._serving = Serving(
            self._placer,
            Proxy(self._retries, config.max_resumes, self._placer, self._streams),
            Lookaside(config.ticket_ttl_s, self._placer),
            tracing=tracing,
        )
        self._batches = BatchServicer(self._placer.access)
        self._server = Server([SERVICE, BATCH_SERVICE, STATE_SERVICE])
        servicer = InferenceServicer(self._serving, self._placer.door)
        self._server.grpc.add_generic_rpc_handlers((servicer.handler(),))
        batch_pb2_grpc.add_BatchServiceServicer_to_server(self._batches, self._server.grpc)
        state = StateServicer(
            config.identity,
            self._placer,
            self._serving,
            self._streams,
            self._retries,
            lambda: self._batch.runner if self._batch else None,
        )
        router_pb2_grpc.add_RouterServiceServicer_to_server(state, self._server.grpc)
        self._http: HttpServer | None = None
        if config.http.listen:
            metrics = Metrics(self._placer, self._serving)
            door = HttpDoor(config.http, self._serving, self._placer, self._batches, metrics)
            server = self._http = HttpServer(served(door), config.http, stall_s=config.reader_stall_s)
            metrics.connections = lambda: (len(server.state.connections), server.refused)
        self.http_url = ""
        """Where the HTTP door is, once it is open; empty: there is none."""
        self._keeper: TableKeeper | None = None
        self._batch: BatchPart | None = None
        self._batch_task: asyncio.Task[None] | None = None
        self._sourced: asyncio.Task[None] | None = None
        self._recording: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Binds and serves; returns host:port. Health says SERVING once a table is there.

        Raises BindError, ConfigError.
        """
        await self._restore()
        await self._begin_batch_work()
        host, _, _ = self._config.listen.rpartition(":")
        address = f"{host}:{self._server.bind(self._config.listen)}"
        config = self._config
        if self._http is not None:
            self.http_url = await self._http.start(config.tls)
        await self._server.start()
        if notice := off_notice(config.listen, config.auth):
            log.warning("%s", notice)
        controllers = Controllers(config.controller)
        link = ControllerLink(controllers, config.identity, address, config.report_interval_s, self._placer)
        if self._placer.book is not None:
            self._recording = asyncio.create_task(self._placer.book.run(), name="recording")
        self._tasks = [
            asyncio.create_task(link.run(), name="controller link"),
            asyncio.create_task(self._streams.watch_readers(), name="stalled readers"),
            *([self._batch_task] if self._batch_task else []),
            *([asyncio.create_task(self._http.run(), name="HTTP door")] if self._http else []),
            *([self._recording] if self._recording else []),
            *([asyncio.create_task(self._keeper.run(), name="table on disk")] if self._keeper else []),
            asyncio.create_task(self._serve_from_first_table(), name="readiness"),
        ]
        return address

    async def _begin_batch_work(self) -> None:
        """Opens the batch queue. One that cannot be reached is waited for: requests are served without it."""
        if not self._config.batch.store:
            return
        try:
            await self._open_batch_queue()
        except RefusedError as error:
            raise ConfigError(f"batch.store: {error}") from error
        except UnavailableError as error:
            log.warning("no batches until their queue can be reached: %s", error)
            self._batches.unreached = str(error)
        self._batch_task = asyncio.create_task(self._work_on_batches(), name="batch work")

    async def _work_on_batches(self) -> None:
        while self._batch is None:
            await asyncio.sleep(_REACH_AGAIN_S)
            try:
                await self._open_batch_queue()
                log.warning("the batch queue can be reached")
            except BatchQueueError as error:
                if str(error) != self._batches.unreached:
                    log.warning("no batches until their queue can be used: %s", error)
                self._batches.unreached = str(error)
        assert self._sourced is not None
        await asyncio.gather(self._batch.task, self._sourced)

    async def _open_batch_queue(self) -> None:
        config = self._config
        self._batch = await BatchPart.open(
            config.batch,
            config.identity,
            self._placer,
            self._retries,
            self._streams,
            max_resumes=config.max_resumes,
            tracing=self._tracing,
        )
        queue, runner = self._batch.queue, self._batch.runner
        sourced = SourcedBatches(
            queue,
            Maker(queue, config.batch.limits, self._placer.model),
            self._placer.access.batch_owner,
            self._placer.has_table,
            accepted=runner.accepted,
        )
        self._sourced = asyncio.create_task(sourced.run(), name="batches of files")
        self._batches.open(
            BatchDoor(
                queue,
                config.batch.limits,
                self._placer.model,
                runner.estimates.describe,
                self._placer.has_table.is_set,
                runner.accepted,
                sourced.made,
                stall_s=config.reader_stall_s,
            )
        )

    async def _restore(self) -> None:
        """Takes up the table on disk, if there is one; what is wrong with the file is one warning."""
        path = self._config.table_file
        if path is None:
            return
        try:
            stored = await asyncio.to_thread(read_table, path)
            if stored is not None:
                age_s = max(0.0, time.time() - stored.written_unix_ms / 1e3)
                self._placer.restore(stored, age_s)
                log.warning(
                    "serving from %s until a controller is heard: term %d, epoch %d, %d models, "
                    "%d instances, written %.0f s ago",
                    path,
                    stored.table.term,
                    stored.table.epoch,
                    len(stored.table.models),
                    len(stored.table.instances),
                    age_s,
                )
        except (TableFileError, KeyRingError) as error:
            log.warning("starting without a routing table: %s", error)
        self._keeper = TableKeeper(path, self._placer.stored)
        self._placer.on_table = self._keeper.changed

    async def _serve_from_first_table(self) -> None:
        await self._placer.has_table.wait()
        await self._server.set_serving(True)
        await asyncio.Event().wait()

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set. Raises what broke a task that should run for as long as the router."""
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([stopped, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        await self.stop()
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Refuses new calls, lets running ones finish for the drain timeout, then ends them."""
        self._tasks[-1].cancel()
        await self._server.set_serving(False)
        self._serving.refuse("this router is shutting down")
        if self._http is not None:
            self._http.drain()
        await self._batches.close()
        await asyncio.gather(self._drain(), self._stop_batch_work())
        if not self._serving.under_way.idle.is_set():
            log.warning("ending the requests that still run")
            self._placer.refuse_waiting(ChironError(Reason.RETRY_ELSEWHERE, "this router has shut down"))
            self._streams.end_all("this router has shut down")
        await asyncio.gather(self._server.stop(1.0), self._stop_http(1.0))
        await self._end_recording()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._placer.close()
        if self._batch is not None:
            await self._batch.close()

    async def _stop_http(self, grace_s: float) -> None:
        if self._http is not None:
            await self._http.stop(grace_s)

    async def _end_recording(self) -> None:
        if self._recording is not None and self._placer.book is not None:
            self._placer.book.close()
            # A disk that does not answer keeps no router from its end.
            await asyncio.wait((self._recording,), timeout=_LAST_LINES_S)

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout_s):
                await self._serving.under_way.idle.wait()

    async def _stop_batch_work(self) -> None:
        if self._batch is None and self._batch_task is not None:
            self._batch_task.cancel()
            await asyncio.gather(self._batch_task, return_exceptions=True)
        if self._sourced is not None:
            # What it leaves undone another router goes on with, or this one when it is back.
            self._sourced.cancel()
            await asyncio.gather(self._sourced, return_exceptions=True)
        if self._batch is not None:
            await self._batch.stop(self._config.drain_timeout_s)


async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
    """Runs a router until `stop` is set."""
    router = Router(config, tracing=export_wanted())
    address = await router.start()
    # What is imported stays: looking through it again and again would hold up every stream.
    gc.collect()
    gc.freeze()
    http = {"http": router.http_url} if router.http_url else {}
    announce("router", address=address, router_id=config.identity, **http)
    await router.run(stop)
