"""What the router's core believes of prompts that it has placed."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.affinity import salted
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
    crowd(core, "a")
    again = place(core, "again").placement
    # Four blocks of 256 bytes, four bytes to a token.
    assert (again.instance_id, again.decision.cached_tokens) == ("a", 256)
    other = place(core, "other", chain=[b"another."]).placement
    assert (other.instance_id, other.decision.cached_tokens) == ("b", 0)


def test_one_tenant_never_finds_what_another_has_sent() -> None:
    core = make()
    place(core, "first", "ada")
    crowd(core, "a")
    for tenant in ("grace", ""):
        assert place(core, f"of {tenant}", tenant).placement.instance_id == "b"
        core = make()
        place(core, "first", "ada")
        crowd(core, "a")
    assert place(core, "own", "ada").placement.instance_id == "a"


def test_a_worker_that_has_started_anew_has_nothing_cached() -> None:
    core = make()
    place(core, "first")
    crowd(core, "a", incarnation=2)
    assert place(core, "again").placement.instance_id == "b"


def test_an_instance_that_has_gone_leaves_nothing_behind() -> None:
    core = make()
    place(core, "first")
    core.delta(control_pb2.RoutingDelta(epoch=2, removed_instance_ids=["a"]), 0.0)
    assert place(core, "again").placement.decision.cached_tokens == 0
    assert core._models["m"].affinity.index.depths(salted("", CHAIN)).keys() == {"b"}


def test_switched_off_nothing_is_remembered() -> None:
    core = make(prefixes=0)
    place(core, "first")
    crowd(core, "a")
    assert place(core, "again").placement.instance_id == "b"
    assert core._models["m"].affinity is None


def test_an_index_without_room_is_no_setting() -> None:
    with pytest.raises(ValueError, match="prefix_index: must be >= 1, not 0"):
        RouterConfig(prefix_index=0)
