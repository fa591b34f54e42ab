"""Whose batches are whose, and how many each tenant may have; BatchService on a real port and queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chiron.auth.api_keys import NewKey
from chiron.client import (
    BatchNotFound,
    ChironError,
    Client,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from chiron.internal.v1 import control_pb2
from chiron.v1 import access_pb2, types_pb2
from tests.support.batch_service import BatchService, batch_service, items

TENANTS = [
    access_pb2.Tenant(name="acme", models=["*"]),
    access_pb2.Tenant(
        name="lab",
        models=["toy"],
        most_urgent_priority=-5,
        quota=access_pb2.Quota(batch_items=100, batch_open=3, batch_bytes=1_000_000),
    ),
    access_pb2.Tenant(name="web", models=["*"], classes=[types_pb2.REQUEST_CLASS_INTERACTIVE]),
]
KEYS = {name: NewKey.draw() for name in ("acme", "lab", "web", "admin")}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BatchService]:
    async with batch_service(tmp_path, tenants=TENANTS) as running:
        routed = [
            control_pb2.RoutedKey(
                key_id=key.key_id,
                digest=key.digest,
                tenant="" if name == "admin" else name,
                role=access_pb2.ACCESS_ROLE_ADMIN if name == "admin" else 0,
            )
            for name, key in KEYS.items()
        ]
        running.access.table.replace(TENANTS, routed)
        yield running


def connect(service: BatchService, name: str) -> Client:
    return Client(service.address, api_key=KEYS[name].text, batch_patience_s=0.5)


async def reason(work: object) -> str:
    with pytest.raises(ChironError) as caught:
        await work  # type: ignore[misc]
    return caught.value.reason


async def test_a_tenant_sees_its_own_batches_alone(service: BatchService) -> None:
    async with connect(service, "acme") as acme, connect(service, "lab") as lab:
        mine = await acme.batch.submit(items(3), deadline_s=60, batch_id="same")
        theirs = await lab.batch.submit(items(5), deadline_s=60, batch_id="same")
        assert (mine.tenant, theirs.tenant) == ("acme", "lab")
        only = await acme.batch.submit(items(1), deadline_s=60, batch_id="only")
        assert [batch.batch_id async for batch in lab.batch.list()] == ["same"]
        for work in (lab.batch.get, lab.batch.cancel, lab.batch.delete, lab.batch.wait):
            with pytest.raises(BatchNotFound):
                await work(only.batch_id)
        with pytest.raises(BatchNotFound):
            await anext(lab.batch.results(only.batch_id))
        await lab.batch.cancel("same")
        assert not (await acme.batch.get("same")).cancelled
        (usage,) = await lab.batch.usage()
        assert (usage.tenant, usage.open_batches) == ("lab", 1)


async def test_an_administrator_sees_what_everybody_has_and_owns_nothing(service: BatchService) -> None:
    async with connect(service, "acme") as acme, connect(service, "admin") as admin:
        await acme.batch.submit(items(3), deadline_s=60)
        assert [usage.tenant for usage in await admin.batch.usage()] == ["acme"]
        with pytest.raises(PermissionDenied) as caught:
            await admin.batch.submit(items(1), deadline_s=60)
        assert caught.value.reason == "NOT_ALLOWED"


async def test_without_a_key_nobody_gets_in(service: BatchService) -> None:
    async with Client(service.address) as nobody:
        assert await reason(nobody.batch.get("any")) == "CREDENTIALS_MISSING"
        with pytest.raises(Unauthenticated):
            await nobody.batch.submit(items(1), deadline_s=60)
    async with Client(service.address, api_key=NewKey.draw().text) as stranger:
        assert await reason(stranger.batch.usage()) == "KEY_INVALID"


async def test_what_a_tenant_may_not_ask_for_is_told(service: BatchService) -> None:
    async with connect(service, "lab") as lab, connect(service, "web") as web:
        assert await reason(web.batch.submit(items(1), deadline_s=60)) == "NOT_ALLOWED"
        assert await reason(lab.batch.submit(items(1), deadline_s=60, priority=-6)) == "NOT_ALLOWED"
        for wrong in (items(1, model="other"), items(1, priority=-6)):
            with pytest.raises(InvalidRequest, match=r"items\[0\].*tenant 'lab' may not use"):
                await lab.batch.submit(wrong, deadline_s=60)
        failing = await lab.batch.submit(
            [*items(1), *items(1, model="other")], deadline_s=60, on_invalid="fail"
        )
        (result,) = [one async for one in lab.batch.results(failing.batch_id)]
        assert result.error is not None
        assert result.error.reason == "NOT_ALLOWED"


async def test_quotas_hold_over_all_batches_of_a_tenant(service: BatchService) -> None:
    async with connect(service, "lab") as lab, connect(service, "acme") as acme:
        # More than it may ever have is told at once, without a time to wait.
        with pytest.raises(Overloaded) as never:
            await lab.batch.submit(items(101), deadline_s=60)
        assert (never.value.reason, never.value.retry_after_s) == ("QUOTA_EXCEEDED", None)
        first = await lab.batch.submit(items(80), deadline_s=60)
        with pytest.raises(Overloaded) as full:
            await lab.batch.submit(items(21), deadline_s=60, batch_id="more")
        assert full.value.reason == "QUOTA_EXCEEDED"
        assert full.value.retry_after_s
        await acme.batch.submit(items(500), deadline_s=60)
        await service.complete(first.batch_id, tenant="lab")
        assert (await lab.batch.submit(items(21), deadline_s=60, batch_id="more")).progress.queued == 21
        for name in ("third", "fourth"):
            await lab.batch.submit(items(1), deadline_s=60, batch_id=name)
        assert await reason(lab.batch.submit(items(1), deadline_s=60)) == "QUOTA_EXCEEDED"
        large = items(10, prompt="x" * 110_000)
        await lab.batch.cancel("third")
        while await _open(lab) > 2:
            await service.queue.sweep()
        assert await reason(lab.batch.submit(large, deadline_s=60)) == "QUOTA_EXCEEDED"


async def _open(client: Client) -> int:
    return len([batch async for batch in client.batch.list(open_only=True)])


async def test_a_quota_that_changes_counts_for_the_next_submission(service: BatchService) -> None:
    async with connect(service, "lab") as lab:
        lab_now = access_pb2.Tenant(name="lab", models=["*"], quota=access_pb2.Quota(batch_open=1))
        service.access.table.change([lab_now], [], [], [])
        await lab.batch.submit(items(200, model="other"), deadline_s=60)
        assert await reason(lab.batch.submit(items(1), deadline_s=60)) == "QUOTA_EXCEEDED"
        service.access.table.change([], ["lab"], [], [])
        assert await reason(lab.batch.usage()) == "TENANT_UNKNOWN"
