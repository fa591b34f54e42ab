"""A stream that its server ends while messages are being written still tells how it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import pytest

from chiron.client import Client
from chiron.client.batch.calls import Patience
from chiron.client.batch.submission import Submission
from chiron.internal.v1 import control_pb2 as pb
from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.controllers import leader_of
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.rpc.servers import Server, open_channel
from chiron.rpc.streams import end_writing, ending, write
from chiron.v1 import batch_pb2, batch_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
STREAMS = 100


class Deposed(control_pb2_grpc.ControlServiceServicer):
    """Welcomes, and ends each stream once it has heard something."""

    async def ConnectAgent(
        self, request_iterator: AsyncIterator[pb.ConnectAgentRequest], context: Context
    ) -> AsyncIterator[pb.ConnectAgentResponse]:
        await anext(request_iterator)
        yield pb.ConnectAgentResponse(welcome=pb.AgentWelcome(term=1))
        await anext(request_iterator)
        await abort(context, ChironError(Reason.NOT_LEADER, "no more", metadata={"leader": "next:1"}))


class Refusing(batch_pb2_grpc.BatchServiceServicer):
    """Refuses a submission once it has begun."""

    async def SubmitBatch(
        self, request_iterator: AsyncIterator[batch_pb2.SubmitBatchRequest], context: Context
    ) -> batch_pb2.SubmitBatchResponse:
        await anext(request_iterator)
        await anext(request_iterator)
        await abort(context, ChironError.invalid([("items[0]", "is wrong")]))


@asynccontextmanager
async def served(**servicers: Any) -> AsyncIterator[str]:
    server = Server([])
    port = server.bind("127.0.0.1:0")
    if "control" in servicers:
        control_pb2_grpc.add_ControlServiceServicer_to_server(servicers["control"], server.grpc)
    if "batch" in servicers:
        batch_pb2_grpc.add_BatchServiceServicer_to_server(servicers["batch"], server.grpc)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def write_on(call: Any) -> NoReturn:
    while True:
        await write(call, pb.ConnectAgentRequest(report=pb.AgentReport(sequence=1)))


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_who_writes_without_pause_is_told_who_leads_now() -> None:
    async with served(control=Deposed()) as address, open_channel(address) as channel:
        for _ in range(STREAMS):
            call = control_pb2_grpc.ControlServiceStub(channel).ConnectAgent()  # type: ignore[call-arg]
            await write(call, pb.ConnectAgentRequest(hello=pb.AgentHello(node_id="a", state_id="s")))
            found = await asyncio.gather(write_on(call), read_on(call), return_exceptions=True)
            assert [leader_of(error) for error in found if error is not None] == ["next:1"] * 2
            assert leader_of(await ending(call)) == "next:1"
            await end_writing(call)
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await write_on(call)
            assert leader_of(late.value) == "next:1"


async def test_a_submission_leaves_the_status_to_the_router() -> None:
    message = batch_pb2.SubmitBatchRequest(items=[batch_pb2.BatchItem(custom_id="x")])
    async with served(batch=Refusing()) as address, Client(address) as client:
        calls = client.batch._calls
        submission = Submission(
            calls, batch_pb2.BatchHeader(), read_nothing(), Patience(calls.network, None), lambda _: None
        )
        async with open_channel(address) as channel:
            for _ in range(STREAMS):
                call = batch_pb2_grpc.BatchServiceStub(channel).SubmitBatch()  # type: ignore[call-arg]
                while await submission._write(call, message):
                    pass
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
                with pytest.raises(grpc.aio.AioRpcError) as told:
                    await call
                assert told.value.details() == "items[0]: is wrong"


async def read_nothing() -> AsyncIterator[batch_pb2.SubmitBatchRequest]:
    return
    yield
