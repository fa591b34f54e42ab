"""What of a key's own limits and defaults counts for the batches that it hands in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chiron.auth.api_keys import NewKey
from chiron.client import ChironError, Client, InvalidRequest
from chiron.internal.v1 import control_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.servers import open_channel
from chiron.v1 import access_pb2, batch_pb2_grpc, types_pb2
from chiron.v1 import batch_pb2 as pb
from chiron.v1.access_pb2 import KeyDefaults, KeyLimits, KeyTerms
from tests.support.batch_service import BatchService, batch_service, items

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
TENANTS = [access_pb2.Tenant(name="acme", models=["*"])]
EXPIRED = KeyTerms()
EXPIRED.expires.FromSeconds(1_000)
TERMS = {
    "toys": KeyTerms(limits=KeyLimits(models=["toy"], most_urgent_priority=0)),
    "people": KeyTerms(limits=KeyLimits(classes=[INTERACTIVE])),
    "slow": KeyTerms(limits=KeyLimits(requests_per_s=0.001, tokens_per_min=1, concurrent=1)),
    "nightly": KeyTerms(
        defaults=KeyDefaults(request_class=BATCH, priority=7, slo=types_pb2.Slo(deadline_s=3600))
    ),
    "expired": EXPIRED,
}
KEYS = {name: NewKey.draw() for name in TERMS}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BatchService]:
    async with batch_service(tmp_path, tenants=TENANTS) as running:
        running.access.table.replace(TENANTS, [routed(name) for name in TERMS])
        yield running


def routed(name: str, **more: object) -> control_pb2.RoutedKey:
    key = KEYS[name]
    return control_pb2.RoutedKey(
        key_id=key.key_id,
        digest=key.digest,
        tenant="acme",
        terms=TERMS[name],
        **more,  # type: ignore[arg-type]
    )


def connect(service: BatchService, name: str) -> Client:
    return Client(service.address, api_key=KEYS[name].text, batch_patience_s=0.5)


async def test_models_classes_and_priorities_of_the_key_count_when_a_batch_is_handed_in(
    service: BatchService,
) -> None:
    async with connect(service, "toys") as toys, connect(service, "people") as people:
        with pytest.raises(ChironError, match=r"API key .* may not use class batch"):
            await people.batch.submit(items(1), deadline_s=60)
        with pytest.raises(ChironError, match=r"API key .* may not use priority -1"):
            await toys.batch.submit(items(1), deadline_s=60, priority=-1)
        for wrong in (items(1, model="other"), items(1, priority=-1)):
            with pytest.raises(InvalidRequest, match=r"items\[0\].*API key .* may not use"):
                await toys.batch.submit(wrong, deadline_s=60)
        await toys.batch.submit(items(1), deadline_s=60)


async def test_rates_and_requests_at_once_are_of_requests_alone(service: BatchService) -> None:
    async with connect(service, "slow") as slow:
        for _ in range(3):
            await slow.batch.submit(items(20), deadline_s=60)


async def test_a_batch_that_names_neither_has_the_priority_and_the_deadline_of_its_key(
    service: BatchService,
) -> None:
    async with open_channel(service.address) as channel, connect(service, "nightly") as client:
        stub = batch_pb2_grpc.BatchServiceStub(channel)
        message = pb.SubmitBatchRequest(
            header=pb.BatchHeader(batch_id="plain"), items=[pb.BatchItem()], complete=True
        )
        message.items[0].request.model, message.items[0].request.prompt = "toy", "Hi"
        made = (await stub.SubmitBatch(iter([message]), metadata=bearer_metadata(KEYS["nightly"].text))).batch
        assert made.priority == 7
        assert made.deadline.seconds - made.created.seconds == pytest.approx(3600, abs=1)
        own = await client.batch.submit(items(1), deadline_s=60, priority=0)
        assert own.priority == 0


async def test_an_expired_key_hands_in_nothing_and_what_it_has_handed_in_stays(service: BatchService) -> None:
    async with connect(service, "expired") as late, connect(service, "toys") as toys:
        with pytest.raises(ChironError) as caught:
            await late.batch.submit(items(1), deadline_s=60)
        assert caught.value.reason == "KEY_EXPIRED"
        batch = await toys.batch.submit(items(1), deadline_s=60)
        service.access.table.change([], [], [routed("toys", revoked=True)], [])
        # Its tenant may still do all that it asks for.
        (claim,) = await service.claim(batch.batch_id, tenant="acme")
        await service.finish([claim])
    async with connect(service, "nightly") as other:
        assert (await other.batch.get(batch.batch_id)).progress.succeeded == 1
