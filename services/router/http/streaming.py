"""Answers that come in parts, as server-sent events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chiron.rpc.errors import ChironError, Reason
from services.router.http.errors import told
from services.router.http.exchange import Exchange, exchange_of

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that gather an answer before they pass it on are told not to.
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"


class Events:
    """Takes the events of one answer. The first one begins it: until then it can be refused as a whole."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self.begun = False

    async def write(self, events: bytes) -> None:
        """Sends events, each `data: ...` with an empty line after it; waits while the client takes none."""
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await self._exchange.write(events)

    def put(self, events: bytes) -> bool:
        """The same without a wait; False: the answer has not begun, or the client takes none now."""
        return self.begun and self._exchange.put(events)

    async def end(self, last: bytes = b"") -> None:
        """Sends what is left, and ends the answer."""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


class EventStream(Response):
    """An answer that is written while it is made.

    What fails before the first event is answered as an error with its status; afterwards the error is the
    last event, `data: {"error": {...}}`, and no `[DONE]` follows.
    """

    def __init__(self, request: Request, run: Callable[[Events], Awaitable[None]]) -> None:
        """run: writes the events, and raises what goes wrong."""
        self._request = request
        self._run = run
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes the answer."""
        exchange = exchange_of(self._request)
        events = Events(exchange, send)
        try:
            await self._run(events)
            if not events.begun:
                await events.write(b"")
            await events.end(_DONE)
        except Exception as error:
            if not events.begun:
                raise
            exchange.error = error
            if isinstance(error, ChironError) and error.reason is Reason.READER_STALLED:
                exchange.connection.abort()
                return
            exchange.log_unexpected(error)
            await events.end(b"data: " + told(error, exchange.fields).body() + b"\n\n")
