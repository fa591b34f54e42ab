"""An endpoint that generates what it is asked in Chiron's own words, to try what all of the door's share."""

from __future__ import annotations

from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from chiron.v1 import inference_pb2 as pb
from services.router.answer import Answer
from services.router.app import Router
from services.router.http.exchange import exchange_of
from services.router.http.streaming import Events, EventStream

WHOLE, STREAM = "/test/whole", "/test/stream"


class _Lines:
    """The text of each message as an event."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def write(self, message: bytes, /) -> None:
        text = "".join(delta.text for delta in pb.GenerateResponse.FromString(message).deltas)
        await self._events.write(f"data: {text}\n\n".encode())

    def time_remaining(self) -> float | None:
        return None


async def whole(request: Request) -> Response:
    """Takes a GenerateRequest as JSON; answers with its text."""
    call = await exchange_of(request).enter()
    message = json_format.Parse(await request.body(), pb.GenerateRequest())
    answer = Answer(1)
    await call.generate(message.SerializeToString(), message, answer)
    output = answer.output(message.model)
    exchange_of(request).usage = output.usage
    return PlainTextResponse(output.choices[0].text)


async def stream(request: Request) -> Response:
    """The same, in parts."""
    call = await exchange_of(request).enter()
    message = json_format.Parse(await request.body(), pb.GenerateRequest())

    async def run(events: Events) -> None:
        await call.generate(message.SerializeToString(), message, _Lines(events))

    return EventStream(request, run)


def add_generating(router: Router) -> str:
    """Adds both to a router that runs; returns its URL."""
    assert router._http is not None
    app = router._http.uvicorn.loaded_app._app
    app.router.routes[:0] = [Route(WHOLE, whole, methods=["POST"]), Route(STREAM, stream, methods=["POST"])]
    return router.http_url
