"""Liveness by a clock that the test moves."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2
from chiron.store import NodeRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.registry import Registry
from services.global_controller.view import Liveness

NODE = NodeRecord("a", "h", ())


class World:
    def __init__(self) -> None:
        self.now = 50.0
        self.registry = Registry(5.0, lambda: self.now)

    def liveness(self) -> Liveness:
        return self.registry.view(NODE).liveness


@pytest.fixture
def world() -> World:
    return World()


def test_a_node_on_record_is_unheard_and_then_dead(world: World) -> None:
    assert world.liveness() is Liveness.UNHEARD
    world.now += 5.0
    assert world.liveness() is Liveness.DEAD


def test_a_node_joins_with_hello_and_lives_with_its_first_report(world: World) -> None:
    link = world.registry.join("a", "s1")
    assert world.liveness() is Liveness.JOINING
    assert world.registry.hear(link, control_pb2.AgentReport()).standing
    assert world.liveness() is Liveness.LIVE
    assert not world.registry.hear(link, control_pb2.AgentReport()).standing


def test_a_lost_stream_is_silence_for_the_timeout_and_death_after(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    world.registry.leave(link)
    world.now += 4.9
    assert world.liveness() is Liveness.SILENT
    world.now += 0.1
    assert world.liveness() is Liveness.DEAD


def test_a_stream_without_reports_is_no_life(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    world.now += 5.0
    assert world.liveness() is Liveness.DEAD
    assert world.registry.hear(link, control_pb2.AgentReport()).standing
    assert world.liveness() is Liveness.LIVE


def test_a_new_stream_ends_the_earlier_one_and_must_report_again(world: World) -> None:
    earlier = world.registry.join("a", "s1")
    world.registry.hear(earlier, control_pb2.AgentReport())
    link = world.registry.join("a", "s1")
    assert earlier.closed
    assert not world.registry.is_current(earlier)
    assert world.liveness() is Liveness.JOINING
    world.registry.leave(earlier)
    world.registry.hear(link, control_pb2.AgentReport())
    assert world.liveness() is Liveness.LIVE


def test_only_the_state_folder_that_holds_a_live_node_may_join_as_it(world: World) -> None:
    assert not world.registry.held_by_another("a", "s1")
    link = world.registry.join("a", "s1")
    assert not world.registry.held_by_another("a", "s1")
    assert world.registry.held_by_another("a", "s2")
    world.registry.leave(link)
    world.now += 4.9
    assert world.registry.held_by_another("a", "s2")
    world.now += 0.1
    assert not world.registry.held_by_another("a", "s2")


def test_an_open_stream_that_is_heard_keeps_a_copy_of_its_folder_off(world: World) -> None:
    assert world.registry.held_by_twin("a", "s1", "r1") is None
    link = world.registry.join("a", "s1", "r1")
    assert world.registry.held_by_twin("a", "s1", "r2") is link
    assert world.registry.held_by_twin("a", "s1", "r1") is None, "the same run connects again"
    assert world.registry.held_by_twin("a", "s1", "") is None, "an agent that does not tell"
    assert world.registry.held_by_twin("b", "s1", "r2") is None
    world.now += 5.0
    assert world.registry.held_by_twin("a", "s1", "r2") is None, "nothing is heard of it"
    world.registry.hear(link, control_pb2.AgentReport())
    assert world.registry.held_by_twin("a", "s1", "r2") is link
    world.registry.leave(link)
    assert world.registry.held_by_twin("a", "s1", "r2") is None, "it may have started again"


def test_an_agent_that_does_not_tell_its_run_is_taken_over_as_ever(world: World) -> None:
    world.registry.join("a", "s1")
    assert world.registry.held_by_twin("a", "s1", "r2") is None


def test_the_next_deadline_is_the_earliest_death_or_the_end_of_settling(world: World) -> None:
    assert world.registry.next_deadline() == 55.0
    world.now = 52.0
    link = world.registry.join("a", "s1")
    assert world.registry.next_deadline() == 55.0
    world.now = 55.0
    assert not world.registry.settling()
    assert world.registry.next_deadline() == 57.0
    world.registry.leave(link)
    world.now = 57.0
    assert world.registry.next_deadline() is None


def test_a_controller_that_stood_still_settles_again(world: World) -> None:
    world.now = 60.0
    assert not world.registry.notice_stall(None)
    assert not world.registry.notice_stall(58.0)
    assert not world.registry.settling()
    assert world.registry.notice_stall(57.4)
    assert world.registry.settling()
    world.now = 65.0
    assert not world.registry.settling()


def test_a_load_that_differs_is_noticed(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    status = cluster_pb2.InstanceStatus(instance_id="i", load=cluster_pb2.InstanceLoad(batch_size=4))
    message = control_pb2.AgentReport(instances=[control_pb2.InstanceReport(status=status)])
    assert world.registry.hear(link, message).figures
    assert not world.registry.hear(link, message).figures
    assert world.registry.loads()["i"].batch_size == 4


def test_a_routers_queues_are_summed_over_models(world: World) -> None:
    link = world.registry.join_router(control_pb2.RouterHello(router_id="r", address="h:1"))
    queued = [types_pb2.ClassCounts(interactive=1, batch=2), types_pb2.ClassCounts(interactive=3)]
    report = control_pb2.RouterReport(demand=[control_pb2.ModelDemand(queued=one) for one in queued])
    assert world.registry.hear_router(link, report)
    assert link.queued == types_pb2.ClassCounts(interactive=4, batch=2)
    world.registry.leave_router(link)
    assert world.registry.routers == {}


def test_what_a_router_has_ejected_is_news_once(world: World) -> None:
    link = world.registry.join_router(control_pb2.RouterHello(router_id="r", address="h:1"))

    def report(retry_in_ms: float) -> control_pb2.RouterReport:
        ejected = cluster_pb2.EjectedInstance(
            instance_id="i", reason="connection lost", retry_in_ms=retry_in_ms
        )
        return control_pb2.RouterReport(ejected=[ejected])

    assert world.registry.hear_router(link, report(1000.0))
    assert not world.registry.hear_router(link, report(900.0))
    assert world.registry.hear_router(link, control_pb2.RouterReport())


def test_settling_ends_early_once_every_node_on_record_has_reported(world: World) -> None:
    world.registry.settle(["a", "b"])
    a = world.registry.join("a", "s1")
    world.registry.hear(a, control_pb2.AgentReport())
    assert world.registry.awaited() == ["b"]
    assert not world.registry.settle_early()
    b = world.registry.join("b", "s2")
    assert not world.registry.settle_early()
    world.registry.hear(b, control_pb2.AgentReport())
    assert world.registry.settle_early()
    assert not world.registry.settling()
    assert not world.registry.settle_early()


def test_with_no_node_on_record_settling_lasts_for_the_timeout(world: World) -> None:
    world.registry.settle([])
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    assert not world.registry.settle_early()
    assert world.registry.settling()


def test_after_a_stall_only_what_comes_then_counts_as_heard(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    world.now = 60.0
    assert world.registry.notice_stall(55.0)
    assert world.registry.awaited() == ["a"]
    assert not world.registry.settle_early()
    world.registry.hear(link, control_pb2.AgentReport())
    assert world.registry.settle_early()


def test_while_settling_silence_is_no_death(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    world.now = 60.0
    assert world.liveness() is Liveness.DEAD
    world.registry.settle(["a"])
    assert world.liveness() is Liveness.SILENT
    world.registry.leave(link)
    assert world.liveness() is Liveness.SILENT
    world.now = 65.0
    assert world.liveness() is Liveness.DEAD


def test_a_report_that_waits_to_be_taken_in_keeps_its_node_alive(world: World) -> None:
    link = world.registry.join("a", "s1")
    world.registry.hear(link, control_pb2.AgentReport())
    world.now = 56.0
    assert world.liveness() is Liveness.DEAD
    world.registry.arrived(link)
    assert world.liveness() is Liveness.LIVE
    # It counts as come back, although it was heard when the report arrived.
    assert world.registry.hear(link, control_pb2.AgentReport()).standing


def test_who_joins_a_controller_that_has_closed_is_closed_at_once(world: World) -> None:
    world.registry.close_all()
    assert world.registry.join("a", "s1").closed
    assert world.registry.join_router(control_pb2.RouterHello(router_id="r")).closed


def test_settling_goes_on_while_nodes_come_back_but_not_for_ever(world: World) -> None:
    nodes = [f"n{number}" for number in range(50)]
    world.registry.settle([*nodes, "gone"])
    for node in nodes[:8]:
        assert world.registry.settling()
        world.registry.join(node, "s")
        world.now += 2.0
    # 16 s after its beginning, the last one 2 s ago: three timeouts are over.
    assert not world.registry.settling()


def test_settling_ends_with_the_timeout_when_nobody_has_come_back_lately(world: World) -> None:
    world.registry.settle(["a", "b"])
    world.registry.join("a", "s1")
    world.registry.join("stranger", "s2")
    world.now += 4.9
    assert world.registry.settling()
    world.registry.join("stranger", "s2")
    world.now += 0.1
    assert not world.registry.settling()
