"""A door before a real worker that loses the connection after an exact number of a stream's tokens."""

from __future__ import annotations

from typing import Any

import grpc

from chiron.rpc.servers import Server, open_channel
from chiron.v1 import inference_pb2 as pb

_GENERATE = "/chiron.v1.InferenceService/Generate"
_WATCH_LOAD = "/chiron.internal.v1.WorkerService/WatchLoad"


class Cuts:
    """Where the next streams are cut: shared by several doors, each cut is made once."""

    def __init__(self, *at: int) -> None:
        self.at = list(at)
        """Numbers of tokens of the whole stream, earlier attempts included."""
        self.resumes: list[pb.ResumeState] = []
        """What each resumed attempt brought along."""
        self.attempts: list[int] = []


class CuttingWorker:
    """Passes Generate and WatchLoad through."""

    def __init__(self, worker: str, cuts: Cuts) -> None:
        self._worker = worker
        self._cuts = cuts
        self.address = ""

    async def __aenter__(self) -> CuttingWorker:
        self._channel = open_channel(self._worker)
        self._server = Server([])
        self._server.grpc.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self.address = f"127.0.0.1:{self._server.bind('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.grpc.stop(None)
        await self._channel.close()

    def service(self, details: Any) -> Any:
        """grpc's way to ask for a handler."""
        if details.method == _GENERATE:
            return grpc.unary_stream_rpc_method_handler(self._generate)
        return grpc.unary_stream_rpc_method_handler(self._pass)

    async def _pass(self, wire: bytes, context: Any) -> None:
        call = self._channel.unary_stream(_WATCH_LOAD)(wire)
        try:
            async for message in call:
                await context.write(message)
        finally:
            call.cancel()

    async def _generate(self, wire: bytes, context: Any) -> None:
        request = pb.GenerateRequest.FromString(wire)
        self._cuts.attempts.append(request.attempt)
        if request.HasField("resume"):
            self._cuts.resumes.append(request.resume)
        call = self._channel.unary_stream(_GENERATE)(wire, metadata=context.invocation_metadata())
        try:
            async for message in call:
                at = self._cuts.at[0] if self._cuts.at else None
                if at is not None:
                    response = pb.GenerateResponse.FromString(message)
                    if _ends(response) >= at:
                        self._cuts.at.pop(0)
                        if (shortened := _shortened(response, at)) is not None:
                            await context.write(shortened.SerializeToString())
                        # As gRPC reports a connection that broke: no reason, no details.
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                await context.write(message)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
        finally:
            call.cancel()


def _ends(response: pb.GenerateResponse) -> int:
    return max((one.first_token_index + len(one.token_ids) for one in response.deltas), default=0)


def _shortened(response: pb.GenerateResponse, at: int) -> pb.GenerateResponse | None:
    """As a worker would have sent it that had not come further than `at` tokens; None: not at all."""
    (delta,) = response.deltas
    if delta.first_token_index >= at:
        return None
    surplus = delta.first_token_index + len(delta.token_ids) - at
    if surplus and delta.HasField("parsed"):
        # What each of its tokens brought cannot be told apart here.
        return None
    if surplus:
        before = delta.text_ends[-1] - len(delta.text)
        kept = len(delta.token_ids) - surplus
        delta.text = delta.text[: delta.text_ends[kept - 1] - before]
        for field in (delta.token_ids, delta.text_ends, delta.logprobs):
            del field[kept:]
        for name in ("finish_reason", "stop_match", "usage", "timing"):
            delta.ClearField(name)  # type: ignore[arg-type]
    return response
