"""What the router's core believes of prompts that it has placed."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.requests.prefixes import salted
from chiron.v1 import types_pb2
from services.router.config import RouterConfig
from services.router.core import CoreSettings, RouterCore
from services.router.request import PendingRequest, Place

CHAIN = [bytes([number] * 8) for number in range(4)]


def load(instance_id: str, incarnation: int = 1) -> worker_pb2.WatchLoadResponse:
    return worker_pb2.WatchLoadResponse(
        instance_id=instance_id,
        incarnation=incarnation,
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
        batch_size=8,
    )


def make(prefixes: int = 100) -> RouterCore:
    core = RouterCore(CoreSettings(100, 2, 1.0, 2.0, prefixes=prefixes), LeastExpectedWait())
    instances = [
        control_pb2.RoutedInstance(instance_id=key, incarnation=1, model="m", address=f"{key}:1")
        for key in "ab"
    ]
    table = control_pb2.RoutingTable(epoch=1, models=[control_pb2.RoutedModel(name="m")], instances=instances)
    core.snapshot(table, 0.0)
    for watch, key in enumerate("ab", 1):
        core.load(key, watch, load(key), 0.0)
    return core


def compute(core: RouterCore, request_id: str, tenant: str = "") -> str:
    """Places a request, and has its worker tell that its prompt is computed; returns where."""
    instance_id = place(core, request_id, tenant).placement.instance_id
    message = load(instance_id)
    message.prefixes.prefills.add(request_id=request_id, prompt_tokens=256)
    core.load(instance_id, "_ab".index(instance_id), message, 0.0)
    return instance_id


def place(core: RouterCore, request_id: str, tenant: str = "", *, chain: list[bytes] = CHAIN) -> Place:
    """Where a request of 256 tokens goes, its slot given back."""
    request = PendingRequest(
        request_id, "m", RequestClass.INTERACTIVE, 0.0, prompt_tokens=256, prefixes=salted(tenant, chain)
    )
    [placed] = core.submit(request, 0.0)
    assert isinstance(placed, Place)
    core.release(placed.placement.reservation, 0.0)
    return placed


def crowd(core: RouterCore, instance_id: str, incarnation: int = 1) -> None:
    """One request more runs there than elsewhere: without a prefix, it is not picked."""
    report = load(instance_id, incarnation)
    report.running.interactive = 1
    core.load(instance_id, "_ab".index(instance_id), report, 0.0)


def test_a_prompt_returns_and_its_decision_says_what_is_cached() -> None:
    core = make()
    first = place(core, "first").placement
    assert (first.instance_id, first.decision.cached_tokens) == ("a", 0)
    assert place(core, "too soon").placement.decision.cached_tokens == 0, "it is not computed yet"
    report(core, "a", prefills=[prefill("first", 0)])
    again = place(core, "again").placement
    # Four blocks of 256 bytes, four bytes to a token.
    assert (again.instance_id, again.decision.cached_tokens) == ("a", 256)
    other = place(core, "other", chain=[b"another."]).placement
    assert (other.instance_id, other.decision.cached_tokens) == ("b", 0)


def test_one_tenant_never_finds_what_another_has_sent() -> None:
    core = make()
    compute(core, "first", "ada")
    crowd(core, "a")
    for tenant in ("grace", ""):
        assert place(core, f"of {tenant}", tenant).placement.instance_id == "b"
        core = make()
        compute(core, "first", "ada")
        crowd(core, "a")
    assert place(core, "own", "ada").placement.instance_id == "a"


def test_a_worker_that_has_started_anew_has_nothing_cached() -> None:
    core = make()
    compute(core, "first")
    crowd(core, "a", incarnation=2)
    assert place(core, "again").placement.instance_id == "b"


def test_an_instance_that_has_gone_leaves_nothing_behind() -> None:
    core = make()
    compute(core, "first")
    core.delta(control_pb2.RoutingDelta(epoch=2, removed_instance_ids=["a"]), 0.0)
    assert place(core, "again").placement.decision.cached_tokens == 0
    affinity = core._models["m"].affinity
    assert affinity is not None
    assert affinity.index.depths(salted("", CHAIN)) == {}


def test_switched_off_nothing_is_remembered() -> None:
    core = make(prefixes=0)
    compute(core, "first")
    crowd(core, "a")
    assert place(core, "again").placement.instance_id == "b"
    assert core._models["m"].affinity is None


def test_an_index_without_room_is_no_setting() -> None:
    with pytest.raises(ValueError, match="prefix_index: must be >= 1, not 0"):
        RouterConfig(prefix_index=0)


NAMES = salted("", CHAIN)


def report(core: RouterCore, instance_id: str, **news: object) -> None:
    """A load message with news of the cache; one request more runs on `a` than on `b`."""
    message = load(instance_id)
    message.running.interactive = int(instance_id == "a")
    message.prefixes.CopyFrom(worker_pb2.PrefixNews(**news))  # type: ignore[arg-type]
    core.load(instance_id, "_ab".index(instance_id), message, 0.0)


def test_what_its_engine_has_dropped_is_no_longer_believed() -> None:
    core = make()
    compute(core, "first")
    report(core, "a", gone=NAMES[2:])
    assert place(core, "shorter").placement.decision.cached_tokens == 128
    report(core, "a", gone=NAMES)
    report(core, "b", gone=NAMES)
    assert place(core, "again").placement.instance_id == "b"


def test_what_another_router_had_computed_is_believed() -> None:
    core = make()
    report(core, "a", cleared=True, cached=NAMES)
    found = place(core, "first").placement
    assert (found.instance_id, found.decision.cached_tokens) == ("a", 256)


def test_a_subscription_that_begins_anew_voids_what_was_believed() -> None:
    core = make()
    compute(core, "first")
    report(core, "a", cleared=True)
    assert place(core, "again").placement.instance_id == "b"


def prefill(request_id: str, cached: int, prefill_ms: float = 0.0, prompt: int = 256) -> worker_pb2.Prefill:
    return worker_pb2.Prefill(
        request_id=request_id, prompt_tokens=prompt, cached_tokens=cached, prefill_ms=prefill_ms
    )


def test_an_engine_that_finds_nothing_is_believed_less_and_less() -> None:
    core = make()
    compute(core, "first")
    believed = []
    for number in range(40):
        core.load("a", 1, load("a"), 0.0)
        found = place(core, str(number)).placement
        believed.append(found.decision.cached_tokens)
        report(core, found.instance_id, prefills=[prefill(str(number), 0)])
    assert believed[0] == 256
    assert believed == sorted(believed, reverse=True)
    # It is still measured by what stands to reason, so that it can win trust again.
    assert believed[-1] < 16
    state = core.prefixes()[0]
    # The first one was not expected to find anything.
    assert (state.requests, state.cached_tokens) == (41, 0)
    assert state.expected_tokens == state.prompt_tokens - 256 == 40 * 256


def test_trust_returns_with_hits() -> None:
    core = make()
    compute(core, "first")
    for number in range(80):
        core.load("a", 1, load("a"), 0.0)
        found = place(core, str(number)).placement
        report(core, found.instance_id, prefills=[prefill(str(number), 0 if number < 40 else 256)])
    core.load("a", 1, load("a"), 0.0)
    assert place(core, "last").placement.decision.cached_tokens > 240


def test_the_rate_of_prefill_is_learned_from_what_had_to_be_computed() -> None:
    core = make()
    report(core, "a", prefills=[prefill("x", 56, prefill_ms=100.0), prefill("tiny", 250, prefill_ms=100.0)])
    [a, b] = core._models["m"].views()
    assert a.prefill_tokens_per_s == pytest.approx(2000.0)
    assert b.prefill_tokens_per_s == 0.0


def test_what_is_placed_and_never_heard_of_again_takes_no_memory_for_good(monkeypatch) -> None:
    monkeypatch.setattr("services.router.affinity._MOST_OPEN", 10)
    core = make()
    for number in range(30):
        place(core, str(number))
    affinity = core._models["m"].affinity
    assert affinity is not None
    assert len(affinity._open) == 10
    report(core, "a", cleared=True)
    report(core, "b", cleared=True)
    assert not affinity._open
