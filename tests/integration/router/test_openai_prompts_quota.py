"""Several prompts of one call and a quota, as OpenAI's client sees them: all are let in, or none."""

from __future__ import annotations

import asyncio

import grpc
import openai
import pytest
from openai import AsyncOpenAI

from chiron.auth.api_keys import NewKey
from chiron.auth.settings import AuthSettings
from chiron.internal.v1 import control_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import ChironError, metadata_of, reason_of, told_by
from chiron.v1 import inference_pb2 as pb
from chiron.v1.access_pb2 import KeyLimits, KeyTerms, Quota, Tenant
from tests.support.http_door import ANY, openai_at
from tests.support.openai_streams import Choice, answer, arrived, messages
from tests.support.wait import eventually


class Door:
    """One router that asks who calls, and one worker."""

    def __init__(self, worker, router, secret: str) -> None:
        self.worker, self.router, self.secret = worker, router, secret
        self.client = openai_at(router.router.http_url, secret)

    @property
    def in_use(self) -> list[dict[str, float]]:
        """What the tenant and its key use."""
        access = self.router.router._placer.access
        now = access._time()
        accounts = [*access._accounts.values(), *access._of_keys.values()]
        return [account.in_use(now) for account in accounts]

    def nothing_in_use(self) -> bool:
        return all(share <= 1e-9 for use in self.in_use for share in use.values())


@pytest.fixture
def start_door(start_worker, start_router, controller, stack):
    async def start(quota: Quota | None = None, *, slots: int = 16, **limits: float) -> Door:
        worker = await start_worker("a", batch_size=slots)
        key = NewKey.draw()
        controller.table.tenants.append(Tenant(name="acme", models=["*"], quota=quota))
        terms = KeyTerms(limits=KeyLimits(**limits))  # type: ignore[arg-type]
        controller.table.keys.append(
            control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="acme", terms=terms)
        )
        router = await start_router(worker, http=ANY, auth=AuthSettings(require=True), worker_queue=0)
        door = Door(worker, router, key.text)
        await stack.enter_async_context(door.client)
        return door

    return start


def asking(client: AsyncOpenAI, prompts: int, **options: object) -> asyncio.Task:
    prompt = [f"prompt {index}" for index in range(prompts)]
    return asyncio.create_task(client.completions.create(model="m", prompt=prompt, **options))


def whole(text: str = "ok") -> list[pb.GenerateResponse]:
    return messages([Choice([text])], [[]])


async def test_as_many_prompts_as_the_quota_has_places_are_answered(start_door) -> None:
    door = await start_door(concurrent=3)
    for _ in range(2):
        asked = asking(door.client, 3)
        for call in [await arrived(door.worker, asked) for _ in range(3)]:
            answer(call, whole(call.request.prompt))
        assert [choice.text for choice in (await asked).choices] == ["prompt 0", "prompt 1", "prompt 2"]
        assert door.nothing_in_use()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("limit", "most", "said"),
    [
        ("concurrent", 3, "is 4 requests"),
        ("requests_per_s", 3.5, "is 4 requests at once"),
        ("tokens_per_min", 200, "may use 408 tokens of prompt and max_tokens together"),
    ],
)
async def test_prompts_that_never_fit_are_not_tried_again_and_cost_nothing(
    start_door, limit: str, most: float, said: str, streamed: bool
) -> None:
    door = await start_door(**{limit: most})
    requests = []

    async def note(request: object) -> None:
        requests.append(request)

    async with openai_at(door.router.router.http_url, door.secret) as client:
        client._client.event_hooks["request"].append(note)
        retrying = client.with_options(max_retries=3)
        with pytest.raises(openai.RateLimitError) as raised:
            await asking(retrying, 4, max_tokens=100, stream=streamed)
    assert len(requests) == 1
    error = raised.value
    assert (error.code, error.type) == ("quota_exceeded", "rate_limit_error")
    key_id = door.secret[3:15]
    assert f"the call {said}; the quota of API key {key_id} ({limit}) is {most:g}" in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert door.worker.calls.empty()
    assert door.in_use
    assert door.nothing_in_use()


async def test_a_tenant_s_limit_is_said_to_be_the_tenant_s(start_door) -> None:
    door = await start_door(Quota(concurrent=2), concurrent=8)
    with pytest.raises(openai.RateLimitError, match=r"the quota of this tenant \(concurrent\) is 2 at once"):
        await asking(door.client, 3)


async def test_prompts_that_fit_later_are_told_when_and_none_of_them_is_begun(start_door) -> None:
    door = await start_door(concurrent=3)
    first = asking(door.client, 2)
    calls = [await arrived(door.worker, first) for _ in range(2)]
    with pytest.raises(
        openai.RateLimitError, match=r"2 requests of API key .* run already; 2 more are beyond its quota of 3"
    ) as raised:
        await asking(door.client, 2)
    assert int(raised.value.response.headers["retry-after-ms"]) == 1000
    assert "x-should-retry" not in raised.value.response.headers
    # The place that is left is still there, and no worker has seen the call.
    third = asking(door.client, 1)
    calls.append(await arrived(door.worker, third))
    assert door.worker.calls.empty()
    for call in calls:
        answer(call, whole())
    await asyncio.gather(first, third)


async def test_a_prompt_that_is_done_gives_its_place_back_before_the_others(start_door) -> None:
    door = await start_door(concurrent=2)
    both = asking(door.client, 2)
    calls = [await arrived(door.worker, both) for _ in range(2)]
    answer(calls[0], whole())
    await eventually(lambda: [use["concurrent"] for use in door.in_use if "concurrent" in use] == [0.5])
    other = asking(door.client, 1)
    answer(await arrived(door.worker, other), whole())
    await other
    answer(calls[1], whole())
    await both


async def test_a_client_that_leaves_gives_all_back(start_door) -> None:
    door = await start_door(Quota(concurrent=4), slots=2, concurrent=4)
    asked = asking(door.client, 4)
    calls = [await arrived(door.worker, asked) for _ in range(2)]
    await door.router.queued(2)
    assert [use["concurrent"] for use in door.in_use] == [1.0, 1.0]
    asked.cancel()
    await asyncio.gather(*(call.ended.wait() for call in calls))
    await eventually(door.nothing_in_use, what="all four places are free")


async def test_a_prompt_that_fails_ends_the_others_and_gives_all_back(start_door) -> None:
    door = await start_door(concurrent=4)
    asked = asking(door.client, 4)
    calls = [await arrived(door.worker, asked) for _ in range(4)]
    calls[2].fail(ChironError.invalid([("prompt", "cannot be read")]))
    with pytest.raises(openai.BadRequestError, match="cannot be read"):
        await asked
    assert door.nothing_in_use()


async def test_at_the_grpc_door_too_what_never_fits_is_told_no_time(start_door) -> None:
    door = await start_door(concurrent=1, tokens_per_min=100)
    metadata = bearer_metadata(door.secret)
    sampling = pb.SamplingParams(max_tokens=10)
    running = door.router.stub.Generate(
        pb.GenerateRequest(model="m", prompt="x", sampling=sampling), metadata=metadata
    )
    call = await door.worker.calls.get()
    sampling.max_tokens = 1000
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await door.router.stub.Generate(
            pb.GenerateRequest(model="m", prompt="x", sampling=sampling), metadata=metadata
        ).read()
    assert reason_of(refused.value) == "QUOTA_EXCEEDED"
    # Not the one that would be gone in a moment.
    assert metadata_of(refused.value)["limit"] == "tokens_per_min"
    told = told_by(refused.value)
    assert told is not None
    assert told.retry_after_s is None
    call.text("done")
    call.finish()
    async for _ in running:
        pass
