"""The time that a client takes to send its body is no part of what its request is promised."""

from __future__ import annotations

import asyncio
import json

from chiron.v1 import inference_pb2 as pb
from tests.support.http_door import ANY, RawConnection

UPLOAD_S = 0.5


async def test_a_slow_body_is_no_time_to_first_token(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    body = json.dumps({"model": "m", "prompt": "Hi"}).encode()
    connection = await RawConnection.open(router.router.http_url)
    connection.send(
        "POST /v1/completions HTTP/1.1",
        "host: door",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "x-chiron-ttft-ms: 60000",
        body=body[:5],
    )
    await connection.writer.drain()
    await asyncio.sleep(UPLOAD_S)
    time = asyncio.get_running_loop().time
    sent = time()
    connection.writer.write(body[5:])
    call = await worker.calls.get()
    assert 0 <= call.request.elapsed_ms <= 1000 * (time() - sent)
    usage = pb.Usage(prompt_tokens=1, completion_tokens=1)
    delta = pb.OutputDelta(token_ids=[1], text="ok", finish_reason=pb.FINISH_REASON_STOP, usage=usage)
    call.send(pb.GenerateResponse(deltas=[delta]))
    call.finish()
    answer = await connection.answer()
    assert answer.status == 200
    assert int(answer.headers["openai-processing-ms"]) <= 1000 * (time() - sent) + 1
    connection.close()
