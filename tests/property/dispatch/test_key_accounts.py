"""Accounts of tenants and keys over any mixture of requests, tickets, reports and changes of the table."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from chiron.auth.api_keys import NewKey
from chiron.auth.quotas import Account, Hold
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import Decision
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason
from chiron.v1.access_pb2 import KeyLimits, KeyTerms, Quota, Tenant
from services.router.access import Access, leave
from services.router.request import PendingRequest, Placement
from services.router.reservations import Reservation

TTL_S = 2.0
KEYS = [NewKey.draw() for _ in range(3)]
LIMITS = (
    KeyLimits(),
    KeyLimits(concurrent=2),
    KeyLimits(tokens_per_min=200, requests_per_s=1.0),
    KeyLimits(models=["m"], tokens_per_min=100, concurrent=1),
)
QUOTAS = (Quota(), Quota(concurrent=3), Quota(tokens_per_min=300, requests_per_s=2.0))

_often = [
    st.tuples(st.just("ask"), st.integers(0, 2), st.just(True), st.integers(0, 3)),
    st.tuples(st.just("hand out"), st.integers(0, 20)),
    st.tuples(st.just("started"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.floats(0, 4)),
]
_seldom = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 2), st.just(False), st.integers(0, 3)),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("finished"), st.integers(0, 3)),
    st.tuples(st.just("lost")),
    st.tuples(st.just("limits"), st.integers(0, 2), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("quota"), st.integers(0, 2)),
    st.tuples(st.just("gone"), st.integers(0, 2)),
)
steps = st.lists(st.one_of(*_often, _seldom), min_size=30, max_size=80)


class _Call:
    def __init__(self, key: NewKey) -> None:
        self._key = key

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("authorization", f"Bearer {self._key.text}")]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


class World:
    """A router's Access on a clock of its own, and the requests that are under way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.access = Access(required=True, ticket_ttl_s=TTL_S)
        self.access._time = lambda: self.now
        self.access.take_table(
            control_pb2.RoutingTable(
                tenants=[Tenant(name="t", models=["*"])],
                keys=[routed(key, KeyLimits(concurrent=3)) for key in KEYS],
            )
        )
        self.calls: list[PendingRequest] = []
        """Calls at this router that have not ended."""
        self.holds: list[Hold] = []
        """All that were ever given."""

    def ask(self, key: int, lookaside: bool, number: int) -> None:
        request = PendingRequest(
            f"r{number}",
            "m",
            RequestClass.INTERACTIVE,
            self.now,
            prompt_tokens=10,
            max_tokens=2,
            lookaside=lookaside,
        )
        try:
            self.access.admit(self.access.identify(_Call(KEYS[key])), request)
        except ChironError as error:
            if error.reason not in (Reason.QUOTA_EXCEEDED, Reason.KEY_REVOKED, Reason.KEY_INVALID):
                raise
            return
        assert request.hold is not None
        self.holds.append(request.hold)
        self.calls.append(request)

    def leave(self, index: int) -> None:
        if self.calls:
            leave(self.calls.pop(index % len(self.calls)))

    def hand_out(self, index: int) -> None:
        open_calls = [one for one in self.calls if one.lookaside]
        if open_calls:
            request = open_calls[index % len(open_calls)]
            self.calls.remove(request)
            reservation = Reservation("a", request.request_id, 0.0, 1)
            self.access.hand_out(request, Placement("a", 1, "h:1", Decision("a", "", {}), reservation))
            leave(request)

    def heard(self, **ids: list[str]) -> None:
        load = worker_pb2.WatchLoadResponse(instance_id="a", **ids)  # type: ignore[arg-type]
        self.access.holds.heard(load, self.now)

    def delta(self, **changes: object) -> None:
        self.access.take_delta(control_pb2.RoutingDelta(**changes))  # type: ignore[arg-type]

    def take(self, step: tuple) -> None:
        match step:
            case ("ask", key, lookaside, number):
                self.ask(key, lookaside, number)
            case ("leave", index):
                self.leave(index)
            case ("hand out", index):
                self.hand_out(index)
            case ("started", number):
                self.heard(started_request_ids=[f"r{number}"])
            case ("finished", number):
                self.heard(finished_request_ids=[f"r{number}"])
            case ("lost",):
                self.access.holds.lost("a", self.now)
            case ("wait", pause_s):
                self.now += pause_s
                self.access.holds.expire(self.now)
            case ("limits", key, limits, revoked):
                self.delta(keys=[routed(KEYS[key], LIMITS[limits], revoked=revoked)])
            case ("quota", quota):
                self.delta(tenants=[Tenant(name="t", models=["*"], quota=QUOTAS[quota])])
            case ("gone", key):
                self.delta(removed_key_ids=[KEYS[key].key_id])

    def known(self) -> list[Hold]:
        """Every hold that anybody may still end."""
        kept = [one.hold for held in self.access.holds._of.values() for one in held.values()]
        return [*self.holds, *kept]

    def check(self) -> None:
        open_holds = {id(hold): hold for hold in self.known() if hold.open}.values()
        running: Counter[int] = Counter()
        for hold in open_holds:
            running[id(hold.account)] += 1
            if hold.key is not None:
                running[id(hold.key)] += 1
        for account in self.accounts():
            assert account.running == running[id(account)]
            assert account.running >= 0

    def accounts(self) -> list[Account]:
        return [*self.access._accounts.values(), *self.access._of_keys.values()]


def routed(key: NewKey, limits: KeyLimits, *, revoked: bool = False) -> control_pb2.RoutedKey:
    return control_pb2.RoutedKey(
        key_id=key.key_id, digest=key.digest, tenant="t", revoked=revoked, terms=KeyTerms(limits=limits)
    )


async def _run(given_steps: list[tuple]) -> None:
    world = World()
    for step in given_steps:
        world.take(step)
        world.check()
    for _ in list(world.calls):
        world.leave(0)
    # Tickets lapse, workers say nothing more, and whoever was lost does not come again.
    for pause_s in (TTL_S, 10.0, 0.0):
        world.now += pause_s
        world.access.holds.expire(world.now)
        world.access.holds.lost("a", world.now)
    world.now += 120.0
    world.access.holds.expire(world.now)
    world.check()
    assert len(world.access.holds) == 0
    for account in world.accounts():
        assert account.running == 0
        assert all(share <= 1e-9 for share in account.in_use(world.now + 120.0).values())


@given(steps=steps)
def test_every_account_counts_what_is_open_and_nothing_stays(steps: list[tuple]) -> None:
    asyncio.run(_run(steps))
