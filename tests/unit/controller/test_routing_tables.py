"""The routing table, its epochs and deltas."""

from __future__ import annotations

import dataclasses

from chiron.internal.v1 import control_pb2
from chiron.store import Change, InstanceRecord, ModelRecord, NodeRecord, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.phases import OnItsWay
from services.global_controller.registry import Registry
from services.global_controller.routing import DELTAS_KEPT, RoutingTables, belongs_to, entries
from tests.support.cluster_states import (
    DRAINING,
    FAILED,
    LOADING,
    PENDING,
    READY,
    STOPPED,
    instance,
    model,
)

TERM = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state(*records: ModelRecord | NodeRecord | InstanceRecord) -> Snapshot:
    return Snapshot().after(Change(1, (NodeRecord("a", "h", ()), *records)))


def live(node_id: str = "a") -> Registry:
    registry = Registry(5.0, Clock())
    registry.hear(registry.join(node_id, "s1"), control_pb2.AgentReport())
    return registry


def routed(*records: ModelRecord | InstanceRecord, reason: str = "") -> control_pb2.RoutedModel:
    models, _ = entries(state(*records), live(), {"chat": reason} if reason else {})
    return models["chat"]


def on_demand(
    *records: ModelRecord | InstanceRecord, reason: str = "", why: str = ""
) -> control_pb2.RoutedModel:
    models, _ = entries(state(*records), live(), {"chat": reason} if reason else {}, {"chat": why})
    return models["chat"]


class TestModels:
    def test_one_with_a_ready_instance_has_nothing_to_say(self) -> None:
        shown = routed(model(), instance("i", "a"), reason="1 of 2 instances cannot be placed")
        assert shown.reason == ""
        assert not shown.failed

    def test_it_names_the_versions_that_are_kept_whether_they_serve_now_or_not(self) -> None:
        kept = routed(
            model(desired=4, version=3),
            instance("ready", "a", version=3),
            instance("crashed", "a", version=1, state=PENDING),
            instance("given-up", "a", version=2, state=FAILED),
            instance("going", "a", version=4, desired=STOPPED),
        )
        assert list(kept.kept_versions) == [1, 3]

    def test_waiting_makes_sense_while_an_instance_is_coming(self) -> None:
        for coming in (PENDING, LOADING):
            shown = routed(model(), instance("i", "a", state=coming))
            assert not shown.failed
            assert shown.reason == "1 of 1 instances starting"

    def test_waiting_is_pointless_when_all_have_failed(self) -> None:
        shown = routed(model(), instance("i", "a", state=FAILED), reason="i on a failed: no weights")
        assert shown.failed
        assert shown.reason == "i on a failed: no weights"

    def test_waiting_is_pointless_when_nothing_could_be_placed(self) -> None:
        assert routed(model(), reason="needs 2 GPUs on one node").failed

    def test_waiting_is_pointless_when_scaled_to_zero(self) -> None:
        assert routed(model(desired=0)).failed

    def test_one_that_was_just_applied_is_not_failed(self) -> None:
        assert not routed(model()).failed

    def test_one_whose_place_is_about_to_come_free_is_not_failed(self) -> None:
        going = instance("i", "a", desired=STOPPED, state=DRAINING)
        assert not routed(model(version=2), going, reason="most free on a node: 0").failed

    def test_one_that_starts_on_demand_is_waited_for_at_zero(self) -> None:
        shown = on_demand(model(desired=0))
        assert not shown.failed
        assert shown.on_demand
        assert shown.reason == "none of its instances runs: one starts as soon as a request waits"

    def test_one_that_would_not_start_now_says_why(self) -> None:
        shown = on_demand(model(desired=0), why="its last start failed 3 s ago: no weights")
        assert shown.failed
        assert shown.reason == "its last start failed 3 s ago: no weights"

    def test_one_that_was_to_start_and_has_failed_or_found_no_gpu_is_not_waited_for(self) -> None:
        failed = on_demand(model(), instance("i", "a", state=FAILED), reason="i on a failed: no weights")
        assert (failed.failed, failed.reason) == (True, "i on a failed: no weights")
        unplaced = on_demand(model(), reason="needs 2 GPUs on one node")
        assert (unplaced.failed, unplaced.reason) == (True, "needs 2 GPUs on one node")

    def test_requests_wait_for_a_place_until_that_is_in_vain(self) -> None:
        def shown(why: str, *parts: InstanceRecord) -> control_pb2.RoutedModel:
            records = state(model(), *parts)
            blocked = {"chat": "1 of 1 instances cannot be placed"}
            return entries(records, live(), blocked, {"chat": why}, patient={"chat"})[0]["chat"]

        assert (shown("").failed, shown("").reason) == (False, "1 of 1 instances cannot be placed")
        assert shown("no instance can be started").failed
        assert shown("", instance("i", "a", state=FAILED)).failed

    def test_it_names_what_is_coming_while_nothing_is_ready(self) -> None:
        parts = [
            instance("b", "a", state=LOADING),
            instance("a", "a", state=PENDING),
            instance("failed", "a", state=FAILED),
            instance("going", "a", state=LOADING, desired=STOPPED),
        ]
        shown = routed(model(desired=3), *parts)
        assert [(one.instance_id, one.state) for one in shown.coming] == [("a", PENDING), ("b", LOADING)]
        assert not routed(model(desired=3), *parts, instance("ready", "a")).coming

    def test_what_loads_on_a_dead_node_is_not_coming(self) -> None:
        clock = Clock()
        registry = Registry(5.0, clock)
        registry.leave(registry.join("a", "s1"))
        lost = state(model(), instance("i", "a", state=LOADING))
        assert entries(lost, registry, {})[0]["chat"].coming
        clock.now += 60
        assert not entries(lost, registry, {})[0]["chat"].coming

    def test_a_deleted_one_is_not_routed(self) -> None:
        models, _ = entries(state(model(deleted=True, desired=0)), live(), {})
        assert models == {}


class TestInstances:
    def test_only_those_with_a_worker_are_routed(self) -> None:
        parts = [instance(f"i{number}", "a", state=number) for number in types_pb2.InstanceState.values()]
        quiet = instance("quiet", "a")
        quiet = dataclasses.replace(quiet, observed=dataclasses.replace(quiet.observed, address=""))
        _, instances = entries(state(model(), *parts, quiet), live(), {})
        shown = {one.state for one in instances.values()}
        assert shown == {LOADING, READY, DRAINING, types_pb2.INSTANCE_STATE_SLEEPING}

    def test_one_that_is_to_stop_takes_nothing_new(self) -> None:
        _, instances = entries(state(model(), instance("i", "a", desired=STOPPED)), live(), {})
        assert instances["i"].state == DRAINING

    def test_one_on_a_dead_node_stays_until_it_is_given_up(self) -> None:
        clock = Clock()
        registry = Registry(5.0, clock)
        registry.leave(registry.join("a", "s1"))
        clock.now += 60
        _, kept = entries(state(model(), instance("i", "a")), registry, {})
        assert kept["i"].state == READY
        _, given_up = entries(state(model(), instance("i", "a", desired=STOPPED)), registry, {})
        assert given_up == {}

    def test_workers_of_models_never_heard_of_are_routed_with_their_model(self) -> None:
        registry = live()
        registry.agents["a"].unknown = (instance("x", "a", of="forgotten"),)
        models, instances = entries(state(), registry, {})
        assert set(models) == {"forgotten"}
        assert set(instances) == {"x"}


class TestEpochs:
    def test_a_change_raises_the_epoch_by_one_and_tells_only_what_differs(self) -> None:
        tables = RoutingTables(TERM)
        stays, gone, moves = instance("k", "a"), instance("i", "a"), instance("j", "a")
        tables.update(entries(state(model(), stays, gone, moves), live(), {}))
        before = tables.epoch
        moved = instance("j", "a", state=DRAINING)
        assert tables.update(entries(state(model(), model("new"), stays, moved), live(), {}))
        delta = tables.delta_after(before)
        assert delta is not None
        assert delta.epoch == tables.epoch == before + 1
        assert [one.name for one in delta.models] == ["new"]
        assert [one.instance_id for one in delta.instances] == ["j"]
        assert list(delta.removed_instance_ids) == ["i"]
        assert list(delta.removed_models) == []

    def test_no_change_no_epoch(self) -> None:
        tables = RoutingTables(TERM)
        tables.update(entries(state(model()), live(), {}))
        before = tables.epoch
        assert not tables.update(entries(state(model()), live(), {}))
        assert tables.epoch == before

    def test_deltas_applied_in_turn_lead_to_the_present_table(self) -> None:
        tables = RoutingTables(TERM)
        held = tables.snapshot({})
        instances = {one.instance_id: one for one in held.instances}
        for number in range(5):
            parts = [instance(f"i{index}", "a") for index in range(number, number + 2)]
            tables.update(entries(state(model(), *parts), live(), {}))
        epoch = held.epoch
        while (delta := tables.delta_after(epoch)) is not None:
            for one in delta.instances:
                instances[one.instance_id] = one
            for gone in delta.removed_instance_ids:
                del instances[gone]
            epoch = delta.epoch
        present = tables.snapshot({})
        assert epoch == present.epoch
        assert [instances[key] for key in sorted(instances)] == list(present.instances)

    def test_an_epoch_too_long_ago_has_no_delta(self) -> None:
        tables = RoutingTables(TERM)
        start = tables.epoch
        for number in range(DELTAS_KEPT + 1):
            tables.update(entries(state(model(desired=1, version=number + 1)), live(), {}))
        assert tables.delta_after(start) is None
        assert tables.delta_after(start + 1) is not None
        assert tables.delta_after(tables.epoch) is None
        assert tables.delta_after(0) is None

    def test_epochs_of_two_terms_never_meet(self) -> None:
        assert belongs_to(RoutingTables(TERM).epoch, TERM)
        assert not belongs_to(RoutingTables(TERM).epoch, TERM + 1)

    def test_the_snapshot_carries_loads_that_deltas_leave_out(self) -> None:
        tables = RoutingTables(TERM)
        tables.update(entries(state(model(), instance("i", "a")), live(), {}))
        load = cluster_pb2.InstanceLoad(batch_size=7)
        assert tables.snapshot({"i": load}).instances[0].load.batch_size == 7
        assert not tables.snapshot({}).instances[0].HasField("load")

    def test_how_far_instances_are_is_told_as_a_table_is_sent_and_makes_no_epoch(self) -> None:
        clock = Clock()
        starts = {"slow": 70.0, "quick": 95.0}

        def when(instance_id: str) -> OnItsWay:
            since_s = clock.now - starts[instance_id]
            return OnItsWay(since_s, max(0.0, 40.0 - since_s))

        tables = RoutingTables(TERM, when)
        parts = [instance(name, "a", state=LOADING) for name in starts]
        epoch = tables.epoch
        assert tables.update(entries(state(model(desired=2), *parts), live(), {}))
        clock.now = 105.0
        assert not tables.update(entries(state(model(desired=2), *parts), live(), {}))
        delta = tables.delta_after(epoch)
        assert delta is not None
        for shown in (delta, tables.snapshot({})):
            coming = [(one.instance_id, one.loading_ms, one.ready_in_ms) for one in shown.models[0].coming]
            assert coming == [("slow", 35_000, 5_000), ("quick", 10_000, 30_000)]
        clock.now = 120.0
        later = tables.delta_after(epoch)
        assert later is not None
        assert [one.ready_in_ms for one in later.models[0].coming] == [0, 15_000]
