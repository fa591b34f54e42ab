"""Files and batches belong to a tenant: others see nothing of them, and quotas hold."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from chiron.auth.api_keys import NewKey
from chiron.auth.settings import AuthSettings
from chiron.batch.records import NewBatch
from chiron.internal.v1 import control_pb2
from chiron.v1 import access_pb2, types_pb2
from services.router.batch.settings import BatchSettings
from services.router.http.batches.source import Source
from tests.support.http_door import ANY, openai_at
from tests.support.openai_batches import CHAT, Hand, created, jsonl, line, lines, once, read, uploaded
from tests.support.wait import eventually

TENANTS = (
    access_pb2.Tenant(name="acme", models=["*"]),
    access_pb2.Tenant(name="lab", models=["m"], quota=access_pb2.Quota(batch_bytes=3_000, batch_open=1)),
    access_pb2.Tenant(name="web", models=["*"], classes=[types_pb2.REQUEST_CLASS_INTERACTIVE]),
)


class Door:
    def __init__(self, router, stack: AsyncExitStack, keys: dict[str, NewKey]) -> None:
        self.router, self.stack, self.keys = router, stack, keys

    async def client(self, key: str) -> AsyncOpenAI:
        """As a tenant, or with this key."""
        text = self.keys[key].text if key in self.keys else key
        return await self.stack.enter_async_context(openai_at(self.router.http_url, text))


@pytest.fixture
async def door(start_router, controller, tmp_path: Path, stack: AsyncExitStack, monkeypatch) -> Door:
    monkeypatch.setattr("services.router.http.batches.work.HOLD_S", 0.3)
    keys = {tenant.name: NewKey.draw() for tenant in TENANTS}
    for model in ("m", "other"):
        controller.add(model)
    controller.table.tenants.extend(TENANTS)
    for name, key in keys.items():
        routed = control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant=name)
        controller.table.keys.append(routed)
    keys["narrow"] = key = NewKey.draw()
    routed = control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="acme")
    routed.terms.limits.models.append("m")
    routed.terms.limits.most_urgent_priority = 5
    routed.terms.defaults.priority = 9
    controller.table.keys.append(routed)
    router = await start_router(
        batch=BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}"),
        auth=AuthSettings(require=True),
        http=ANY,
    )
    return Door(router.router, stack, keys)


async def test_another_tenant_sees_and_does_nothing(door: Door) -> None:
    ours, theirs = await door.client("acme"), await door.client("lab")
    batch = await created(ours, lines(1))
    await once(ours, batch.id, "in_progress")
    hand = await Hand.on(door.router._batch.queue)
    await hand.answer(*await hand.claim(batch.id, tenant="acme"))
    done = await once(ours, batch.id)
    assert (await read(ours, done.output_file_id)).keys() == {"c0"}
    assert (await theirs.files.list()).data == []
    assert (await theirs.batches.list()).data == []
    for file_id in (batch.input_file_id, done.output_file_id):
        assert file_id is not None
        for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file_id)
    for look in (theirs.batches.retrieve, theirs.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await look(batch.id)
    with pytest.raises(openai.NotFoundError):
        await theirs.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    assert len((await ours.files.list()).data) == 2


async def test_a_wrong_key_gets_nowhere(door: Door) -> None:
    client = await door.client("nobody-s-key")
    for call in (client.files.list, client.batches.list):
        with pytest.raises(openai.AuthenticationError):
            await call()
    with pytest.raises(openai.AuthenticationError):
        await uploaded(client, lines(1))


async def test_files_count_against_the_tenant_s_quota(door: Door) -> None:
    client = await door.client("lab")
    first = await uploaded(client, b"x" * 2_000)
    with pytest.raises(openai.RateLimitError) as raised:
        await uploaded(client, b"x" * 1_001)
    assert raised.value.code == "quota_exceeded"
    await client.files.delete(first.id)
    await uploaded(client, b"x" * 1_001)


@pytest.mark.parametrize("size", [3_001, 200_000])
async def test_a_file_that_never_fits_is_not_to_be_sent_again(door: Door, size: int) -> None:
    client = await door.client("lab")
    await uploaded(client, b"x" * 2_000)
    with pytest.raises(openai.RateLimitError, match=r"more than 3000 bytes.*\(batch_bytes\)") as raised:
        await uploaded(client, b"x" * size)
    assert raised.value.code == "quota_exceeded"
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in raised.value.response.headers
    await uploaded(client, b"x" * 1_000)
    with pytest.raises(openai.RateLimitError) as later:
        await uploaded(client, b"x")
    assert "retry-after" in later.value.response.headers


async def test_a_batch_that_does_not_fit_into_the_quota_fails_and_takes_no_room(door: Door) -> None:
    client = await door.client("lab")
    content = jsonl(*(line(f"c{number}") for number in range(12))) + b"\n" * 850
    assert len(content) < 3_000
    batch = await once(client, (await created(client, content)).id)
    assert batch.status == "failed"
    assert [one.code for one in batch.errors.data] == ["quota_exceeded"]
    queue = door.router._batch.queue
    (usage,) = await queue.usage("lab")
    assert usage.stored_bytes == len(content)
    file = await client.files.retrieve(batch.input_file_id)
    await client.files.delete(file.id)
    running = await created(client, lines(1))
    await once(client, running.id, "in_progress")
    with pytest.raises(openai.RateLimitError):
        await client.batches.create(
            input_file_id=running.input_file_id, endpoint=CHAT, completion_window="24h"
        )


async def test_a_tenant_may_ask_for_its_models_and_class_alone(door: Door) -> None:
    lab, web = await door.client("lab"), await door.client("web")
    batch = await once(lab, (await created(lab, lines(1, model="other"))).id)
    assert [(one.code, one.line) for one in batch.errors.data] == [("permission_denied", 1)]
    with pytest.raises(openai.PermissionDeniedError):
        await uploaded(web, lines(1))


async def test_what_a_key_may_not_ask_for_its_batches_may_not_either(door: Door) -> None:
    client = await door.client("narrow")
    batch = await once(client, (await created(client, lines(1, model="other"))).id)
    assert [(one.code, one.line) for one in batch.errors.data] == [("permission_denied", 1)]
    batch = await once(client, (await created(client, jsonl(line("a"), line("b", priority=-3)))).id)
    assert [(one.code, one.line) for one in batch.errors.data] == [("permission_denied", 2)]
    running = await created(client, jsonl(line("a", priority=7)))
    await once(client, running.id, "in_progress")
    (unit,) = await door.router._batch.queue.units()
    assert unit.priority == 9


async def test_a_batch_of_a_key_that_is_revoked_before_its_file_was_read_fails(
    door: Door, controller
) -> None:
    client = await door.client("acme")
    file = await uploaded(client, lines(1))
    source = Source(file.id, CHAT, "24h", "m", door.keys["narrow"].key_id).text()
    table = door.router._placer.access.table
    controller.send(removed_key_ids=[door.keys["narrow"].key_id])
    await eventually(lambda: door.keys["narrow"].key_id not in table.held)
    await door.router._batch.queue.create(NewBatch("batch_1", "acme", 60.0, source=source))
    batch = await once(client, "batch_1")
    assert [one.code for one in batch.errors.data] == ["api_key_revoked"]
