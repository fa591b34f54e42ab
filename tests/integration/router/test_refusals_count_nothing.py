"""A request that no instance worked on leaves its key's quota as it was, at both doors."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import pytest_asyncio

from chiron.auth.api_keys import NewKey
from chiron.auth.settings import AuthSettings
from chiron.internal.v1 import control_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import ChironError, Reason, reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1.access_pb2 import KeyLimits, KeyTerms, Tenant
from tests.support.fake_worker import FakeCall, FakeWorker
from tests.support.http_door import ANY, post
from tests.support.wait import eventually

KEY = NewKey.draw()
METADATA = bearer_metadata(KEY.text)


class Doors:
    """A router whose one key may use 1,000 tokens a minute; each request asks for 900."""

    def __init__(self, router, worker: FakeWorker) -> None:
        self.router, self.worker = router, worker

    async def http(self, model: str = "m") -> tuple[int, str]:
        body = {"model": model, "prompt": "Hi", "max_tokens": 900}
        answer = await post(
            self.router.router.http_url, "/v1/completions", body, authorization=f"Bearer {KEY.text}"
        )
        return answer.status, answer.json().get("error", {}).get("code", "")

    def grpc(self, model: str = "m") -> grpc.aio.UnaryStreamCall:
        message = pb.GenerateRequest(model=model, prompt="Hi", sampling=pb.SamplingParams(max_tokens=900))
        return self.router.stub.Generate(message, metadata=METADATA)

    async def route(self, model: str = "m") -> pb.RouteResponse:
        message = pb.RouteRequest(model=model, prompt_tokens=1, max_tokens=900)
        return await self.router.stub.Route(message, metadata=METADATA)

    def running(self) -> int:
        """Requests of the key that count as running."""
        account = self.router.router._placer.access._of_keys.get(KEY.key_id)
        return account.running if account is not None else 0

    async def refused(self, call) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call:
                pass
        return reason_of(raised.value)

    async def answered(self) -> None:
        """One more is let in at the HTTP door, and answered."""
        asking = asyncio.create_task(self.http())
        end(await self.worker.calls.get())
        assert await asking == (200, "")


def end(call: FakeCall) -> None:
    usage = pb.Usage(prompt_tokens=1, completion_tokens=1)
    delta = pb.OutputDelta(token_ids=[1], text="ok", finish_reason=pb.FINISH_REASON_STOP, usage=usage)
    call.send(pb.GenerateResponse(deltas=[delta]))
    call.finish()


@pytest_asyncio.fixture
async def doors(start_worker, start_router, controller) -> Doors:
    worker = await start_worker("a", batch_size=1)
    controller.table.tenants.append(Tenant(name="acme", models=["*"]))
    limits = KeyLimits(tokens_per_min=1000)
    controller.table.keys.append(
        control_pb2.RoutedKey(
            key_id=KEY.key_id, digest=KEY.digest, tenant="acme", terms=KeyTerms(limits=limits)
        )
    )
    router = await start_router(worker, http=ANY, auth=AuthSettings(require=True), worker_queue=0)
    return Doors(router, worker)


async def test_an_unknown_model_costs_nothing(doors: Doors) -> None:
    assert await doors.http("ghost") == (404, "model_not_found")
    assert await doors.refused(doors.grpc("ghost")) == "MODEL_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await doors.route("ghost")
    assert reason_of(raised.value) == "MODEL_NOT_FOUND"
    await doors.answered()
    assert await doors.http() == (429, "quota_exceeded")


async def test_what_a_worker_turns_away_costs_nothing(doors: Doors) -> None:
    doors.worker.refuse_with = ChironError(Reason.INVALID_ARGUMENT, "the engine does not know this")
    assert (await doors.http())[0] == 400
    assert await doors.refused(doors.grpc()) == "INVALID_ARGUMENT"
    doors.worker.refuse_with = None
    await doors.answered()


async def test_what_its_caller_gives_up_before_it_is_placed_costs_nothing(doors: Doors) -> None:
    # Another tenant's request has the only slot.
    other = NewKey.draw()
    doors.router.router._placer.access.take_delta(
        control_pb2.RoutingDelta(
            tenants=[Tenant(name="other", models=["*"])],
            keys=[control_pb2.RoutedKey(key_id=other.key_id, digest=other.digest, tenant="other")],
        )
    )
    message = pb.GenerateRequest(model="m", prompt="Hi")
    ahead = doors.router.stub.Generate(message, metadata=bearer_metadata(other.text))
    running = await doors.worker.calls.get()
    waiting = doors.grpc()
    await eventually(lambda: doors.running() == 1)
    waiting.cancel()
    await eventually(lambda: doors.running() == 0)
    end(running)
    async for _ in ahead:
        pass
    await doors.answered()


async def test_what_its_caller_gives_up_at_a_worker_counts(doors: Doors) -> None:
    call = doors.grpc()
    await doors.worker.calls.get()
    call.cancel()
    await eventually(lambda: doors.running() == 0)
    assert await doors.http() == (429, "quota_exceeded")


async def test_what_ends_after_an_instance_worked_on_it_counts(doors: Doors) -> None:
    call = doors.grpc()
    (await doors.worker.calls.get()).fail(ChironError(Reason.ABORTED, "superseded"))
    assert await doors.refused(call) == "ABORTED"
    assert await doors.http() == (429, "quota_exceeded")


async def test_what_broke_after_its_first_token_counts(doors: Doors) -> None:
    call = doors.grpc()
    at_worker = await doors.worker.calls.get()
    at_worker.text("a")
    at_worker.fail(ChironError(Reason.INVALID_ARGUMENT, "in the middle"))
    assert await doors.refused(call) == "INVALID_ARGUMENT"
    assert await doors.http() == (429, "quota_exceeded")
