"""Quotas: what is taken, refused with a time, given back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.auth.quotas import Account, Hold, metered_max_tokens
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2

Quota = access_pb2.Quota


def refused_for(account: Account, tokens: int, now: float) -> float | None:
    """The time to wait that a refusal names; None: it names none."""
    with pytest.raises(ChironError) as caught:
        account.take(tokens, now)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value.retry_after_s


def test_requests_a_second_come_back_with_time() -> None:
    account = Account(Quota(requests_per_s=2), 0.0)
    account.take(0, 0.0)
    account.take(0, 0.0)
    wait_s = refused_for(account, 0, 0.1)
    assert wait_s == pytest.approx(0.4)
    account.take(0, 0.1 + wait_s)


def test_less_than_one_request_a_second_lets_one_through_at_a_time() -> None:
    account = Account(Quota(requests_per_s=0.1), 0.0)
    account.take(0, 0.0)
    assert refused_for(account, 0, 1.0) == pytest.approx(9.0)


def test_tokens_a_minute() -> None:
    account = Account(Quota(tokens_per_min=600), 0.0)
    account.take(500, 0.0)
    assert refused_for(account, 200, 0.0) == pytest.approx(10.0)
    account.take(200, 10.0)


def test_a_request_that_can_never_fit_is_told_no_time() -> None:
    assert refused_for(Account(Quota(tokens_per_min=600), 0.0), 601, 0.0) is None


def test_requests_at_once_end_with_their_holds_and_only_once() -> None:
    account = Account(Quota(concurrent=2), 0.0)
    first = account.take(0, 0.0)
    account.take(0, 0.0)
    assert refused_for(account, 0, 0.0) == 1.0
    first.end()
    first.end()
    first.undo()
    assert account.running == 1
    account.take(0, 0.0)


def test_a_refusal_takes_nothing() -> None:
    account = Account(Quota(requests_per_s=1, tokens_per_min=60), 0.0)
    assert refused_for(account, 61, 0.0) is None
    account.take(60, 0.0)
    refused_for(account, 10, 5.0)
    assert account.running == 1
    account.take(5, 5.0)


def test_what_never_ran_is_given_back() -> None:
    account = Account(Quota(requests_per_s=1, tokens_per_min=60), 0.0)
    account.take(60, 0.0).undo()
    assert account.running == 0
    account.take(60, 0.0)


def test_a_new_quota_counts_at_once_and_what_was_used_stays_used() -> None:
    account = Account(Quota(tokens_per_min=100), 0.0)
    account.take(100, 0.0)
    account.change(Quota(tokens_per_min=150), 0.0)
    account.take(50, 0.0)
    refused_for(account, 1, 0.0)
    account.change(Quota(), 0.0)
    account.take(10**9, 0.0)
    account.change(Quota(concurrent=1), 0.0)
    assert refused_for(account, 0, 0.0) == 1.0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40), st.booleans()), max_size=60),
    st.integers(1, 60),
)
def test_no_minute_gives_more_than_its_quota_and_a_burst(steps: list, per_minute: int) -> None:
    account = Account(Quota(tokens_per_min=per_minute), 0.0)
    now, taken = 0.0, 0
    holds: list[Hold] = []
    for pause_s, tokens, ends in steps:
        now += pause_s
        with contextlib.suppress(ChironError):
            holds.append(account.take(tokens, now))
            taken += tokens
        if ends and holds:
            holds.pop().end()
    assert account.running == len(holds)
    assert taken <= per_minute + per_minute * now / 60 + 1e-6


@pytest.mark.parametrize(
    ("quota", "asked", "most"),
    [
        (Quota(), 0, 0),
        (Quota(tokens_per_min=9), 0, 1024),
        (Quota(tokens_per_min=9, default_max_tokens=7), 0, 7),
        (Quota(tokens_per_min=9), 5000, 5000),
    ],
)
def test_a_metered_request_without_a_limit_gets_one(quota: access_pb2.Quota, asked: int, most: int) -> None:
    assert metered_max_tokens(quota, asked) == most
