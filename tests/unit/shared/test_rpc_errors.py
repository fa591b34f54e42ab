"""Errors reach a caller with status, reason and details, over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from chiron.rpc.errors import ChironError, Reason, abort, reason_of
from chiron.rpc.servers import BindError, Server, open_channel


@pytest.fixture
async def failing() -> AsyncIterator[tuple[grpc.aio.Channel, list[ChironError]]]:
    """A channel to a server whose one method fails with the error put into the list."""
    errors: list[ChironError] = []

    async def fail(request: bytes, context: Any) -> bytes:
        await abort(context, errors[0])

    server = Server(["test.Service"])
    handler = grpc.method_handlers_generic_handler(
        "test.Service", {"Fail": grpc.unary_unary_rpc_method_handler(fail)}
    )
    server.grpc.add_generic_rpc_handlers((handler,))
    port = server.bind("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield channel, errors
    await server.stop(0)


async def call(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Service/Fail")(b"")
    return caught.value


async def test_an_invalid_request_names_each_field(
    failing: tuple[grpc.aio.Channel, list[ChironError]],
) -> None:
    channel, errors = failing
    errors.append(
        ChironError.invalid([("sampling.top_p", "must be in (0, 1], not 2"), ("model", "is required")])
    )
    error = await call(channel)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "sampling.top_p: must be in (0, 1], not 2; model: is required"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert [detail.Unpack(bad) for detail in status.details if detail.Is(bad.DESCRIPTOR)] == [True]
    assert [violation.field for violation in bad.field_violations] == ["sampling.top_p", "model"]


@pytest.mark.parametrize("letter", ["x", "%", "\n", "\u00e9", "\U0001f600"])
async def test_an_error_arrives_with_its_reason_however_long_its_text(
    failing: tuple[grpc.aio.Channel, list[ChironError]], letter: str
) -> None:
    channel, errors = failing
    errors.append(ChironError.invalid([(f"chat[{n}]", letter * 100_000) for n in range(1000)]))
    error = await call(channel)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert (error.details() or "").startswith("chat[0]: " + letter * 100)
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert [detail.Unpack(bad) for detail in status.details if detail.Is(bad.DESCRIPTOR)] == [True]
    assert bad.field_violations[0].field == "chat[0]"
    assert bad.field_violations[0].description.startswith(letter)


async def test_an_ordinary_error_is_told_in_full(
    failing: tuple[grpc.aio.Channel, list[ChironError]],
) -> None:
    channel, errors = failing
    text = "cannot serve: " + "y" * 1900
    errors.append(ChironError(Reason.NO_INSTANCE, text))
    assert (await call(channel)).details() == text


async def test_a_refusal_says_when_to_come_back(failing: tuple[grpc.aio.Channel, list[ChironError]]) -> None:
    channel, errors = failing
    errors.append(
        ChironError(Reason.QUEUE_FULL, "1024 requests wait", retry_after_s=1.5, metadata={"model": "m"})
    )
    error = await call(channel)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error) == "QUEUE_FULL"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    delay = error_details_pb2.RetryInfo()
    assert [detail.Unpack(delay) for detail in status.details if detail.Is(delay.DESCRIPTOR)] == [True]
    assert delay.retry_delay.ToNanoseconds() == 1_500_000_000


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_a_status_of_its_own_name(reason: Reason) -> None:
    status = ChironError(reason, "text").to_status()
    assert status.code == reason.code.value[0]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason.name, "chiron")


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    first, second = Server([]), Server([])
    port = first.bind("127.0.0.1:0")
    with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port}.*in use"):
        second.bind(f"127.0.0.1:{port}")
    await first.stop(0)
    await second.stop(0)


@pytest.mark.parametrize(
    "address", ["", "junk", "localhost", ":1", "localhost:http", "localhost:65536", "::1:1"]
)
async def test_what_is_no_address_to_listen_on_is_told_from_a_taken_port(address: str) -> None:
    server = Server([])
    with pytest.raises(BindError) as caught:
        server.bind(address)
    assert str(caught.value) == f"cannot listen on {address}: expected host:port"
    await server.stop(0)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::]:0"])
async def test_names_and_addresses_with_any_port_can_be_listened_on(address: str) -> None:
    server = Server([])
    assert server.bind(address) > 0
    await server.stop(0)
