"""One HTTP connection: uvicorn's, held to this door's limits, and ending what runs on it when it goes.

uvicorn bounds none of this by itself: neither the size nor the time of headers, nor how much a client sends
ahead or leaves untaken.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.router.http.caller import certificate_names
from services.router.http.chunk_sizes import ChunkSizes
from services.router.http.errors import HttpError, after
from services.router.http.heads import cause_of, fault_of

if TYPE_CHECKING:
    from services.router.http.server import HttpServer

log = logging.getLogger(__name__)
_QUIET = logging.getLogger(f"{__name__}.uvicorn")
"""uvicorn's own: what a client does wrong is told to it, and fills no log."""
_QUIET.setLevel(logging.ERROR)
_LINGER_S = 2.0
_LINGER_BYTES = 4 << 20
"""How long, and for how many bytes, a client that is still sending is listened to after it was refused: a
connection that is closed upon unread bytes takes the answer with it."""
_MOST_REFUSED = 1024
"""Connections for which there is no room and that are told so at once; others are just ended."""
_UNREAD_BYTES = 65_536
"""Of a body that an answered request no longer needs."""


def new_request_id() -> str:
    """Names one request."""
    return f"req-{uuid.uuid4().hex}"


class Connection(HttpToolsProtocol):
    """One of a server's connections."""

    def __init__(self, server: HttpServer, leave: Callable[[], None] | None = None) -> None:
        """A connection; `leave` gives back the place that it has, None: it has none yet."""
        super().__init__(server.uvicorn, server.state, {}, server.loop)
        self.logger = _QUIET
        self.url = b""
        self._server = server
        self._leave = leave
        self._limits = server.settings
        self._running: RequestResponseCycle | None = None
        self._task: asyncio.Task[None] | None = None
        self._due = math.inf
        """When what is awaited of the client has to be there, monotonic, in seconds."""
        self._head_bytes = 0
        self._in_head = False
        self._discarded = 0
        self._lingering = False
        self._refusal: HttpError | None = None
        """What is wrong with what came after requests that are still being answered."""
        self._unsent, self._unsent_since = 0, self.loop.time()
        self.subjects: tuple[bytes, ...] = ()
        """URI names in the client's certificate."""
        self.lost = False
        """Whether the client has gone, or has been shut out."""
        self.damaged = ""
        """Why the body of the request that is being answered cannot be read any further; empty: it can."""
        self.chunks = ChunkSizes()
        """Of the body that is on its way."""

    # What happens to it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        self.subjects = certificate_names(transport.get_extra_info("peercert"))
        self._due = self.loop.time() + self._limits.header_s
        if self._leave is None:
            self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it asked for is not wanted any more."""
        self.lost = True
        if self._leave is not None:
            self._leave()
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            if self._task is not None:
                self._task.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if not self.connections:
            self._server.empty.set()

    def _enter(self) -> None:
        peer = self.transport.get_extra_info("peername")
        try:
            self._leave = self._server.hosts.enter(str(peer[0]) if peer else "")
        except HttpError as error:
            if len(self.connections) > self._server.hosts.count + _MOST_REFUSED:
                self._server.refused[error.code or ""] += 1
                self.abort()
            else:
                self.refuse(error)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        if self._ends or self.damaged:
            self._discard(len(data))
            return
        self._head_bytes += len(data)
        super().data_received(data)
        self.chunks.parsed(data)
        if self.transport.is_closing() or self._ends:
            return
        if self.chunks.announced > self._limits.body_bytes:
            # Whoever reads the body looks whether that is too much.
            self.cycle.message_event.set()
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._refuse_head()
        elif not self.busy and math.isinf(self._due):
            # It has sent what begins no request, which ended the wait for one.
            self._due = self.loop.time() + self._limits.header_s

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.chunks.end()
        self._in_head = True
        self._due = self.loop.time() + self._limits.header_s

    def on_headers_complete(self) -> None:
        """A request's headers are there."""
        if self._ends:
            return
        self._in_head, self._due = False, math.inf
        self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_bytes > self._limits.header_bytes:
            self._refuse_head()
            return
        version = self.parser.get_http_version()
        if (fault := fault_of(version, self.headers)) is not None:
            self.refuse(HttpError(400, fault, code="bad_request"))
            return
        # RFC 9110, section 10.1.1: a client of HTTP/1.0 knows no interim answer, whatever it says.
        self.expect_100_continue = self.expect_100_continue and version != "1.0"
        if len(self.pipeline) >= self._limits.pipelined and self.busy:
            text = f"more than {self._limits.pipelined} requests were sent ahead on this connection"
            self.refuse(HttpError(503, text, type="server_error", code="overloaded", headers=after(1.0)))
            return
        cast(dict[str, Any], self.scope)["chiron.connection"] = self
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of a body begins."""
        self.chunks.begin()

    def on_chunk_complete(self) -> None:
        """A chunk is there as a whole."""
        self.chunks.end()

    def on_body(self, body: bytes) -> None:
        """A part of a body is there."""
        self.chunks.take(len(body))
        if self._ends or self.cycle is None:
            return
        if self.cycle.response_complete:
            self._discard(len(body))
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there as a whole."""
        self._head_bytes = 0
        if self._ends or self.cycle is None:
            return
        # The scope is still this request's: another one begins with a scope of its own.
        cast(dict[str, Any], self.scope)["chiron.complete"] = self.loop.time()
        super().on_message_complete()
        if not self.pipeline:
            # Nobody reads a body that is there, and a client that leaves must be noticed.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """A request has been answered."""
        super().on_response_complete()
        if self._refusal is not None and not self.busy:
            refusal, self._refusal = self._refusal, None
            self.refuse(refusal)
        elif self._in_head:
            self._due = self.loop.time() + self._limits.header_s

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))
        self._task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._task)

    def _unsupported_upgrade_warning(self) -> None:
        """Another protocol is asked for: the request is answered in this one."""

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP; the parser's error, which says why, is being handled."""
        cause = cause_of(sys.exception(), self.url)
        running = self._running
        if running is not None and running is self.cycle and self.busy and running.more_body:
            # It is in the body of what is being answered: whoever reads that says so.
            self.damaged, running.keep_alive = cause, False
            running.message_event.set()
            return
        self.refuse(HttpError(400, f"this is no HTTP request that can be read: {cause}", code="bad_request"))

    # What it is told to do.

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._running is not None and not self._running.response_complete

    @property
    def _ends(self) -> bool:
        """Whether nothing more is read: the connection ends with what is on its way."""
        return self._lingering or self._refusal is not None

    @property
    def unread(self) -> bool:
        """Whether the request that is being answered has not come as a whole."""
        return self._running is not None and self._running.more_body

    def refuse(self, error: HttpError) -> None:
        """Tells the client what is wrong with what it sends, and ends the connection.

        What it has asked for before is answered first.
        """
        if self.busy:
            if self.cycle.more_body:
                # The rest of that request is what cannot be read.
                self.abort()
            self._refusal = self._refusal or error
            return
        self._server.refused[error.code or ""] += 1
        headers = {"content-type": "application/json", "x-request-id": new_request_id(), **error.headers}
        self.refuse_with(error.status, headers, error.body())

    def refuse_with(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answers a request that has not come as a whole, and ends the connection."""
        if self._lingering or self.transport.is_closing():
            return
        if self._running is not None:
            self._running.response_started = self._running.response_complete = True
        lines = {**headers, "content-length": str(len(body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.transport.write(STATUS_LINE[status] + head.encode("latin-1") + b"\r\n" + body)
        self._lingering, self._due = True, self.loop.time() + _LINGER_S
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def end_body_by_closing(self) -> None:
        """The answer that begins has neither a length nor chunks: it ends with the connection."""
        if self._running is not None:
            self._running.chunked_encoding = self._running.keep_alive = False

    def expect_unframed(self, size: int) -> None:
        """So many bytes of such an answer's body come next."""
        if self._running is not None:
            self._running.expected_content_length = size

    def abort(self) -> None:
        """Ends the connection at once, whatever is on its way."""
        self.lost = True
        if self._running is not None:
            self._running.disconnected = True
        self.transport.abort()

    def look(self, now: float) -> None:
        """Ends the connection if its client has not done in time what it has to; called now and then."""
        if now > self._due and not self.busy:
            if self._in_head and not self._lingering:
                text = f"the request's headers were not there within {self._limits.header_s:g} s"
                self.refuse(HttpError(408, text, code="request_timeout"))
            else:
                self.transport.abort()
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._unsent_since = now
        elif now - self._unsent_since > self._server.stall_s:
            log.warning("ending a connection whose client takes nothing")
            self.abort()
        self._unsent = unsent

    def drain(self) -> None:
        """Ends the connection once nothing runs on it."""
        if not self.busy and not self._in_head and not self._lingering:
            self.transport.close()

    def _refuse_head(self) -> None:
        text = f"the request's headers are larger than {self._limits.header_bytes} bytes"
        self.refuse(HttpError(431, text, code="headers_too_large"))

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > (_LINGER_BYTES if self._ends or self.damaged else _UNREAD_BYTES):
            self.transport.abort()
