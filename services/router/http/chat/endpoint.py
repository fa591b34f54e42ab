"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chiron.requests.tools import parses_calls
from services.router.http import names
from services.router.http.answering import head_of, json_response, name_request
from services.router.http.bodies import json_object
from services.router.http.chat.answer import whole
from services.router.http.chat.request import read_chat, to_generate
from services.router.http.chat.stream import ChatChunks
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
        exchange.fields = names.CHAT
        chat = read_chat(await json_object(request))
        message = to_generate(chat, promised(chat, exchange.headers))
        name_request(exchange, [message])
        head = head_of("chatcmpl", exchange, chat, message)
        if chat.streams:
            chunks = ChatChunks(
                head,
                choices=chat.n or 1,
                counts=chat.counts,
                logprobs=bool(chat.logprobs),
                parsed=parses_calls(message),
            )
            return EventStream(request, stream(exchange, [message], chunks))
        outputs = await collect(exchange, [message])
        return json_response(whole(outputs[0], head), came_to(outputs))

    return [Route("/v1/chat/completions", create, methods=["POST"])]
