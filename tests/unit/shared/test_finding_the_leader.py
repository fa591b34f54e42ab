"""Which controller is dialled next: the one a refusal names, else the next, and never in a hot loop."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from chiron.rpc.controllers import Controllers, check_addresses, split_addresses
from chiron.rpc.errors import ChironError, Reason

A, B, C = "a:1", "b:2", "c:3"


def not_leader(leader: str = "") -> grpc.aio.AioRpcError:
    status = rpc_status.to_status(
        ChironError(Reason.NOT_LEADER, "not me", metadata={"leader": leader}).to_status()
    )
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata)
    )


def unreachable() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class Channel:
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in seconds."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return made


def controllers(*addresses: str, **options: Any) -> Controllers:
    return Controllers(addresses or (A, B, C), rng=random.Random(1), **options)


def test_a_refusal_that_names_the_leader_is_followed_even_where_the_list_lacks_it() -> None:
    found = controllers()
    assert not found.failed(not_leader("d:4"))
    assert found.address == "d:4"


def test_without_a_name_the_next_of_the_list_is_tried() -> None:
    found = controllers()
    found.failed(unreachable())
    assert found.address == B
    found.failed(not_leader())
    assert found.address == C


async def test_followers_that_name_a_dead_leader_are_each_asked_once_before_a_pause(
    pauses: list[float],
) -> None:
    found = controllers()
    tried = []
    over = False
    while not over:
        tried.append(found.address)
        over = found.failed(unreachable() if found.address == C else not_leader(C))
        await found.pause()
    assert tried == [A, C, B]
    *first, last = pauses
    assert first == [0.0, 0.0]
    assert 0.1 <= last <= 0.2


async def test_the_pauses_between_rounds_double_up_to_two_seconds(pauses: list[float]) -> None:
    found = controllers(A)
    for _ in range(8):
        assert found.failed(unreachable())
        await found.pause()
    for made, length in zip(pauses, [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0], strict=True):
        assert length / 2 <= made <= length


async def test_a_leader_that_is_found_shortens_the_next_pause_again(pauses: list[float]) -> None:
    found = controllers(A, spread_s=0.0)
    for _ in range(6):
        found.failed(unreachable())
        await found.pause()
    found.found()
    found.failed(unreachable())
    await found.pause()
    found.failed(unreachable())
    await found.pause()
    assert pauses[-2] == 0.0
    assert pauses[-1] <= 0.2


async def test_many_that_lose_the_leader_at_once_come_back_spread_over_two_seconds(
    pauses: list[float],
) -> None:
    many = [Controllers((A, B), rng=random.Random(seed)) for seed in range(200)]
    for one in many:
        one.found()
        one.failed(unreachable())
        await one.pause()
    assert max(pauses) <= 2.0
    for second in range(4):
        among = sum(second / 2 <= pause < (second + 1) / 2 for pause in pauses)
        assert 25 <= among <= 75


def test_a_leader_that_says_itself_that_it_has_ceased_is_not_the_next_to_be_asked() -> None:
    found = controllers(A, B)
    found.found()
    found.failed(not_leader())
    assert found.address == B
    assert found.failed(unreachable())


def test_of_two_calls_that_fail_at_one_address_the_first_moves_on_for_both() -> None:
    found = controllers()
    found.failed(unreachable(), at=A)
    assert not found.failed(unreachable(), at=A)
    assert found.address == B


async def test_a_connection_is_kept_for_each_address_of_the_list_and_for_no_leader_of_the_past() -> None:
    opened: dict[str, Channel] = {}

    def open_channel(address: str) -> Any:
        opened[address] = Channel()
        return opened[address]

    found = controllers(A, B, open_channel=open_channel)
    first = found.channel()
    found.failed(not_leader("d:4"))
    found.channel()
    found.failed(unreachable())
    await found.pause()
    assert opened["d:4"].closed
    assert not opened[A].closed
    while found.address != A:
        found.failed(unreachable())
    assert found.channel() is first
    await found.close()
    assert opened[A].closed


def test_addresses_are_checked_with_the_key_s_name() -> None:
    check_addresses("controller", ("h:1", "[::1]:2"))
    for wrong in ((), ("h",), ("h:0",), ("h:70000",), ("h:1,i:2",)):
        with pytest.raises(ValueError, match=r"^controller: "):
            check_addresses("controller", wrong)


def test_addresses_come_separated_by_commas() -> None:
    assert split_addresses(" a:1 , b:2,") == (A, B)
