"""Writing to a stream, and how it has ended: gRPC's own ways lose what the server said last."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message

Call = grpc.aio.StreamStreamCall[Any, Any]


async def ending(call: Call) -> grpc.aio.AioRpcError:
    """How a stream has ended; waits until it has."""
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        await call.details() or "the stream ended",
    )


async def write(call: Call, message: Message) -> None:
    """Writes a message; all writes of a call go through here.

    `call.write` of gRPC puts INTERNAL in place of the status when the server ends the stream during the
    write, and with it the reason and the leader's address are gone for everybody who asks later. This leaves
    the status to the server.

    Raises AioRpcError with the server's status when the stream has ended.
    """
    if call.done():
        raise await ending(call)
    await call.wait_for_connection()
    stream: Any = call
    try:
        await stream._cython_call.send_serialized_message(message.SerializeToString())
    except grpc.aio.InternalError:
        raise await ending(call) from None
    except asyncio.CancelledError:
        # The message may still be on its way, and gRPC takes one at a time.
        call.cancel()
        raise


async def end_writing(call: Call) -> None:
    """Tells the server that nothing more comes, where it still listens."""
    with suppress(grpc.aio.InternalError):
        await call.done_writing()
