"""TLS at the HTTP door: connections have their places before their handshakes, not after them.

An event loop's own server tells of a connection once its handshake is over. Until then nobody would count it,
and whoever opens connections and says nothing would have every file that the process may open.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from chiron.auth.settings import TlsSettings
from chiron.config import ConfigError
from services.router.http.connection import Connection
from services.router.http.errors import HttpError

if TYPE_CHECKING:
    from services.router.http.server import HttpServer

log = logging.getLogger(__name__)
FAILED = "tls_handshake"
"""Counts those that ended in their handshake, as a code of refused connections."""
_CLOSE_S = 2.0
_NO_FILES_S = 0.1
"""Pause where the process cannot open another file."""


class Handshakes:
    """Accepts the connections of one door."""

    def __init__(self, server: HttpServer, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Accepts from the event loop's next turn on; `listener` is closed by `close`."""
        self._server = server
        self._listener = listener
        self._context = context
        self._shaking: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="TLS connections")

    def close(self) -> None:
        """Accepts no more, and ends the handshakes that are under way."""
        for task in (self._accepting, *self._shaking):
            task.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                found, address = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(_NO_FILES_S)
                continue
            task = loop.create_task(self._shake(found, str(address[0])))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _shake(self, found: socket.socket, address: str) -> None:
        server = self._server
        try:
            leave = server.hosts.enter(address)
        except HttpError as error:
            # It could be told in TLS alone, which is what there is no room for.
            server.refused[error.code or ""] += 1
            found.close()
            return
        try:
            found.setblocking(False)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(server, leave),
                found,
                ssl=self._context,
                ssl_handshake_timeout=server.settings.header_s,
                ssl_shutdown_timeout=_CLOSE_S,
            )
        except BaseException as error:
            leave()
            if not isinstance(error, OSError):
                raise
            server.refused[FAILED] += 1
            log.debug("a TLS handshake with %s failed: %s", address, error)


def tls_context(tls: TlsSettings) -> ssl.SSLContext | None:
    """What the door shows, and whether it asks callers for a certificate of the same authority.

    Raises ConfigError.
    """
    if tls.ca is None or tls.cert is None or tls.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.mutual:
            context.load_verify_locations(tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[tls] {tls.cert}, {tls.key}, {tls.ca}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
