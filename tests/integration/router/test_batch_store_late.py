"""A router whose batch queue cannot be reached yet serves requests, and takes the queue up when it can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chiron.batch import opening
from chiron.batch.contract import BatchQueue, RefusedError, UnavailableError
from chiron.batch.records import Limits
from chiron.client import BatchState, Client, NoBatchQueue, Unavailable
from chiron.config import ConfigError
from chiron.v1 import inference_pb2 as pb
from services.router import app
from services.router.app import Router
from services.router.batch import part
from services.router.batch.settings import BatchSettings
from services.router.config import RouterConfig
from tests.support.wait import eventually

ITEMS = [{"model": "m", "prompt": "x", "max_tokens": 2}]


class Store:
    """Opens the queue in a file, or says why not."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0

    async def open(self, url: str, limits: Limits) -> BatchQueue:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return await opening.open_queue(url, limits)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(UnavailableError("batch queue x: nobody listens"))
    monkeypatch.setattr(part, "open_queue", made.open)
    monkeypatch.setattr(app, "_REACH_AGAIN_S", 0.02)
    return made


async def test_requests_are_served_while_the_queue_is_waited_for(
    start_worker: Any, start_router: Any, store: Store, tmp_path: Path
) -> None:
    settings = BatchSettings(store=f"sqlite:{tmp_path / 'q.db'}")
    router = await start_router(await start_worker("a"), batch=settings)
    async with Client(router.address, batch_patience_s=0.001) as client:
        assert (await router.stub.Route(pb.RouteRequest(model="m", prompt_tokens=4))).instance_id == "a"
        with pytest.raises(Unavailable, match="nobody listens") as caught:
            await client.batch.submit(ITEMS, deadline_s=60)
        assert caught.value.reason == "STORE_UNAVAILABLE"
    async with Client(router.address) as client:
        waiting = asyncio.create_task(client.batch.submit(ITEMS, deadline_s=60))
        asked = store.asked
        await eventually(lambda: store.asked > asked + 1)
        # Whatever it says meanwhile: the router runs, and asks again.
        store.error = RefusedError("batch queue x: may not be written")
        asked = store.asked
        await eventually(lambda: store.asked > asked + 1)
        store.error = None
        batch = await asyncio.wait_for(waiting, 20)
        assert batch.state is BatchState.ACTIVE
        # Its work on the queue has begun, too.
        runner = router.router._batch.runner
        await eventually(lambda: runner.sessions.current is not None and runner.backlog.units)


async def test_it_stops_while_the_queue_is_waited_for(start_router: Any, store: Store) -> None:
    router = await start_router(batch=BatchSettings(store="sqlite:/nowhere/q.db"))
    await eventually(lambda: store.asked > 1)
    await router.router.stop()
    asked = store.asked
    await asyncio.sleep(0.05)
    assert store.asked == asked


async def test_a_queue_that_is_refused_at_the_start_ends_the_router(store: Store) -> None:
    store.error = RefusedError("batch queue x is damaged")
    config = RouterConfig(
        listen="127.0.0.1:0", controller=("127.0.0.1:1",), batch=BatchSettings(store="sqlite:x")
    )
    with pytest.raises(ConfigError, match=r"batch\.store: batch queue x is damaged"):
        await Router(config).start()


async def test_a_router_without_a_store_says_that_it_has_none(start_router: Any) -> None:
    router = await start_router()
    async with Client(router.address) as client:
        with pytest.raises(NoBatchQueue):
            await client.batch.list().__anext__()


@pytest.mark.parametrize("store", ["sqlite:", "sqlite::memory:"])
def test_a_store_that_is_no_file_is_refused(store: str) -> None:
    with pytest.raises(ValueError, match="must name a file"):
        BatchSettings(store=store)
