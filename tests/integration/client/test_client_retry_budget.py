"""A client's retries are held to a budget; refusals for want of a place cost nothing."""

from __future__ import annotations

import time

import pytest

from chiron.client import Client, StreamInterrupted
from chiron.client.budget import RetryBudget
from chiron.rpc.errors import FULL, Reason
from tests.support.fake_inference import FakeDoor, FakeRouter, answer, break_off, refuse, serving


@pytest.fixture
async def workers():
    return [FakeDoor(f"w-{i}") for i in range(4)]


@pytest.fixture
async def router(workers):
    router = FakeRouter(*workers)
    async with serving(*workers, router):
        yield router


def with_one_retry(client: Client) -> Client:
    client._network.budget = RetryBudget(time.monotonic(), share=0.0, floor_per_s=1e-3, window_s=1e3)
    return client


async def test_a_spent_budget_tells_the_original_error(router, workers):
    for worker in workers:
        worker.script = [break_off(worker.name)]
    async with with_one_retry(Client(router.address, max_resumes=0)) as client:
        with pytest.raises(StreamInterrupted) as caught:
            await client.complete(model="toy", prompt="x")
        assert (client.stats.retries, client.stats.throttled) == (1, 1)
    assert caught.value.delivered[0].text == "w-1"
    assert caught.value.__cause__.__notes__ == [
        "not tried again: this client retries too large a share of its requests",
        "after 2 attempts",
    ]
    assert [len(worker.generated) for worker in workers] == [1, 1, 0, 0]


async def test_a_full_worker_costs_neither_an_attempt_nor_a_retry(router, workers):
    for worker in workers[:3]:
        worker.script = [refuse(Reason.RETRY_ELSEWHERE, "all slots are taken", metadata=FULL)]
    workers[3].script = [answer("at last")]
    async with with_one_retry(Client(router.address, max_attempts=1)) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert (client.stats.retries, client.stats.throttled) == (3, 0)
    assert whole.text == "at last"
