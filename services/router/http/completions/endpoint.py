"""POST /v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from services.router.http import names
from services.router.http.answering import head_of, json_response, name_request
from services.router.http.bodies import json_object
from services.router.http.completions.answer import whole_of
from services.router.http.completions.request import read_completion, to_generates
from services.router.http.completions.stream import CompletionChunks
from services.router.http.door import HttpDoor
from services.router.http.exchange import exchange_of
from services.router.http.promises import promised
from services.router.http.running import came_to, collect, stream
from services.router.http.streaming import EventStream


def routes(door: HttpDoor) -> list[BaseRoute]:
    """The one route."""

    async def create(request: Request) -> Response:
        exchange = exchange_of(request)
        await exchange.enter()
        exchange.fields = names.COMPLETION
        completion = read_completion(await json_object(request))
        messages = to_generates(completion, promised(completion, exchange.headers))
        name_request(exchange, messages)
        head = head_of("cmpl", exchange, completion, messages[0])
        if completion.streams:
            chunks = CompletionChunks(
                head,
                requests=len(messages),
                choices=completion.n or 1,
                counts=completion.counts,
                logprobs=completion.logprobs is not None,
            )
            return EventStream(request, stream(exchange, messages, chunks))
        outputs = await collect(exchange, messages)
        return json_response(whole_of(outputs, head), came_to(outputs))

    return [Route("/v1/completions", create, methods=["POST"])]
