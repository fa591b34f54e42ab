"""The HTTP door's span is a child of the caller's, and the caller's context goes on to the worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tests.support.http_door import ANY, get, post
from tests.support.http_generating import WHOLE, add_generating
from tests.support.otlp import otlp_receiver
from tests.support.wait import eventually

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


async def test_the_span_of_a_request_says_what_became_of_it(start_worker, controller) -> None:
    controller.add("m", [await start_worker("a")])
    async with otlp_receiver() as receiver:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router", "--set", "listen=127.0.0.1:0"),
            *("--set", f"controller={controller.address}", "--set", "http.listen=127.0.0.1:0"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint},
        )
        url = json.loads(await process.stdout.readline())["http"]

        async def ready() -> bool:
            return (await get(url, "/health")).status == 200

        await eventually(ready)
        assert (await get(url, "/v1/models/none", traceparent=TRACEPARENT)).status == 404
        # Spans that are still held go out when the process ends.
        process.terminate()
        assert await process.wait() == 0
        await process.communicate()
        await asyncio.wait_for(receiver.received(1), 10)
    (span,) = receiver.spans
    assert (span.name, span.service) == ("GET /v1/models/{name:path}", "chiron-router")
    assert (span.trace_id, span.parent_id) == (TRACE, CALLER)
    assert span.attributes["http.request.method"] == "GET"
    assert span.attributes["http.route"] == "/v1/models/{name:path}"
    assert span.attributes["http.response.status_code"] == 404
    assert "rpc.system" not in span.attributes


async def test_without_tracing_the_callers_context_is_passed_on(start_worker, start_router) -> None:
    worker = await start_worker("a")
    url = add_generating((await start_router(worker, http=ANY)).router)
    asked = {"model": "m", "prompt": "x"}
    asking = asyncio.create_task(post(url, WHOLE, asked, traceparent=TRACEPARENT, cookie="no"))
    call = await worker.calls.get()
    call.finish()
    await asking
    assert call.metadata["traceparent"] == TRACEPARENT
    assert "cookie" not in call.metadata
