"""The least that an ASGI server does to stream tokens: uvicorn and an application without a framework.

    python -m bench.sse_echo
It reads a request as `bench.http_load` sends it and streams events of the same size on the schedule that the
request names, from its own clock: no worker, no placement, no accounts. What a door costs beyond it is the
door's own.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import uvicorn
import uvloop

from chiron.service import announce

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_BEFORE = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"bench","system_fingerprint":"fp_0000000000","choices":[{"index":0,'
    b'"delta":{"content":"'
)
_AFTER = b'"},"logprobs":null,"finish_reason":null}]}\n\n'


async def application(_: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers any path; the server is started without lifespan events, so that all it is asked is HTTP."""
    raw, more = b"", True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    body = json.loads(raw)
    interval, merged, count = body["top_k"] / 1000, body["min_tokens"], body["max_tokens"]
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    loop = asyncio.get_running_loop()
    at = loop.time()
    for index in range(0, count - 1, merged):
        event = _BEFORE + b" word" * (merged if index else 1) + _AFTER
        await send({"type": "http.response.body", "body": event, "more_body": True})
        at += interval * merged
        await asyncio.sleep(at - loop.time())
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        application, http="httptools", log_level="warning", lifespan="off", access_log=False
    )
    announce("sse-echo", address=f"127.0.0.1:{listener.getsockname()[1]}")
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(_serve())
