"""What a router keeps of the keys that are used, over deltas of its table."""

from __future__ import annotations

import pytest
import pytest_asyncio

from chiron.auth.api_keys import NewKey
from chiron.internal.v1 import control_pb2
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2
from chiron.v1.access_pb2 import KeyLimits, KeyTerms, Tenant
from services.router.access import Access, leave
from services.router.request import PendingRequest

KEY = NewKey.draw()


class _Call:
    def __init__(self, key: str) -> None:
        self._key = key

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("authorization", f"Bearer {self._key}")]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def routed(key: NewKey = KEY, *, revoked: bool = False, **limits: object) -> control_pb2.RoutedKey:
    terms = KeyTerms(limits=KeyLimits(**limits))  # type: ignore[arg-type]
    return control_pb2.RoutedKey(
        key_id=key.key_id, digest=key.digest, tenant="acme", revoked=revoked, terms=terms
    )


class Door:
    """A router's Access with one tenant and its keys."""

    def __init__(self) -> None:
        self.access = Access(required=True, ticket_ttl_s=2.0)
        self.access.take_table(
            control_pb2.RoutingTable(tenants=[Tenant(name="acme", models=["*"])], keys=[routed(concurrent=1)])
        )

    def delta(self, *keys: control_pb2.RoutedKey, **changes: object) -> None:
        self.access.take_delta(control_pb2.RoutingDelta(keys=keys, **changes))  # type: ignore[arg-type]

    def ask(self, key: NewKey = KEY, tokens: int = 10) -> PendingRequest:
        caller = self.access.identify(_Call(key.text))
        request = PendingRequest("r", "m", RequestClass.INTERACTIVE, 0.0, prompt_tokens=tokens)
        self.access.admit(caller, request)
        return request

    def refused(self, key: NewKey = KEY, tokens: int = 10) -> dict[str, str]:
        with pytest.raises(ChironError) as caught:
            self.ask(key, tokens)
        assert caught.value.reason is Reason.QUOTA_EXCEEDED
        return caught.value.metadata


@pytest_asyncio.fixture
async def door() -> Door:
    return Door()


async def test_a_keys_limit_holds_for_that_key_alone(door: Door) -> None:
    other = NewKey.draw()
    door.delta(routed(other))
    request = door.ask()
    assert door.refused() == {"limit": "concurrent", "limit_of": "key", "key_id": KEY.key_id}
    door.ask(other)
    leave(request)
    door.ask()


async def test_what_a_key_uses_outlives_changes_of_the_table(door: Door) -> None:
    door.ask()
    door.delta(routed(NewKey.draw(), concurrent=5), tenants=[Tenant(name="acme", models=["m"])])
    assert door.refused()["limit_of"] == "key"
    door.delta(routed(concurrent=2))
    door.ask()
    assert door.refused()["limit_of"] == "key"
    # Another controller's table, with the same keys in it.
    table = control_pb2.RoutingTable()
    door.access.add_to(table)
    door.access.take_table(table)
    assert door.refused()["limit_of"] == "key"


async def test_what_is_held_under_a_limit_that_is_gone_ends_all_the_same(door: Door) -> None:
    limited = door.ask()
    door.delta(routed())
    unlimited = door.ask()
    leave(limited)
    door.delta(routed(concurrent=1))
    # What began while there was no limit counts as well.
    assert door.refused()["limit"] == "concurrent"
    leave(unlimited)
    door.ask()
    assert door.refused()["limit"] == "concurrent"


async def test_tokens_of_a_key_bound_what_its_requests_may_have(door: Door) -> None:
    door.delta(routed(tokens_per_min=2000))
    request = door.ask(tokens=10)
    assert (request.max_tokens, request.max_prompt_tokens) == (1024, 4 * 10 + 256)
    assert door.refused(tokens=1000)["limit"] == "tokens_per_min"


async def test_nothing_is_kept_of_keys_that_nobody_may_use(door: Door) -> None:
    keys = [NewKey.draw() for _ in range(50)]
    door.delta(*(routed(key, concurrent=9) for key in keys))
    running = [door.ask(key) for key in keys]
    assert len(door.access._of_keys) == 50
    door.delta(*(routed(key, concurrent=9, revoked=True) for key in keys[:20]))
    assert len(door.access._of_keys) == 30
    for request in running:
        leave(request)
    door.delta(removed_key_ids=[key.key_id for key in keys])
    assert door.access._of_keys == {}


async def test_keys_without_limits_of_their_own_leave_nothing_once_they_run_nothing(door: Door) -> None:
    plain, unused = NewKey.draw(), NewKey.draw()
    door.delta(routed(plain), routed(unused))
    request = door.ask(plain)
    assert list(door.access._of_keys) == [plain.key_id]
    leave(request)
    door.delta(routed(unused, concurrent=1))
    assert door.access._of_keys == {}


async def test_a_tenants_weight_is_that_of_the_table(door: Door) -> None:
    assert [door.access.weight(name) for name in ("acme", "unknown")] == [1.0, 1.0]
    door.delta(tenants=[Tenant(name="acme", quota=access_pb2.Quota(weight=2.5))])
    assert door.access.weight("acme") == 2.5


async def test_limits_of_which_little_is_left_are_told_those_with_the_least_first(door: Door) -> None:
    keys = {share: NewKey.draw() for share in (79, 85, 100)}
    door.delta(*(routed(key, tokens_per_min=10_000, concurrent=100) for key in keys.values()))
    for share, key in keys.items():
        # The prompt and the 1,024 tokens that an answer may have.
        door.ask(key, tokens=100 * share - 1024)
    told = [(one.key_id, one.use.limit) for one in door.access.near_limits()]
    assert told == [(keys[100].key_id, "tokens_per_min"), (keys[85].key_id, "tokens_per_min")]
    assert all(isinstance(one.use, access_pb2.LimitUse) for one in door.access.near_limits())
