"""A model is deleted once, whatever becomes of the answer; one that is not there is said not to be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from chiron.cluster import AdminError, ClusterAdmin
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc


class Store:
    """What both controllers see."""

    def __init__(self) -> None:
        self.models = {"chat"}

    async def check(self, name: str, context: Any) -> None:
        if name not in self.models:
            await abort(context, ChironError(Reason.MODEL_NOT_FOUND, f"no model {name!r}"))


class Controller(cluster_pb2_grpc.ClusterServiceServicer):
    """Deletes, and may die before it answers."""

    def __init__(self, store: Store, *, dies: bool) -> None:
        self._store = store
        self._dies = dies

    async def ListModelVersions(self, request: Any, context: Any) -> pb.ListModelVersionsResponse:
        await self._store.check(request.name, context)
        return pb.ListModelVersionsResponse()

    async def DeleteModel(self, request: Any, context: Any) -> pb.DeleteModelResponse:
        await self._store.check(request.name, context)
        self._store.models.discard(request.name)
        if self._dies:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return pb.DeleteModelResponse()


@asynccontextmanager
async def serving(controller: Controller) -> AsyncIterator[str]:
    server = grpc.aio.server()
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


async def test_a_delete_that_is_repeated_because_its_answer_was_lost_has_succeeded() -> None:
    store = Store()
    async with (
        serving(Controller(store, dies=True)) as first,
        serving(Controller(store, dies=False)) as second,
        ClusterAdmin([first, second]) as admin,
    ):
        await admin.delete_model("chat")
        assert store.models == set()
        with pytest.raises(AdminError, match="no model 'chat'"):
            await admin.delete_model("chat")
