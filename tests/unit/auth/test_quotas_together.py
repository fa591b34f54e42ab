"""Several requests of one call take of a quota together: all of them, or none and nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.auth.quotas import Account, Hold
from chiron.rpc.errors import ChironError, Reason
from chiron.v1.access_pb2 import Quota


def refused(account: Account, tokens: list[int], now: float = 0.0, key: Account | None = None) -> ChironError:
    with pytest.raises(ChironError) as caught:
        account.take_all(tokens, now, key)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value


@pytest.mark.parametrize(
    ("quota", "limit", "said"),
    [
        (Quota(concurrent=2), "concurrent", "is 3 requests; the quota of {} (concurrent) is 2 at once"),
        (
            Quota(requests_per_s=2.5),
            "requests_per_s",
            "is 3 requests at once; the quota of {} (requests_per_s) is 2.5 a second",
        ),
        (
            Quota(tokens_per_min=29),
            "tokens_per_min",
            "may use 30 tokens of prompt and max_tokens together; "
            "the quota of {} (tokens_per_min) is 29 a minute",
        ),
    ],
    ids=["concurrent", "requests_per_s", "tokens_per_min"],
)
@pytest.mark.parametrize("of", ["key", "tenant"])
def test_what_never_fits_names_the_limit_and_no_time(quota: Quota, limit: str, said: str, of: str) -> None:
    limited, free = Account(quota, 0.0, "abc" if of == "key" else ""), Quota()
    tenant, key = (Account(free, 0.0), limited) if of == "key" else (limited, Account(free, 0.0, "abc"))
    error = refused(tenant, [10, 10, 10], key=key)
    assert error.retry_after_s is None
    assert (error.metadata["limit"], error.metadata["limit_of"]) == (limit, of)
    assert said.format("API key abc" if of == "key" else "this tenant") in error.message
    assert (tenant.running, key.running) == (0, 0)
    # As many as the limit holds do fit.
    tenant.take_all([14, 15], 0.0, key)


def test_what_fits_later_is_told_when() -> None:
    account = Account(Quota(concurrent=3, requests_per_s=4, tokens_per_min=600), 0.0)
    running = account.take_all([100, 100], 0.0)
    error = refused(account, [100, 100])
    assert (error.metadata["limit"], error.retry_after_s) == ("concurrent", 1.0)
    for hold in running:
        hold.end()
    error = refused(account, [100, 100, 100])
    assert (error.metadata["limit"], error.retry_after_s) == ("requests_per_s", pytest.approx(0.25))
    error = refused(account, [200, 300])
    assert (error.metadata["limit"], error.retry_after_s) == ("tokens_per_min", pytest.approx(10.0))
    account.take_all([200, 300], 10.0)


@pytest.mark.parametrize("requests", [1, 2], ids=["one", "two"])
def test_never_counts_before_not_now(requests: int) -> None:
    account = Account(Quota(concurrent=2, tokens_per_min=100), 0.0)
    account.take_all([10, 10], 0.0)
    error = refused(account, [120 // requests] * requests)
    assert (error.metadata["limit"], error.retry_after_s) == ("tokens_per_min", None)


def test_each_request_gives_back_its_own_part() -> None:
    account = Account(Quota(concurrent=3, requests_per_s=3, tokens_per_min=60), 0.0)
    never_ran, ran, _ = account.take_all([10, 20, 30], 0.0)
    ran.end()
    never_ran.undo()
    never_ran.undo()
    assert account.in_use(0.0) == pytest.approx(
        {"concurrent": 1 / 3, "requests_per_s": 2 / 3, "tokens_per_min": 50 / 60}
    )


calls = st.lists(st.integers(0, 40), min_size=1, max_size=6)
quotas = st.builds(
    Quota,
    concurrent=st.integers(0, 5),
    requests_per_s=st.sampled_from([0.0, 0.3, 1.0, 2.5, 6.0]),
    tokens_per_min=st.integers(0, 120),
)


@given(
    quota=quotas,
    key_quota=quotas,
    steps=st.lists(st.tuples(st.floats(0, 5), calls, st.integers(0, 9), st.booleans()), max_size=40),
)
def test_a_call_takes_all_that_it_needs_or_nothing_and_fits_when_it_is_told(
    quota: Quota, key_quota: Quota, steps: list[tuple[float, list[int], int, bool]]
) -> None:
    tenant, key = Account(quota, 0.0), Account(key_quota, 0.0, "abc")
    now = 0.0
    holds: list[Hold] = []
    for pause_s, tokens, index, undo in steps:
        now += pause_s
        before = tenant.in_use(now), key.in_use(now)
        refusal, taken = None, []
        try:
            taken = tenant.take_all(tokens, now, key)
        except ChironError as error:
            refusal = error
        if refusal is not None:
            assert (tenant.in_use(now), key.in_use(now)) == before
            fresh = Account(quota, now), Account(key_quota, now, "abc")
            if refusal.retry_after_s is None:
                # Not even where nothing is in use.
                refused(fresh[0], tokens, now, fresh[1])
            else:
                assert math.isfinite(refusal.retry_after_s)
                assert len(fresh[0].take_all(tokens, now, fresh[1])) == len(tokens)
        else:
            assert [hold.tokens for hold in taken] == tokens
            holds += taken
        if holds:
            hold = holds.pop(index % len(holds))
            hold.undo() if undo else hold.end()
        assert tenant.running == key.running == len(holds)
        for account, limits in ((tenant, quota), (key, key_quota)):
            assert not limits.concurrent or account.running <= limits.concurrent
    for hold in holds:
        hold.undo()
    for account in (tenant, key):
        assert all(share <= 1e-9 for share in account.in_use(now + 120.0).values())
