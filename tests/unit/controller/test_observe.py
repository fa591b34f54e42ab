"""What agents' messages change in the state."""

from __future__ import annotations

import dataclasses

from chiron.internal.v1 import control_pb2
from chiron.store import Change, GpuRecord, InstanceRecord, Kind, NodeRecord, Observed, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.observe import observe_hello, observe_report
from tests.support.cluster_states import LOADING, PENDING, READY, STOPPED, instance

NODE = NodeRecord("a", "127.0.0.1", (GpuRecord(0, "u0"),), "0.1")
ENDED = types_pb2.INSTANCE_STATE_STOPPED


def state(*instances: InstanceRecord) -> Snapshot:
    return Snapshot().after(Change(5, (NODE, *instances)))


def report(*statuses: cluster_pb2.InstanceStatus, applied: int = 0, gpus: int = 1) -> control_pb2.AgentReport:
    return control_pb2.AgentReport(
        instances=[control_pb2.InstanceReport(status=status) for status in statuses],
        gpus=[cluster_pb2.Gpu(index=index, uuid=f"u{index}", healthy=True) for index in range(gpus)],
        applied_revision=applied,
    )


def seen(instance_id: str, reported: int, **fields: object) -> cluster_pb2.InstanceStatus:
    return cluster_pb2.InstanceStatus(instance_id=instance_id, state=reported, model="chat", **fields)  # type: ignore[arg-type]


def test_a_new_node_is_recorded_and_an_unchanged_one_is_not_written_again() -> None:
    hello = control_pb2.AgentHello(
        node_id="a",
        host="127.0.0.1",
        gpus=[cluster_pb2.Gpu(index=0, uuid="u0", healthy=True)],
        agent_version="0.1",
    )
    assert observe_hello(Snapshot(), hello) == NODE
    assert observe_hello(state(), hello) is None


def test_a_node_that_joins_again_is_still_being_drained() -> None:
    before = Snapshot().after(Change(1, (dataclasses.replace(NODE, draining=True),)))
    record = observe_hello(before, control_pb2.AgentHello(node_id="a", host="elsewhere"))
    assert record is not None
    assert record.draining


def test_a_report_that_says_nothing_new_writes_nothing() -> None:
    running = instance("i", "a")
    again = seen("i", READY, incarnation=1, address="127.0.0.1:1")
    observation = observe_report(state(running), "a", report(again), {})
    assert observation.puts == ()
    assert observation.deletes == ()


def test_a_changed_state_is_written_with_what_belongs_to_it() -> None:
    record = instance("i", "a", state=LOADING)
    status = seen("i", READY, incarnation=9, address="h:2", restarts=3, reason="x")
    [put] = observe_report(state(record), "a", report(status), {}).puts
    assert put == dataclasses.replace(record, observed=Observed(READY, "x", 9, "h:2", 3), served=True)


def test_what_has_once_been_ready_has_served_whatever_becomes_of_it() -> None:
    record = instance("i", "a", state=LOADING)
    for reported, served in ((PENDING, False), (READY, True), (LOADING, True)):
        [record] = observe_report(state(record), "a", report(seen("i", reported)), {}).puts  # type: ignore[assignment]
        assert (record.observed.state, record.served) == (reported, served)
    # One of an earlier release: it was ready when this was not yet noted.
    [gone] = observe_report(state(instance("i", "a")), "a", report(seen("i", LOADING)), {}).puts
    assert isinstance(gone, InstanceRecord)
    assert gone.served


def test_a_changed_load_alone_is_not_written() -> None:
    status = seen("i", READY, incarnation=1, address="127.0.0.1:1")
    status.load.running.interactive = 5
    assert observe_report(state(instance("i", "a")), "a", report(status), {}).puts == ()


def test_a_gpu_that_falls_ill_is_written() -> None:
    message = report()
    message.gpus[0].healthy, message.gpus[0].reason = False, "XID 79"
    [put] = observe_report(state(), "a", message, {}).puts
    assert put == dataclasses.replace(NODE, gpus=(GpuRecord(0, "u0", healthy=False, reason="XID 79"),))


def test_an_instance_that_was_to_stop_and_has_is_forgotten() -> None:
    record = instance("i", "a", desired=STOPPED)
    assert observe_report(state(record), "a", report(seen("i", ENDED)), {}).deletes == ((Kind.INSTANCE, "i"),)


def test_an_instance_that_was_to_run_and_has_stopped_is_kept() -> None:
    observation = observe_report(state(instance("i", "a")), "a", report(seen("i", ENDED)), {})
    assert observation.deletes == ()
    assert [put.observed.state for put in observation.puts if isinstance(put, InstanceRecord)] == [ENDED]


class TestLeftOut:
    """Instances on record that a report does not mention."""

    def test_an_older_report_says_nothing_about_what_was_wanted_later(self) -> None:
        record = instance("i", "a", desired=STOPPED)
        for sent in ({}, {"i": (record.generation, 7)}, {"i": (record.generation - 1, 3)}):
            observation = observe_report(state(record), "a", report(applied=6), sent)
            assert observation.puts == observation.deletes == ()

    def test_one_that_was_to_stop_is_gone_once_the_agent_knows_so(self) -> None:
        record = instance("i", "a", desired=STOPPED)
        sent = {"i": (record.generation, 6)}
        assert observe_report(state(record), "a", report(applied=6), sent).deletes == ((Kind.INSTANCE, "i"),)

    def test_one_that_should_run_waits_to_be_started_again(self) -> None:
        record = instance("i", "a")
        sent = {"i": (record.generation, 6)}
        [put] = observe_report(state(record), "a", report(applied=6), sent).puts
        assert isinstance(put, InstanceRecord)
        assert put.observed.state == PENDING
        assert put.observed.address == ""

    def test_other_nodes_instances_are_not_concerned(self) -> None:
        record = instance("i", "b")
        observation = observe_report(state(record), "a", report(applied=9), {"i": (1, 1)})
        assert observation.puts == observation.deletes == ()


class TestUnknown:
    def test_a_worker_that_nobody_asked_for_is_told_with_its_gpus(self) -> None:
        status = seen("x", READY, gpu_indexes=[1], spec_version=3, generation=4, address="h:1")
        [found] = observe_report(state(), "a", report(status), {}).unknown
        assert (found.node_id, found.gpu_indexes, found.spec_version) == ("a", (1,), 3)
        assert found.generation == 4

    def test_one_that_has_ended_is_not(self) -> None:
        assert observe_report(state(), "a", report(seen("x", ENDED)), {}).unknown == ()
