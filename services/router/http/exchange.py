"""One HTTP request on its way through the door: its name, its limits, and what is said of it at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chiron.rpc.errors import ChironError
from chiron.v1 import inference_pb2
from services.router.http.caller import HttpCaller
from services.router.http.connection import Connection, new_request_id
from services.router.http.door import HttpDoor
from services.router.http.errors import HttpError, told
from services.router.proxy import WorkerStatusError
from services.router.serving import Call

log = logging.getLogger(__name__)


class Exchange:
    """A request and its answer."""

    def __init__(self, door: HttpDoor, scope: Scope, receive: Receive, send: Send) -> None:
        self._door = door
        self._receive, self._send = receive, send
        self._time = door.serving.time
        self.scope = scope
        self.arrived = self._time()
        """Monotonic, in seconds: once its body has been read, when that was there as a whole. The time that a
        client takes to send it is no part of what is promised."""
        self.request_id = new_request_id()
        """Names it in the answer's `x-request-id`, and at the worker."""
        connection: Connection = scope["chiron.connection"]
        self.connection = connection
        self.caller = HttpCaller.of(scope["headers"], scope["client"], connection.subjects)
        self.body_bytes = door.settings.body_bytes
        """Largest body that it may have; an endpoint that takes larger ones says so before it reads."""
        self.fields: Mapping[str, str] = {}
        """What fields of Chiron's API are called here; see `errors.of_chiron`."""
        self.call: Call | None = None
        """Once the caller has been let in."""
        self.usage: inference_pb2.Usage | None = None
        """Of an answer that is whole: whoever answers sets it, and it is counted."""
        self.error: BaseException | None = None
        """Why it was refused, or how it failed."""
        self.status = 0
        """Of the answer; 0: none has begun."""
        self._received = 0
        self._whole = False
        self._waited_s = 0.0
        self._held: Message | None = None
        self._unframed = False
        """Whether the answer's body ends with the connection."""

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers, their names in lower case; of one that is there twice, the first."""
        return {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(self.scope["headers"])
        }

    @property
    def endpoint(self) -> str:
        """The route that it takes; `other` where there is none."""
        return getattr(self.scope.get("route"), "path", "other")

    async def enter(self) -> Call:
        """Lets the caller in, before the body is read.

        Raises:
            ChironError: it is turned away, or this router takes nothing now, or nobody knows who it is.
        """
        if self.call is None:
            name = f"{self.scope['method']} {self.endpoint}"
            self.call = await self._door.enter(self.caller, name, self.arrived)
        return self.call

    # ASGI.

    async def receive(self) -> Message:
        """A part of the body, within its limits.

        Raises:
            HttpError: it is too large, or damaged, or comes too slowly.
            CancelledError: it ends early, because its client has gone.
        """
        if self._whole:
            return await self._receive()
        if not self._received:
            self._check_length()
        message = await (self._wait() if self.connection.unread else self._receive())
        if self.connection.damaged:
            text = f"the request's body is damaged: {self.connection.damaged}"
            raise HttpError(400, text, code="bad_request")
        if self.connection.unread and self.connection.chunks.announced > self.body_bytes:
            raise self._too_large(f"has a chunk of {self.connection.chunks.announced} bytes, and is")
        if message["type"] == "http.request":
            self._received += len(message["body"])
            self._whole = not message["more_body"]
            if self._received > self.body_bytes:
                raise self._too_large()
            if self._whole:
                self._complete()
        else:
            raise asyncio.CancelledError
        return message

    def _complete(self) -> None:
        # One that waited behind another on its connection came when its turn did.
        self.arrived = max(self.arrived, self.scope["chiron.complete"])
        if self.call is not None:
            self.call.arrived = self.arrived

    async def _wait(self) -> Message:
        limits = self._door.settings
        left_s = limits.body_s + self._received / limits.body_bytes_per_s - self._waited_s
        began = self._time()
        try:
            async with asyncio.timeout(left_s):
                return await self._receive()
        except TimeoutError:
            text = f"the request's body came too slowly: {self._received} bytes so far"
            raise HttpError(408, text, code="request_timeout") from None
        finally:
            self._waited_s += self._time() - began

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers()]
            if self.status >= 400 and self.connection.unread:
                self._held = message
                return
            # A client of HTTP/1.0 knows no chunks (RFC 9112, section 6.1).
            self._unframed = self.scope["http_version"] != "1.1" and not any(
                name == b"content-length" for name, _ in message["headers"]
            )
            if self._unframed:
                self.connection.end_body_by_closing()
        elif self._held is not None:
            held = {name.decode(): value.decode("latin-1") for name, value in self._held["headers"]}
            self.connection.refuse_with(self.status, held, message["body"])
            return
        elif self._unframed:
            self.connection.expect_unframed(len(message["body"]))
        await self._send(message)

    async def write(self, part: bytes) -> None:
        """A part of an answer that has begun and comes in chunks; waits while the client takes nothing."""
        if not self.put(part):
            await self.connection.flow.drain()
            self._put(part)

    def put(self, part: bytes) -> bool:
        """The same without a wait; False: the client takes nothing now, and the part was not sent.

        It passes all layers by: this is what is done for each token.
        """
        if self.connection.flow.write_paused:
            return False
        self._put(part)
        return True

    def _put(self, part: bytes) -> None:
        connection = self.connection
        if part and not connection.lost:
            framed = part if self._unframed else b"%x\r\n%b\r\n" % (len(part), part)
            connection.transport.write(framed)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        passed_ms = round(1000 * (self._time() - self.arrived))
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", str(passed_ms).encode()),
        ]
        if self._door.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _check_length(self) -> None:
        for name, value in self.scope["headers"]:
            if name == b"content-length" and int(value) > self.body_bytes:
                raise self._too_large()

    def _too_large(self, how: str = "is") -> HttpError:
        text = f"the request's body {how} larger than {self.body_bytes} bytes"
        return HttpError(413, text, code="request_too_large")

    # How it ends.

    def log_unexpected(self, error: BaseException) -> None:
        """Writes down a failure that is a defect of this server."""
        if not isinstance(error, HttpError | ChironError | WorkerStatusError):
            log.error("%s failed", self.request_id, exc_info=error)

    def gone(self) -> None:
        """Its client has gone."""
        if self.call is not None:
            self._door.placer.door.cancelled(self.caller, self.arrived)

    def end(self) -> None:
        """It is over."""
        error, call = self.error, self.call
        code = None
        if isinstance(error, Exception):
            code = "unknown_url" if isinstance(error, HTTPException) else told(error, {}).code or "error"
        self._door.metrics.ended(
            self.endpoint,
            call.request if call is not None else None,
            self.status,
            self._time() - self.arrived,
            code=code,
            ttft_ms=call.trace.ttft_ms if call is not None else None,
            usage=self.usage,
        )
        if call is not None:
            call.trace.http(self.scope["method"], self.endpoint, self.status)
            call.__exit__(type(error) if error is not None else None, error, None)


class Exchanges:
    """The outermost layer of the application: makes an exchange of each request."""

    def __init__(self, app: ASGIApp, door: HttpDoor) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        exchange = Exchange(self._door, scope, receive, send)
        scope["chiron.exchange"] = exchange
        with self._door.serving.under_way:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except asyncio.CancelledError as error:
                exchange.error = error
                if not exchange.connection.lost:
                    raise
                exchange.gone()
            except Exception as error:
                exchange.error = error
                exchange.log_unexpected(error)
                if exchange.connection.busy:
                    # Its answer has begun and cannot be ended in order: the client must not take it as whole.
                    exchange.connection.abort()
            finally:
                exchange.end()


def exchange_of(request: Request) -> Exchange:
    """The exchange to which a request belongs."""
    found: Any = request.scope["chiron.exchange"]
    assert isinstance(found, Exchange)
    return found
