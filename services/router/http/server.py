"""Listens for HTTP in the router's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from chiron.auth.settings import TlsSettings
from chiron.rpc.servers import HOST_PORT, BindError
from services.router.http.connection import Connection
from services.router.http.handshakes import Handshakes, tls_context
from services.router.http.hosts import Hosts
from services.router.http.settings import HttpSettings

log = logging.getLogger(__name__)
_LOOK_S = 0.25
"""Time between two looks at the connections."""
_BACKLOG = 2048
_OTHER_FILES = 4096
"""What gRPC's callers, workers and the queue may have open."""
_STALL_SLACK = 1.5
"""A stream whose reader stalls is ended before its connection is."""


class HttpServer:
    """uvicorn's connections without uvicorn's process: signals, logs and the loop stay the router's."""

    def __init__(self, app: Any, settings: HttpSettings, *, stall_s: float) -> None:
        """Does not listen yet.

        Args:
            app: an ASGI application.
            settings: of the door.
            stall_s: a client that takes nothing for this long is given up, in seconds.
        """
        self.settings = settings
        self.hosts = Hosts(room_for(settings.connections), settings.host_share)
        self.loop = asyncio.get_running_loop()
        self.state = ServerState()
        self.stall_s = _STALL_SLACK * stall_s
        self.refused: Counter[str] = Counter()
        """What connections were ended for before they had asked for anything, by the error's code."""
        self.empty = asyncio.Event()
        """Set when the last connection has ended."""
        self.uvicorn = uvicorn.Config(
            app,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # Handed to call_later.
        )
        self.uvicorn.load()
        self._listener: asyncio.AbstractServer | Handshakes | None = None

    async def start(self, tls: TlsSettings) -> str:
        """Listens; returns the URL. Raises BindError, ConfigError."""
        listen = self.settings.listen
        parts = HOST_PORT.fullmatch(listen)
        if parts is None or int(parts[1]) > 65_535:
            raise BindError(f"cannot listen on {listen}: expected host:port")
        host = listen.rpartition(":")[0]
        context = tls_context(tls)
        self._tell_date()
        try:
            # One address even where a name has several: with port 0 each would have a port of its own.
            where = await self.loop.getaddrinfo(host.strip("[]"), int(parts[1]), type=socket.SOCK_STREAM)
            listener = socket.create_server(where[0][4][:2], family=where[0][0], backlog=_BACKLOG)
        except OSError as error:
            raise BindError(f"cannot listen on {listen}: is the port in use?") from error
        listener.setblocking(False)
        port = listener.getsockname()[1]
        if context is not None:
            self._listener = Handshakes(self, listener, context)
        else:
            self._listener = await self.loop.create_server(
                lambda: Connection(self), sock=listener, backlog=_BACKLOG
            )
        return f"{'https' if context else 'http'}://{host}:{port}"

    async def run(self) -> None:
        """Keeps connections to their limits until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._tell_date()
            now = self.loop.time()
            for connection in list(self.state.connections):
                if isinstance(connection, Connection):
                    connection.look(now)

    def drain(self) -> None:
        """Ends the connections on which nothing runs; new ones are still answered."""
        for connection in list(self.state.connections):
            if isinstance(connection, Connection):
                connection.drain()

    async def stop(self, grace_s: float) -> None:
        """Listens no more, and ends what is left after `grace_s` seconds."""
        if self._listener is not None:
            self._listener.close()
        self.drain()
        if self.state.connections:
            self.empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.empty.wait()
        for connection in list(self.state.connections):
            if isinstance(connection, Connection):
                connection.abort()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)

    def _tell_date(self) -> None:
        self.state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]


def room_for(connections: int) -> int:
    """How many connections this process has files for, beside those of its other work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = connections if soft == resource.RLIM_INFINITY else max(1, soft - _OTHER_FILES, soft // 2)
    if room < connections:
        log.warning("at most %d HTTP connections, for want of files (ulimit -n: %d)", room, soft)
    return min(room, connections)
