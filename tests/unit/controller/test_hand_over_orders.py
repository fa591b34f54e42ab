"""What nodes are told of hand-over: what drains, by node, and only with room on the same weights."""

from __future__ import annotations

from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.store import InstanceRecord
from chiron.v1 import types_pb2
from services.global_controller.hand_over import VALID_S, orders_of


def instance(key: str, node: str, phase: Phase, running: int) -> FleetInstance:
    return FleetInstance(
        key,
        node,
        Role.MIXED,
        phase,
        100,
        100,
        running_interactive=running,
        tokens_per_s=20.0 * running,
        kv_usage=running / 200,
        kv_capacity_tokens=100_000,
        step_token_budget=512,
    )


def record(key: str, node: str, version: int) -> InstanceRecord:
    return InstanceRecord(key, "m", node, (0,), types_pb2.ROLE_MIXED, b"", version)


def fleet(*instances: FleetInstance) -> FleetSnapshot:
    model = ModelFleet("m", 1, 0, 0, 10.0, 0.2, 2.0, instances, Traffic(0.0))
    return FleetSnapshot(0.0, (model,))


def test_the_node_of_what_drains_is_told_and_for_how_long_it_holds() -> None:
    going, staying = instance("a", "n1", Phase.DRAINING, 40), instance("b", "n2", Phase.READY, 45)
    told = orders_of(fleet(going, staying), {"a": record("a", "n1", 1), "b": record("b", "n2", 1)})
    assert told.keys() == {"n1"}
    (order,) = told["n1"].orders
    assert order.instance_id == "a"
    assert order.request.interactive_per_s > 0
    assert order.request.tokens_per_s > 0
    assert order.request.valid_s == VALID_S


def test_other_weights_are_no_room() -> None:
    going, staying = instance("a", "n1", Phase.DRAINING, 40), instance("b", "n2", Phase.READY, 45)
    assert not orders_of(fleet(going, staying), {"a": record("a", "n1", 1), "b": record("b", "n2", 2)})


def test_what_nobody_has_asked_for_neither_gives_nor_takes() -> None:
    going, staying = instance("a", "n1", Phase.DRAINING, 40), instance("b", "n2", Phase.READY, 45)
    assert not orders_of(fleet(going, staying), {"a": record("a", "n1", 1)})
    assert not orders_of(fleet(going, staying), {"b": record("b", "n2", 1)})


def test_where_all_serve_nobody_is_told() -> None:
    both = [instance(key, "n", Phase.READY, 40) for key in ("a", "b")]
    assert not orders_of(fleet(*both), {key: record(key, "n", 1) for key in ("a", "b")})
