"""Several tenants' requests wait in one router: who goes next, who is let in, and what a newcomer is told."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.rpc.errors import Reason
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.outcomes import Blame
from services.router.queue import QueueFullError, WaitingQueue
from services.router.request import OpenWatch, PendingRequest, Place, Refuse

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH


def request(
    number: int, tenant: str, kind: RequestClass = INTERACTIVE, *, resumed: bool = False, **fields: object
) -> PendingRequest:
    made = PendingRequest(
        str(number),
        "m",
        kind,
        float(number) / 1e3,
        tenant=tenant,
        sequence=number,
        **fields,  # type: ignore[arg-type]
    )
    if resumed:
        made.resume(1, 0.0, 5)
    return made


def drained(queue: WaitingQueue) -> list[PendingRequest]:
    found = []
    while (one := queue.pop(INTERACTIVE, 1.0)) is not None:
        found.append(one)
    return found


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(-1, 1), st.booleans(), st.sampled_from([0, 900, 4_000])
        ),
        max_size=40,
    ),
    taken=st.integers(0, 20),
)
def test_places_that_are_told_are_the_order_in_which_they_go(rows: list, taken: int) -> None:
    queue = WaitingQueue(1000, weight=lambda tenant: 2.0 if tenant == "b" else 1.0)
    for number, (tenant, priority, resumed, ttft_ms) in enumerate(rows):
        slo = types_pb2.Slo(ttft_ms=ttft_ms) if ttft_ms else types_pb2.Slo()
        queue.push(request(number, tenant, priority=priority, resumed=resumed, slo=slo))
    for _ in range(taken):
        queue.pop(INTERACTIVE, 1.0)
    told = queue.in_order(INTERACTIVE, 1.0)
    found = drained(queue)
    assert told == found
    # What is promised of everybody: priority, then who goes on, whoever the tenant.
    keys = [(one.priority, one.resumed_at is None) for one in found]
    assert keys == sorted(keys)


def test_telling_places_changes_nothing() -> None:
    queue = WaitingQueue(1000)
    made = [request(number, "ab"[number % 2]) for number in range(6)]
    for one in made:
        queue.push(one)
    assert queue.in_order(INTERACTIVE, 1.0) == queue.in_order(INTERACTIVE, 1.0)
    assert [one.charged for one in made] == [0.0] * 6


def test_tenants_take_turns_by_what_their_requests_cost() -> None:
    queue = WaitingQueue(1000, cost=lambda one: float(one.prompt_tokens))
    for number in range(60):
        queue.push(request(number, "large", prompt_tokens=300))
        queue.push(request(100 + number, "small", prompt_tokens=100))
    counts = Counter(one.tenant for one in drained(queue)[:40])
    assert counts["small"] == pytest.approx(30, abs=1)


class TestAtTheLimit:
    """One tenant's pile keeps no other one out."""

    def setup_method(self) -> None:
        self.weights = {"heavy": 3.0}
        self.queue = WaitingQueue(12, weight=lambda tenant: self.weights.get(tenant, 1.0))
        for number in range(12):
            self.queue.push(request(number, "flood"))

    def let_in(self, tenant: str, kind: RequestClass = INTERACTIVE) -> int:
        """How many more of the tenant's find a place."""
        for number in range(100):
            try:
                self.queue.push(request(1000 + number, tenant, kind))
            except QueueFullError:
                return number
        raise AssertionError("the queue has no limit")

    def test_whoever_fills_it_is_refused(self) -> None:
        assert self.let_in("flood") == 0

    def test_others_have_their_share_of_it(self) -> None:
        assert self.let_in("other") == 6
        assert self.let_in("third") == 4
        assert self.let_in("flood") == 0

    def test_a_share_is_as_large_as_the_weight(self) -> None:
        assert self.let_in("heavy") == 9

    def test_a_share_is_of_what_waits_now(self) -> None:
        self.let_in("other")
        for one in drained(self.queue):
            if one.tenant == "flood":
                self.queue.push(one, readmit=True)
        assert self.let_in("other") == 6

    def test_each_class_has_its_own(self) -> None:
        assert self.let_in("other", BATCH) == 12

    def test_without_tenants_the_limit_is_the_limit(self) -> None:
        queue = WaitingQueue(3)
        for number in range(3):
            queue.push(request(number, ""))
        assert queue.full(request(3, ""))

    @given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=300))
    def test_many_tenants_together_stay_bounded(self, steps: list) -> None:
        queue, tenants = WaitingQueue(12), set()
        for number, (tenant, leaves) in enumerate(steps):
            tenants.add(tenant)
            if leaves:
                queue.pop(INTERACTIVE, 1.0)
            elif not queue.full(one := request(number, tenant)):
                queue.push(one)
            most = sum(math.ceil(12 / place) for place in range(1, len(tenants) + 1))
            assert queue.count(INTERACTIVE) <= most


class Rig:
    """A core with model `m` on one instance of one slot, which is taken."""

    def __init__(self, queue_limit: int = 1000, **weights: float) -> None:
        settings = CoreSettings(queue_limit, worker_queue=0, retry_pause_s=1.0, ticket_ttl_s=2.0)
        self.core = RouterCore(settings, LeastExpectedWait(), weight=lambda name: weights.get(name, 1.0))
        table = control_pb2.RoutingTable(
            epoch=1,
            term=1,
            models=[control_pb2.RoutedModel(name="m")],
            instances=[
                control_pb2.RoutedInstance(
                    instance_id="a",
                    incarnation=1,
                    model="m",
                    address="a:1",
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            ],
        )
        [watch] = self.core.snapshot(table, 0.0)
        assert isinstance(watch, OpenWatch)
        self._watch, self._load, self._number = watch.watch, 0, 0
        self.free(running=1)

    def free(self, running: int = 0, started: list[str] | None = None) -> list[PendingRequest]:
        """The instance tells how many run; who is placed."""
        self._load += 1
        out = self.core.load(
            "a",
            self._watch,
            worker_pb2.WatchLoadResponse(
                instance_id="a",
                incarnation=1,
                role=types_pb2.ROLE_MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
                batch_size=1,
                running=types_pb2.ClassCounts(interactive=running),
                started_request_ids=started,
            ),
            float(self._load) / 1e3,
        )
        placed = [one for one in out if isinstance(one, Place)]
        self.placements = [one.placement for one in placed]
        return [one.request for one in placed]

    def ask(self, tenant: str, **fields: object) -> Refuse | None:
        """Its refusal; None: it waits."""
        self._number += 1
        made = request(self._number, tenant, **fields)
        made.sequence = 0
        out = self.core.submit(made, made.arrived)
        assert len(out) <= 1
        return out[0] if out and isinstance(out[0], Refuse) else None

    def served(self, count: int) -> list[str]:
        """The tenants of the next to go, one after the other."""
        found = []
        for _ in range(count):
            [one] = self.free()
            found.append(one.tenant)
            self.free(running=1, started=[one.request_id])
        return found


def test_thousands_that_wait_of_one_tenant_do_not_keep_another_one_waiting() -> None:
    rig = Rig(queue_limit=5_000)
    for _ in range(1_000):
        assert rig.ask("flood") is None
    for _ in range(3):
        rig.ask("small")
    assert rig.served(6).count("small") == 3


def test_weights_count_at_a_router() -> None:
    rig = Rig(gold=3.0)
    for _ in range(40):
        rig.ask("gold")
        rig.ask("plain")
    assert rig.served(40).count("gold") == pytest.approx(30, abs=1)


def test_whoever_an_instance_turns_away_for_want_of_a_place_is_next_again() -> None:
    rig = Rig()
    for number in range(10):
        rig.ask("ab"[number % 2])
    [first] = rig.free()
    [placement] = rig.placements
    rig.core.failed(first, placement, Blame.FULL, 0.002)
    rig.core.submit(first, 0.002)
    assert rig.free() == [first]


def test_a_newcomer_is_told_the_wait_that_its_tenant_has_and_not_the_floods() -> None:
    rig = Rig()
    for _ in range(200):
        rig.ask("flood")
    asks = {"refuse_if_late": True, "slo": types_pb2.Slo(ttft_ms=200_000)}
    refused = rig.ask("flood", **asks)
    assert refused is not None
    assert refused.error.reason is Reason.SLO_OUT_OF_REACH
    assert int(refused.error.metadata["requests_ahead"]) == 200
    assert rig.ask("small", **asks) is None, "few go before it"
    for _ in range(5):
        rig.ask("small")
    late = rig.ask("small", refuse_if_late=True, slo=types_pb2.Slo(ttft_ms=1))
    assert late is not None
    assert int(late.error.metadata["requests_ahead"]) == pytest.approx(12, abs=1)


def test_a_full_queue_lets_a_tenant_in_that_has_less_than_its_share() -> None:
    rig = Rig(queue_limit=10)
    for _ in range(10):
        rig.ask("flood")
    refused = rig.ask("flood")
    assert refused is not None
    assert refused.error.reason is Reason.QUEUE_FULL
    assert [rig.ask("small") is None for _ in range(6)] == [True] * 5 + [False]
