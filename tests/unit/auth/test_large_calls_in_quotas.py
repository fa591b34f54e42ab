"""A call that needs much of its quota is let in although small ones take all that comes; its own clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from chiron.auth.quotas import Account
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2

Quota = access_pb2.Quota
A_MINUTE = 600
"""Tokens: ten come in each second."""
LONGEST_S = 2 * 60.0
"""Twice the time in which a whole quota comes in."""


@dataclass
class Caller:
    """Asks for so many tokens, comes again when it is told, and asks anew once it has been let in."""

    tokens: int
    again_s: float | None = None
    """Pause before it asks anew; None: it asks for one call."""
    key: Account | None = None
    gives_up: bool = False
    """It never comes again."""


def told_s(error: ChironError) -> float:
    """When the refused one is to come again."""
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0
    return error.retry_after_s


def run(account: Account, callers: list[Caller], until: float) -> Iterator[tuple[float, Caller]]:
    """Who is let in, and when."""
    agenda = [(0.0, index) for index in range(len(callers))]
    while agenda and agenda[0][0] <= until:
        now, index = heapq.heappop(agenda)
        caller = callers[index]
        try:
            account.take(caller.tokens, now, caller.key).end()
        except ChironError as error:
            if not caller.gives_up:
                heapq.heappush(agenda, (now + told_s(error), index))
            continue
        yield now, caller
        if caller.again_s is not None:
            heapq.heappush(agenda, (now + caller.again_s, index))


def used_up() -> Account:
    account = Account(Quota(tokens_per_min=A_MINUTE), 0.0)
    account.take(A_MINUTE, 0.0).end()
    return account


def greedy() -> list[Caller]:
    """Callers who together would take all that comes in, and more."""
    return [Caller(10, again_s=0.1) for _ in range(3)]


def test_a_call_as_large_as_its_quota_is_let_in_behind_small_ones_without_end() -> None:
    large = Caller(A_MINUTE)
    taken = list(run(used_up(), [*greedy(), large], 10 * LONGEST_S))
    [when] = [now for now, caller in taken if caller is large]
    # A small one stood in line before it.
    assert 60.0 < when <= LONGEST_S + 2 * 10 / 10
    # Meanwhile the others had the other half, and afterwards all.
    assert sum(caller.tokens for now, caller in taken if now < when) >= 0.99 * when * A_MINUTE / 60 / 2
    after = sum(caller.tokens for now, caller in taken if now > when)
    assert after >= 0.99 * (10 * LONGEST_S - when) * A_MINUTE / 60


def test_nobody_who_asks_again_waits_without_end_whatever_the_sizes() -> None:
    larger = [Caller(size, again_s=0.1) for size in (150, 300, 450, A_MINUTE)]
    last = dict.fromkeys(map(id, larger), 0.0)
    until = 100 * LONGEST_S
    # Each stands behind one call of each other size at most, and asks a moment after its last one.
    longest = 2 * (10 + 150 + 300 + 450 + A_MINUTE) / (A_MINUTE / 60) + 0.1
    for now, caller in run(used_up(), [*greedy(), *larger], until):
        if id(caller) in last:
            assert now - last[id(caller)] <= longest
            last[id(caller)] = now
    assert min(last.values()) >= until - longest


def test_without_others_it_is_let_in_when_it_is_told_at_first() -> None:
    large = Caller(A_MINUTE)
    assert list(run(used_up(), [large], 2 * LONGEST_S)) == [(60.0, large)]


def test_who_does_not_come_again_holds_nobody_up() -> None:
    account = used_up()
    taken = list(run(account, [*greedy(), Caller(A_MINUTE, gives_up=True)], 5 * LONGEST_S))
    # It was told 60 s, and has its place for 2 s more: what was saved for it is there for the others.
    assert sum(caller.tokens for _, caller in taken) >= 0.99 * 5 * LONGEST_S * A_MINUTE / 60


def test_what_is_let_in_is_no_more_than_the_quota_over_time() -> None:
    for callers in (greedy(), [*greedy(), Caller(A_MINUTE, again_s=0.1), Caller(250, again_s=0.1)]):
        tokens = sum(caller.tokens for _, caller in run(used_up(), callers, 10 * LONGEST_S))
        assert tokens <= 10 * LONGEST_S * A_MINUTE / 60 + 1e-3


def test_of_a_key_and_of_its_tenant_each_keeps_a_place() -> None:
    tenant = Account(Quota(tokens_per_min=2 * A_MINUTE), 0.0)
    key = Account(Quota(tokens_per_min=A_MINUTE), 0.0, "k1")
    tenant.take(A_MINUTE, 0.0, key).end()
    tenant.take(A_MINUTE, 0.0).end()
    large = Caller(A_MINUTE, key=key)
    others = [Caller(10, again_s=0.1), Caller(10, again_s=0.1, key=key)] * 3
    whens = [now for now, caller in run(tenant, [*others, large], 10 * LONGEST_S) if caller is large]
    assert len(whens) == 1
    assert whens[0] <= 2 * LONGEST_S


def test_several_prompts_at_once_come_in_behind_single_requests() -> None:
    account = Account(Quota(requests_per_s=10), 0.0)
    account.take_all([0] * 10, 0.0)
    now, let_in = 0.0, False
    while not let_in and now < 60:
        now += 0.05
        for _ in range(2):
            try:
                account.take(0, now)
            except ChironError:
                break
        try:
            account.take_all([0] * 10, now)
            let_in = True
        except ChironError:
            continue
    assert let_in
    assert now <= 2.1


def test_a_call_of_several_prompts_leaves_the_line_as_it_is_let_in() -> None:
    account = Account(Quota(tokens_per_min=A_MINUTE, requests_per_s=4), 0.0)
    account.take(A_MINUTE, 0.0).end()
    with pytest.raises(ChironError) as refused:
        account.take_all([200, 300], 1.0)
    now = 1.0 + told_s(refused.value)
    account.take_all([200, 300], now)
    # Nothing is saved for it any more: what comes in is for whoever asks.
    account.take(10, now + 1.0)


def test_a_call_keeps_its_place_while_another_limit_keeps_it_out() -> None:
    account = Account(Quota(tokens_per_min=A_MINUTE, concurrent=1), 0.0)
    account.take(A_MINUTE, 0.0).end()
    with pytest.raises(ChironError) as refused:
        account.take(A_MINUTE, 0.0)
    now = told_s(refused.value)
    running = account.take(0, now - 1.0)
    for _ in range(20):
        with pytest.raises(ChironError, match="run already") as refused:
            account.take(A_MINUTE, now)
        now += told_s(refused.value)
    running.end()
    # What was saved for it meanwhile was nobody else's.
    with pytest.raises(ChironError, match="tokens a minute"):
        account.take(A_MINUTE // 2 + 10, now)
    account.take(A_MINUTE, now)
