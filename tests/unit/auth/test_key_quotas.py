"""The quotas of a tenant and of one of its keys: both hold, and the error says which one was hit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.auth.quotas import Account, Hold
from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1.access_pb2 import Quota
from services.router.holds import LookasideHolds


def accounts(tenant: Quota, key: Quota) -> tuple[Account, Account]:
    return Account(tenant, 0.0), Account(key, 0.0, "abc")


def refusal(tenant: Account, key: Account, tokens: int = 0, now: float = 0.0) -> ChironError:
    with pytest.raises(ChironError) as caught:
        tenant.take(tokens, now, key)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value


@pytest.mark.parametrize(
    ("limit", "tokens", "wait_s"),
    [
        (Quota(requests_per_s=0.5), 0, 2.0),
        (Quota(tokens_per_min=60), 60, 60.0),
        (Quota(concurrent=1), 0, 1.0),
    ],
    ids=["requests_per_s", "tokens_per_min", "concurrent"],
)
@pytest.mark.parametrize("of", ["key", "tenant"])
def test_the_error_names_the_limit_and_whose_it_is(limit: Quota, tokens: int, wait_s: float, of: str) -> None:
    tenant, key = accounts(*((Quota(), limit) if of == "key" else (limit, Quota())))
    tenant.take(tokens, 0.0, key)
    error = refusal(tenant, key, tokens)
    [(field, _)] = [(each.name, value) for each, value in limit.ListFields()]
    told = {"limit": field, "limit_of": of} | ({"key_id": "abc"} if of == "key" else {})
    assert (error.metadata, error.retry_after_s) == (told, pytest.approx(wait_s))
    assert ("API key abc" if of == "key" else "this tenant") in error.message


def test_where_both_stand_in_the_way_the_longer_one_is_told() -> None:
    for tenant_rate, key_rate, of in ((1.0, 0.1, "key"), (0.1, 1.0, "tenant")):
        tenant, key = accounts(Quota(requests_per_s=tenant_rate), Quota(requests_per_s=key_rate))
        tenant.take(0, 0.0, key)
        error = refusal(tenant, key)
        assert (error.metadata["limit_of"], error.retry_after_s) == (of, pytest.approx(10.0))


def test_what_never_fits_counts_as_the_longest() -> None:
    tenant, key = accounts(Quota(tokens_per_min=600), Quota(tokens_per_min=100))
    tenant.take(600, 0.0)
    error = refusal(tenant, key, 101)
    assert (error.metadata["limit_of"], error.retry_after_s) == ("key", None)


def test_a_refusal_takes_nothing_of_either() -> None:
    tenant, key = accounts(Quota(tokens_per_min=100), Quota(tokens_per_min=50))
    refusal(tenant, key, 60)
    tenant.take(50, 0.0, key)
    refusal(tenant, key, 10)
    tenant.take(50, 0.0)
    assert (tenant.running, key.running) == (2, 1)


def test_a_hold_gives_both_back_and_takes_both_again() -> None:
    tenant, key = accounts(Quota(tokens_per_min=100, concurrent=1), Quota(tokens_per_min=60, concurrent=1))
    hold = tenant.take(60, 0.0, key)
    hold.undo()
    assert (tenant.in_use(0.0), key.in_use(0.0)) == ({"concurrent": 0, "tokens_per_min": 0},) * 2
    hold.redo()
    assert key.in_use(0.0) == {"concurrent": 1, "tokens_per_min": 1}
    assert tenant.in_use(0.0) == {"concurrent": 1, "tokens_per_min": pytest.approx(0.6)}
    hold.end()
    assert (tenant.running, key.running) == (0, 0)


def test_a_key_leaves_to_others_what_it_may_not_use_itself() -> None:
    tenant, key = accounts(Quota(concurrent=3), Quota(concurrent=1))
    tenant.take(0, 0.0, key)
    assert refusal(tenant, key).metadata["limit_of"] == "key"
    tenant.take(0, 0.0)
    tenant.take(0, 0.0)
    assert refusal(tenant, Account(Quota(concurrent=9), 0.0, "other")).metadata["limit_of"] == "tenant"


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 40), st.sampled_from(["a", "b"]), st.booleans()),
        max_size=60,
    ),
    st.integers(20, 60),
    st.integers(10, 50),
)
def test_neither_quota_is_ever_gone_beyond(steps: list, per_minute: int, per_minute_of_key: int) -> None:
    tenant = Account(Quota(tokens_per_min=per_minute), 0.0)
    keys = {name: Account(Quota(tokens_per_min=per_minute_of_key), 0.0, name) for name in "ab"}
    now, taken = 0.0, {"a": 0, "b": 0}
    holds: list[Hold] = []
    for pause_s, tokens, name, ends in steps:
        now += pause_s
        with contextlib.suppress(ChironError):
            holds.append(tenant.take(tokens, now, keys[name]))
            taken[name] += tokens
        if ends and holds:
            holds.pop().end()
    assert tenant.running == len(holds) == sum(key.running for key in keys.values())
    assert sum(taken.values()) <= per_minute * (1 + now / 60) + 1e-6
    assert max(taken.values()) <= per_minute_of_key * (1 + now / 60) + 1e-6


class TestLookaside:
    """A request that comes again goes on with what it held, of its own key alone."""

    def setup_method(self) -> None:
        self.tenant, self.key = accounts(Quota(), Quota(concurrent=1, tokens_per_min=60))
        self.holds = LookasideHolds()

    def route(self, key: Account | None, now: float = 0.0) -> Hold:
        reclaimed = self.holds.reclaim(self.tenant, "r", 60, key)
        hold = reclaimed or self.tenant.take(60, now, key)
        self.holds.hand_out(hold, "a", "r", now + 2.0)
        return hold

    def heard(self, **ids: list[str]) -> None:
        fields = {f"{what}_request_ids": names for what, names in ids.items()}
        self.holds.heard(worker_pb2.WatchLoadResponse(instance_id="a", **fields), 0.0)  # type: ignore[arg-type]

    def test_it_counts_once(self) -> None:
        assert self.route(self.key) is self.route(self.key)
        assert (self.tenant.running, self.key.running) == (1, 1)
        self.heard(started=["r"])
        self.heard(finished=["r"])
        assert (self.tenant.running, self.key.running) == (0, 0)

    def test_under_another_key_it_takes_for_itself(self) -> None:
        other = Account(Quota(concurrent=1), 0.0, "other")
        assert self.route(self.key) is not self.route(other)
        assert other.running == 1

    def test_an_unused_ticket_gives_the_keys_part_back(self) -> None:
        self.route(self.key)
        self.holds.expire(2.0)
        assert self.key.in_use(2.0) == {"concurrent": 0, "tokens_per_min": 0}

    def test_an_earlier_ticket_that_is_used_all_the_same_counts_for_the_key_too(self) -> None:
        self.route(self.key)
        self.holds.reclaim(self.tenant, "r", 60, self.key)
        self.heard(started=["r"])
        assert (self.tenant.running, self.key.running) == (2, 2)
