"""What a worker answers to tickets that do not fit: each refused before a token, with its own reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chiron.auth.keys import KeyRing
from chiron.auth.tickets import sign
from chiron.internal.v1 import auth_pb2, worker_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import types_pb2
from tests.support.worker_process import (
    WorkerProcess,
    failure,
    read_all,
    request,
    violated_fields,
    worker_process,
)

SPEC = {"name": "toy", "engine": "sim", "engineArgs": {"load_time_s": 0}}
RING = KeyRing.draw()
INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
_LONG_MS = 60_000.0
_numbers = iter(range(10**6))

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    async with worker_process(folder, SPEC, require_tickets="true") as process:
        await process.until()
        await give_keys(process, RING)
        yield process


async def give_keys(worker: WorkerProcess, ring: KeyRing) -> None:
    await worker.control.SetTicketKeys(worker_pb2.SetTicketKeysRequest(keys=ring.to_message()))


async def clock_ms(worker: WorkerProcess) -> float:
    return (await worker.load_when(lambda _: True)).clock_ms


async def ticket(worker: WorkerProcess, request_id: str, ring: KeyRing = RING, **fields: Any) -> bytes:
    """A ticket as a router would sign it, but for what `fields` change."""
    right: dict[str, Any] = {
        "request_id": request_id,
        "model": "toy",
        "instance_id": "toy-000001",
        "incarnation": 7,
        "request_class": INTERACTIVE,
        "max_tokens": 8,
        "max_choices": 1,
        "expires_at_ms": await clock_ms(worker) + _LONG_MS,
        "nonce": str(next(_numbers)).encode(),
    }
    return sign(worker_pb2.Ticket(**(right | fields)), ring)


async def refused(worker: WorkerProcess, **fields: Any) -> tuple[grpc.StatusCode, str]:
    error = await failure(worker.inference.Generate(request(**fields)))
    return error.code(), reason_of(error)


def new_id() -> str:
    return f"r-{next(_numbers)}"


async def test_a_router_s_ticket_is_taken(worker: WorkerProcess) -> None:
    name = new_id()
    deltas = await read_all(
        worker.inference.Generate(request(request_id=name, ticket=await ticket(worker, name)))
    )
    assert deltas[-1].usage.completion_tokens == 8


async def test_without_a_ticket_nothing_is_generated(worker: WorkerProcess) -> None:
    assert await refused(worker) == (UNAUTHENTICATED, "TICKET_REQUIRED")


async def test_a_replayed_ticket_is_refused(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name)
    await read_all(worker.inference.Generate(request(request_id=name, ticket=given)))
    assert await refused(worker, request_id=name, ticket=given) == (UNAUTHENTICATED, "TICKET_USED")


async def test_of_many_uses_of_one_ticket_at_once_one_succeeds(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name)
    calls = [read_all(worker.inference.Generate(request(request_id=name, ticket=given))) for _ in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    reasons = sorted(reason_of(one) if isinstance(one, grpc.aio.AioRpcError) else "" for one in outcomes)
    assert reasons == ["", *["TICKET_USED"] * 7]


@pytest.mark.parametrize(
    "other", [{"instance_id": "toy-000002"}, {"incarnation": 6}], ids=["instance", "restart"]
)
async def test_a_ticket_for_another_instance_or_an_earlier_start_goes_elsewhere(
    worker: WorkerProcess, other: dict[str, Any]
) -> None:
    name = new_id()
    given = await ticket(worker, name, **other)
    assert await refused(worker, request_id=name, ticket=given) == (
        grpc.StatusCode.UNAVAILABLE,
        "RETRY_ELSEWHERE",
    )


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("sampling.max_tokens", {"sampling": {"max_tokens": 9}}),
        ("sampling.n", {"sampling": {"n": 2, "temperature": 1.0}}),
        ("request_class", {"request_class": BATCH}),
        ("model", {"model": "other"}),
        ("attempt", {"attempt": 3}),
        ("request_id", {"request_id": "somebody-else"}),
    ],
)
async def test_more_than_the_ticket_says_is_refused_by_name(
    worker: WorkerProcess, field: str, asked: dict[str, Any]
) -> None:
    name = new_id()
    given = await ticket(worker, name)
    error = await failure(
        worker.inference.Generate(request(**({"request_id": name, "ticket": given} | asked)))
    )
    assert (error.code(), reason_of(error)) == (DENIED, "TICKET_MISMATCH")
    assert violated_fields(error) == [field]
    await read_all(worker.inference.Generate(request(request_id=name, ticket=given)))


async def test_a_longer_prompt_than_the_ticket_allows_is_refused(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name, max_prompt_tokens=3)
    error = await failure(
        worker.inference.Generate(request("one two three four five six seven", request_id=name, ticket=given))
    )
    assert (error.code(), reason_of(error)) == (DENIED, "TICKET_MISMATCH")
    assert violated_fields(error) == ["prompt"]


async def test_a_request_that_names_no_limit_gets_the_ticket_s(worker: WorkerProcess) -> None:
    name = new_id()
    asked = request(request_id=name, ticket=await ticket(worker, name, max_tokens=5))
    asked.sampling.ClearField("max_tokens")
    deltas = await read_all(worker.inference.Generate(asked))
    assert deltas[-1].usage.completion_tokens == 5


async def test_an_expired_ticket_is_refused_and_routers_hear_the_clock_again(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name, expires_at_ms=await clock_ms(worker) - 1.0)
    watch = worker.network.WatchLoad(worker_pb2.WatchLoadRequest(subscriber="test"))
    before = await watch.read()
    assert await refused(worker, request_id=name, ticket=given) == (UNAUTHENTICATED, "TICKET_EXPIRED")
    async with asyncio.timeout(10.0):
        after = await watch.read()
    watch.cancel()
    assert after.clock_ms > before.clock_ms


def _bit_flipped(wire: bytes) -> bytes:
    signed = auth_pb2.SignedTicket.FromString(wire)
    signed.mac = bytes([signed.mac[0] ^ 1]) + signed.mac[1:]
    return signed.SerializeToString()


def _raised(wire: bytes) -> bytes:
    """The signature of one ticket on a better one."""
    signed = auth_pb2.SignedTicket.FromString(wire)
    better = worker_pb2.Ticket.FromString(signed.ticket)
    better.max_tokens = 100_000
    signed.ticket = better.SerializeToString()
    return signed.SerializeToString()


def _unsigned(wire: bytes) -> bytes:
    signed = auth_pb2.SignedTicket.FromString(wire)
    signed.ClearField("mac")
    return signed.SerializeToString()


@pytest.mark.parametrize(
    "forge", [_bit_flipped, _raised, _unsigned, lambda _: b"\xff\xff", lambda wire: wire[:9]]
)
async def test_a_forged_ticket_is_refused(worker: WorkerProcess, forge: Any) -> None:
    name = new_id()
    given = forge(await ticket(worker, name))
    assert await refused(worker, request_id=name, ticket=given) == (UNAUTHENTICATED, "TICKET_INVALID")


async def test_a_ticket_of_a_stranger_s_key_is_refused(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name, KeyRing.draw())
    assert await refused(worker, request_id=name, ticket=given) == (UNAUTHENTICATED, "TICKET_KEY_UNKNOWN")


async def test_a_stranger_s_secret_under_a_known_name_is_refused(worker: WorkerProcess) -> None:
    stranger = KeyRing.draw()
    name = new_id()
    signed = auth_pb2.SignedTicket.FromString(await ticket(worker, name, stranger))
    signed.key_id = RING.signing_key_id
    given = signed.SerializeToString()
    assert await refused(worker, request_id=name, ticket=given) == (UNAUTHENTICATED, "TICKET_INVALID")


async def test_the_ticket_s_priority_class_and_times_count(worker: WorkerProcess) -> None:
    name = new_id()
    given = await ticket(worker, name, elapsed_ms=9_000.0, request_class=BATCH)
    deltas = await read_all(worker.inference.Generate(request(request_id=name, ticket=given)))
    assert deltas[-1].timing.ttft_ms > 9_000


async def test_a_newer_attempt_ends_the_older_and_an_older_is_refused(worker: WorkerProcess) -> None:
    name = new_id()
    long = {"sampling": {"max_tokens": 2000}, "request_id": name}
    first = worker.inference.Generate(
        request(**long, attempt=1, ticket=await ticket(worker, name, attempt=1, max_tokens=2000))
    )
    await first.read()
    older = await ticket(worker, name, attempt=0)
    assert await refused(worker, request_id=name, ticket=older) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "DUPLICATE_REQUEST",
    )
    newer = await ticket(worker, name, attempt=2)
    await read_all(worker.inference.Generate(request(request_id=name, attempt=2, ticket=newer)))
    assert reason_of(await failure(first)) == "ABORTED"


async def test_nobody_ends_another_tenant_s_request_by_guessing_its_id(worker: WorkerProcess) -> None:
    name = new_id()
    mine = worker.inference.Generate(
        request(
            request_id=name,
            sampling={"max_tokens": 300},
            ticket=await ticket(worker, name, tenant="acme", max_tokens=300),
        )
    )
    await mine.read()
    theirs = await ticket(worker, name, tenant="rival", attempt=9)
    assert await refused(worker, request_id=name, attempt=9, ticket=theirs) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "DUPLICATE_REQUEST",
    )
    assert (await read_all(mine))[-1].usage.completion_tokens == 300


async def test_a_rotation_takes_keys_away_only_after_a_whole_period(worker: WorkerProcess) -> None:
    ring = RING
    try:
        for accepted in (True, False):
            ring = ring.rotated()
            await give_keys(worker, ring)
            name = new_id()
            given = await ticket(worker, name, RING)
            if accepted:
                await read_all(worker.inference.Generate(request(request_id=name, ticket=given)))
            else:
                assert await refused(worker, request_id=name, ticket=given) == (
                    UNAUTHENTICATED,
                    "TICKET_KEY_UNKNOWN",
                )
    finally:
        await give_keys(worker, RING)


async def test_keys_are_set_on_the_control_socket_alone(worker: WorkerProcess) -> None:
    stolen = worker_pb2.SetTicketKeysRequest(keys=KeyRing.draw().to_message())
    error = await failure(worker.network.SetTicketKeys(stolen))
    assert (error.code(), reason_of(error)) == (DENIED, "NOT_CONTROL_SOCKET")


async def test_keys_that_cannot_be_used_are_refused_by_name(worker: WorkerProcess) -> None:
    error = await failure(worker.control.SetTicketKeys(worker_pb2.SetTicketKeysRequest()))
    assert violated_fields(error) == ["keys"]


async def test_no_secret_is_logged(worker: WorkerProcess) -> None:
    for key in RING.keys:
        for form in (key.secret.hex(), repr(key.secret)[2:-1]):
            assert form not in worker.log


async def test_before_it_has_keys_a_worker_sends_everybody_elsewhere(tmp_path: Path) -> None:
    async with worker_process(tmp_path, SPEC, require_tickets="true") as keyless:
        await keyless.until()
        name = new_id()
        for fields in ({}, {"request_id": name, "ticket": await ticket(keyless, name)}):
            assert await refused(keyless, **fields) == (grpc.StatusCode.UNAVAILABLE, "RETRY_ELSEWHERE")
