"""Requests that generate at the HTTP door: bodies, disconnects, slow readers, drains and errors."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
from uvicorn.protocols.http import httptools_impl

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from tests.support.http_door import ANY, RawConnection, post
from tests.support.http_generating import STREAM, WHOLE, add_generating
from tests.support.wait import eventually

ASKED = {"model": "m", "prompt": "Tell me."}


@pytest.fixture
def start_door(start_worker, start_router):
    async def start(*, limits: dict[str, object] | None = None, batch_size: int = 4, **options: object):
        """A worker, the router before it, and the URL of its door."""
        worker = await start_worker("a", batch_size=batch_size)
        http = dataclasses.replace(ANY, **(limits or {}))
        router = await start_router(worker, http=http, **options)
        return worker, router, add_generating(router.router)

    return start


def body_of(asked: object) -> tuple[str, bytes]:
    content = json.dumps(asked).encode()
    return f"content-length: {len(content)}", content


@pytest.fixture
def connect(stack):
    async def connect(url: str, **options: object) -> RawConnection:
        """A connection that ends with the test."""
        connection = await RawConnection.open(url, **options)
        stack.callback(connection.close)
        return connection

    return connect


@pytest.fixture
def begin(connect):
    async def begin(url: str, path: str, asked: object = ASKED, **options: object) -> RawConnection:
        """A request whose answer is on its way."""
        connection = await connect(url, **options)
        length, content = body_of(asked)
        connection.send(f"POST {path} HTTP/1.1", "host: door", length, body=content)
        return connection

    return begin


def last(text: str = "") -> pb.GenerateResponse:
    """The end of an answer."""
    usage = pb.Usage(prompt_tokens=7, completion_tokens=2)
    delta = pb.OutputDelta(token_ids=[9], text=text, finish_reason=pb.FINISH_REASON_STOP, usage=usage)
    return pb.GenerateResponse(deltas=[delta])


# How it goes.


async def test_an_answer_comes_as_a_whole_or_in_parts(start_door) -> None:
    worker, _, url = await start_door()
    for path, text in ((WHOLE, b"one two"), (STREAM, b"data: one \n\ndata: two\n\ndata: [DONE]\n\n")):
        asking = asyncio.create_task(post(url, path, ASKED))
        call = await worker.calls.get()
        call.text("one ")
        call.send(last("two"))
        call.finish()
        answer = await asking
        assert (answer.status, answer.body.replace(b"data: one two", b"data: one \n\ndata: two")) == (
            200,
            text,
        )


async def test_parts_leave_as_they_come(start_door, begin) -> None:
    worker, _, url = await start_door()
    connection = await begin(url, STREAM)
    call = await worker.calls.get()
    call.text("first")
    head = await connection.reader.readuntil(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert await connection.reader.readuntil(b"data: first\n\n\r\n")
    call.send(last("then"))
    assert await connection.reader.readuntil(b"data: then\n\n\r\n")
    call.finish()
    assert await connection.reader.readuntil(b"0\r\n\r\n") == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


# Errors.


@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_what_fails_before_the_first_token_has_its_status(start_door, path: str) -> None:
    worker, _, url = await start_door()
    unknown = await post(url, path, {**ASKED, "model": "none"})
    assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    invalid = await post(url, path, {**ASKED, "sampling": {"top_p": 2.0}})
    assert (invalid.status, invalid.error["param"]) == (400, "sampling.top_p")
    worker.refuse_with = ChironError.invalid([("prompt", "is longer than the context")])
    told = await post(url, path, ASKED)
    assert (told.status, told.error["param"]) == (400, "prompt")
    assert told.error["message"] == "prompt: is longer than the context"
    worker.refuse_with = ChironError(Reason.QUEUE_FULL, "full", retry_after_s=2.5)
    full = await post(url, path, ASKED)
    assert (full.status, full.headers["retry-after"], full.error["code"]) == (429, "3", "queue_full")


async def test_what_fails_later_is_the_last_event(start_door, begin) -> None:
    worker, _, url = await start_door(max_resumes=0)
    connection = await begin(url, STREAM)
    call = await worker.calls.get()
    call.text("begun")
    await connection.reader.readuntil(b"data: begun\n\n\r\n")
    call.fail(ChironError(Reason.ABORTED, "the engine gave it up"))
    rest = await connection.reader.readuntil(b"0\r\n\r\n")
    assert b"[DONE]" not in rest
    event = json.loads(rest.split(b"data: ")[1].split(b"\n\n")[0])
    assert event["error"]["code"] == "aborted"


async def test_a_request_that_no_instance_takes_in_time_is_told_so(start_door, begin) -> None:
    worker, _, url = await start_door(batch_size=1, worker_queue=0)
    await begin(url, WHOLE)
    call = await worker.calls.get()
    late = await post(url, WHOLE, {**ASKED, "slo": {"deadlineS": 0.05}})
    assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
    call.finish()


# Bodies.


async def test_a_body_that_says_it_is_too_large_is_not_read(start_door, connect) -> None:
    _, _, url = await start_door(limits={"body_bytes": 1000})
    connection = await connect(url)
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", "content-length: 1001", "expect: 100-continue")
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_does_not_say_is_read_up_to_the_limit(start_door, connect) -> None:
    _, _, url = await start_door(limits={"body_bytes": 1000})
    connection = await connect(url)
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", "transfer-encoding: chunked")
    for _ in range(3):
        connection.writer.write(b"190\r\n" + b"x" * 400 + b"\r\n")
    # Its end never comes.
    assert (await connection.answer()).status == 413


async def test_a_client_that_goes_on_sending_is_told_before_its_connection_ends(start_door, connect) -> None:
    _, _, url = await start_door(limits={"body_bytes": 1000})
    connection = await connect(url)
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", "content-length: 2000000", body=b"x" * 2000)
    await eventually(lambda: connection.reader._buffer)
    # Were it reset now, the answer might be lost with what it has not read.
    for _ in range(100):
        connection.writer.write(b"x" * 10_000)
        await connection.writer.drain()
    assert (await connection.answer()).status == 413
    assert await connection.closed() == b""


async def test_a_body_of_the_largest_size_is_taken(start_door) -> None:
    worker, _, url = await start_door(limits={"body_bytes": 200_000})
    padding = 200_000 - len(json.dumps({**ASKED, "prompt": ""}))
    asking = asyncio.create_task(post(url, WHOLE, {**ASKED, "prompt": "x" * padding}))
    call = await worker.calls.get()
    assert len(call.request.prompt) == padding
    call.send(last())
    call.finish()
    assert (await asking).status == 200


async def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on(start_door, connect) -> None:
    worker, _, url = await start_door()
    connection = await connect(url)
    length, content = body_of(ASKED)
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", length, "expect: 100-continue")
    assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.writer.write(content)
    call = await worker.calls.get()
    call.send(last())
    call.finish()
    assert (await connection.answer()).status == 200


async def test_a_body_has_to_come_in_time(start_door, connect) -> None:
    _, router, url = await start_door(limits={"body_s": 0.2, "body_bytes_per_s": 1_000_000})
    connection = await connect(url)
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", "content-length: 100")

    async def trickle() -> None:
        while True:
            connection.writer.write(b" ")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    answer = await connection.answer()
    trickling.cancel()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert await connection.closed() == b""
    connection.close()
    await eventually(lambda: not router.router._http.state.connections)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ("x=1", {"content_type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ('{"prompt": [' + "1," * 100_000 + "1]}", {}, 400, "too_many_values"),
        ('{"model": "m",\n  "prompt": oops}', {}, 400, "invalid_json"),
        ("[]", {}, 400, "invalid_json"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    start_door, body: str, headers: dict[str, str], status: int, code: str | None
) -> None:
    _, _, url = await start_door()
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = await post(url, path, body.encode(), **headers)
        assert (answer.status, answer.error["code"]) == (status, code)
    if "oops" in body:
        assert "line 2 column" in answer.error["message"]


# Clients that leave, or take nothing.


@pytest.mark.parametrize("path", [WHOLE, STREAM])
async def test_a_client_that_leaves_takes_its_request_along(start_door, begin, path: str) -> None:
    worker, router, url = await start_door()
    connection = await begin(url, path)
    call = await worker.calls.get()
    call.text("begun")
    connection.close()
    await call.ended.wait()
    assert call.cancelled
    await eventually(router.router._serving.under_way.idle.is_set)
    assert router.core.counts().reservations == 0


async def test_a_client_that_ends_its_side_alone_has_left_too(start_door, begin) -> None:
    worker, _, url = await start_door()
    connection = await begin(url, WHOLE)
    call = await worker.calls.get()
    connection.writer.write_eof()
    await call.ended.wait()
    assert call.cancelled
    assert await connection.closed() == b""


async def test_a_client_that_leaves_after_a_large_body_is_noticed_too(
    start_door, connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is larger than this makes uvicorn stop reading until it is taken.
    monkeypatch.setattr(httptools_impl, "HIGH_WATER_LIMIT", 1000)
    worker, router, url = await start_door()
    connection = await connect(url)
    length, content = body_of({**ASKED, "prompt": "x" * 15_000})
    connection.send(f"POST {WHOLE} HTTP/1.1", "host: door", length)
    # All of it at once, when it is waited for.
    await eventually(lambda: router.router._serving.under_way.count)
    connection.writer.write(content)
    call = await worker.calls.get()
    connection.close()
    await call.ended.wait()
    assert call.cancelled


async def test_a_client_that_leaves_while_its_request_waits_waits_no_more(start_door, begin) -> None:
    worker, router, url = await start_door(batch_size=1, worker_queue=0)
    await begin(url, WHOLE)
    call = await worker.calls.get()
    second = await begin(url, WHOLE)
    await router.queued(1)
    second.close()
    await router.queued(0)
    call.finish()


async def test_clients_that_leave_at_once_count_as_ones_that_abandon(start_door, begin) -> None:
    worker, router, url = await start_door()
    connection = await begin(url, WHOLE)
    call = await worker.calls.get()
    connection.close()
    await call.ended.wait()
    await eventually(lambda: len(router.router._placer.door._abandoned) == 1)


async def test_a_reader_that_stalls_is_ended_and_the_worker_s_slot_is_free(start_door, begin) -> None:
    worker, router, url = await start_door(reader_stall_s=0.2, limits={"write_buffer_bytes": 10_000})
    await begin(url, STREAM, limit=2**12)
    call = await worker.calls.get()
    for _ in range(200):
        call.text("x" * 100_000)
    await call.ended.wait()
    await eventually(lambda: not router.router._http.state.connections)
    await eventually(router.router._serving.under_way.idle.is_set)


async def test_what_a_new_connection_has_not_taken_yet_at_the_first_look_is_no_stall(
    start_door, begin
) -> None:
    worker, router, url = await start_door(reader_stall_s=5.0, limits={"write_buffer_bytes": 10_000})
    connection = await begin(url, STREAM, limit=2**12)
    call = await worker.calls.get()
    for _ in range(200):
        call.text("x" * 100_000)
    call.send(last())
    call.finish()
    (open_one,) = router.router._http.state.connections
    await eventually(lambda: open_one._unsent, what="the router has looked at it")
    answer = await connection.answer()
    assert len(answer.body) > 200 * 100_000
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_whole_answer_that_is_not_taken_is_given_up(start_door, begin) -> None:
    worker, router, url = await start_door(reader_stall_s=0.2)
    await begin(url, WHOLE, limit=2**12)
    call = await worker.calls.get()
    for _ in range(10):
        call.text("x" * 1_000_000)
    call.send(last())
    call.finish()
    await eventually(router.router._serving.under_way.idle.is_set)
    await eventually(lambda: not router.router._http.state.connections)


async def test_a_slow_reader_holds_up_the_engine_s_output_not_the_router_s_memory(start_door, begin) -> None:
    worker, router, url = await start_door(limits={"write_buffer_bytes": 10_000})
    connection = await begin(url, STREAM, limit=2**12)
    call = await worker.calls.get()
    for _ in range(300):
        call.text("x" * 100_000)
    (open_one,) = router.router._http.state.connections
    await eventually(lambda: open_one.flow.write_paused)
    assert open_one.transport.get_write_buffer_size() < 1_000_000
    assert call._out.qsize() > 0
    connection.close()
    await call.ended.wait()


# Drains.


async def test_streams_go_on_while_it_drains_and_new_requests_are_sent_away(
    start_door, begin, connect
) -> None:
    worker, router, url = await start_door(drain_timeout_s=20.0)
    running = await begin(url, STREAM)
    idle = await connect(url)
    idle.send("GET /health HTTP/1.1", "host: door")
    assert (await idle.answer()).status == 200
    call = await worker.calls.get()
    call.text("begun")
    await running.reader.readuntil(b"data: begun\n\n\r\n")
    stopping = asyncio.create_task(router.router.stop())
    await eventually(lambda: router.router._serving.refusing)
    assert await idle.closed() == b""
    refused = await post(url, WHOLE, ASKED)
    assert (refused.status, refused.error["code"]) == (503, "unavailable")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    call.send(last("done"))
    call.finish()
    assert (await running.reader.readuntil(b"0\r\n\r\n")).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert await running.closed() == b""
    await stopping


async def test_what_does_not_end_within_the_drain_is_told_so(start_door, begin) -> None:
    worker, router, url = await start_door()
    running = await begin(url, STREAM)
    call = await worker.calls.get()
    call.text("begun")
    await running.reader.readuntil(b"data: begun\n\n\r\n")
    await router.router.stop()
    rest = await running.closed()
    assert b'"code":"stream_interrupted"' in rest
    assert rest.endswith(b"0\r\n\r\n")


# Defects of this server.


async def test_a_defect_is_one_line_for_the_client_and_a_trace_in_the_log(
    start_door, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, router, url = await start_door()

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of this server")

    monkeypatch.setattr(router.router._serving.proxy, "run", fail)
    answer = await post(url, WHOLE, ASKED)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        500,
        "server_error",
        "internal_error",
    )
    assert "secret" not in answer.error["message"]
    assert "ZeroDivisionError" in caplog.text
    assert caplog.text.count("Traceback") == 1
    assert answer.headers["x-request-id"] in caplog.text
