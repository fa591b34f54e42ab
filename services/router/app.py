"""Puts a router together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from chiron.rpc.controllers import Controllers
from chiron.rpc.errors import ChironError, Reason
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.telemetry.tracing import export_wanted
from services.router.config import RouterConfig
from services.router.controller_link import ControllerLink
from services.router.placer import Placer
from services.router.proxy import Proxy
from services.router.retries import Retries
from services.router.route import Lookaside
from services.router.servicer import SERVICE, InferenceServicer
from services.router.streams import Streams

log = logging.getLogger(__name__)


class Router:
    """One router: server, placement, link to the controller."""

    def __init__(self, config: RouterConfig, *, tracing: bool = False) -> None:
        self._config = config
        self._streams = Streams(config.reader_stall_s)
        self._placer = Placer(config, self._streams.abandon)
        self._retries = Retries(config.max_attempts, config.retry_share, config.retry_floor_per_s)
        self._servicer = InferenceServicer(
            self._placer,
            Proxy(self._retries, config.max_resumes, self._placer, self._streams),
            Lookaside(config.ticket_ttl_s, self._placer),
            tracing=tracing,
        )
        self._server = Server([SERVICE])
        self._server.grpc.add_generic_rpc_handlers((self._servicer.handler(),))
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Binds and serves; returns host:port. Health says SERVING once a table is there.

        Raises BindError.
        """
        host, _, _ = self._config.listen.rpartition(":")
        address = f"{host}:{self._server.bind(self._config.listen)}"
        await self._server.start()
        config = self._config
        controllers = Controllers(config.controller)
        link = ControllerLink(controllers, config.identity, address, config.report_interval_s, self._placer)
        self._tasks = [
            asyncio.create_task(link.run(), name="controller link"),
            asyncio.create_task(self._streams.watch_readers(), name="stalled readers"),
            asyncio.create_task(self._serve_from_first_table(), name="readiness"),
        ]
        return address

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
        self._servicer.refuse("this router is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout_s):
                await self._servicer.idle.wait()
        if not self._servicer.idle.is_set():
            log.warning("ending the requests that still run")
            self._placer.refuse_waiting(ChironError(Reason.RETRY_ELSEWHERE, "this router has shut down"))
            self._streams.end_all("this router has shut down")
        await self._server.stop(1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._placer.close()


async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
    """Runs a router until `stop` is set."""
    router = Router(config, tracing=export_wanted())
    address = await router.start()
    announce("router", address=address, router_id=config.identity)
    await router.run(stop)
