"""The operator's calls to the global controller, with one clear line for every failure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from types import TracebackType
from typing import TypeVar

import grpc

from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc

T = TypeVar("T")


class AdminError(Exception):
    """A refused or failed call; the text is one line.

    Attributes:
        code: the gRPC status.
        reason: the controller's reason, e.g. MODEL_NOT_FOUND; empty when it gave none.
    """

    def __init__(self, message: str, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ClusterAdmin:
    """ClusterService at one address; use it as an async context manager."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connects lazily to the controller at `host:port`; each unary call may take `timeout_s`."""
        self.address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address)
        self._stub = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    async def __aenter__(self) -> ClusterAdmin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; streams end."""
        await self._channel.close()

    async def apply_model(self, spec: pb.ModelSpec) -> pb.ApplyModelResponse:
        """Creates the model or replaces its spec; a refusal names the model."""
        request = pb.ApplyModelRequest(spec=spec)
        try:
            return await self._call(self._stub.ApplyModel(request, timeout=self._timeout_s))
        except AdminError as error:
            if not error.reason:
                raise
            raise AdminError(f"model {spec.name!r}: {error}", error.code, error.reason) from error

    async def delete_model(self, name: str) -> None:
        """Removes the model; its instances drain."""
        await self._call(self._stub.DeleteModel(pb.DeleteModelRequest(name=name), timeout=self._timeout_s))

    async def list_models(self) -> list[pb.ModelStatus]:
        """Every model with its state."""
        response = await self._call(self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s))
        return list(response.models)

    async def snapshot(self) -> pb.ClusterSnapshot:
        """The whole cluster now."""
        response = await self._call(self._stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=self._timeout_s))
        return response.snapshot

    async def watch(self) -> AsyncGenerator[pb.ClusterSnapshot]:
        """A snapshot, then a new one after each change; ends with AdminError when the stream breaks."""
        call = self._stub.WatchCluster(pb.WatchClusterRequest())
        try:
            async for response in call:
                yield response.snapshot
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()
        raise AdminError(f"controller {self.address} ended the stream", grpc.StatusCode.UNAVAILABLE, "")

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error

    def _error(self, error: grpc.aio.AioRpcError) -> AdminError:
        code, reason = error.code(), reason_of(error)
        text = " ".join((error.details() or code.name).split())
        if reason:
            return AdminError(text, code, reason)
        # gRPC's own words, or those of a server of another kind.
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = f"cannot reach the controller at {self.address}: no answer within {self._timeout_s:g} s"
        elif code is grpc.StatusCode.UNAVAILABLE:
            text = f"cannot reach the controller at {self.address}: {text}"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            text = (
                f"{self.address} does not serve chiron.v1.ClusterService as a controller does ({text}); "
                "is it the address of a controller?"
            )
        return AdminError(text, code, reason)
