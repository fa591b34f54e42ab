"""What a waiting request is told that it waits for, on a clock that the test holds."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.request import OpenWatch, PendingRequest

LOADING, PENDING = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_PENDING
BATCH, INTERACTIVE = RequestClass.BATCH, RequestClass.INTERACTIVE


def coming(key: str, loading_s: float, ready_in_s: float, **fields: object) -> control_pb2.ComingInstance:
    return control_pb2.ComingInstance(
        **{
            "instance_id": key,
            "state": LOADING,
            "loading_ms": 1e3 * loading_s,
            "ready_in_ms": 1e3 * ready_in_s,
            **fields,
        }
    )


class Rig:
    """A core with model `m`, of which nothing serves unless `instances` says so."""

    def __init__(
        self,
        *instances: control_pb2.RoutedInstance,
        role: types_pb2.Role.ValueType = types_pb2.ROLE_MIXED,
        **fields: object,
    ) -> None:
        self.core = RouterCore(CoreSettings(100, 0, 1.0, 2.0), LeastExpectedWait())
        table = control_pb2.RoutingTable(
            epoch=1, term=1, models=[control_pb2.RoutedModel(name="m", **fields)], instances=instances
        )
        for instruction in self.core.snapshot(table, 0.0):
            if isinstance(instruction, OpenWatch):
                load = worker_pb2.WatchLoadResponse(
                    instance_id=instruction.instance_id,
                    incarnation=1,
                    role=role,
                    state=types_pb2.INSTANCE_STATE_READY,
                    batch_size=1,
                    running=types_pb2.ClassCounts(interactive=1),
                )
                self.core.load(instruction.instance_id, instruction.watch, load, 0.0)

    def model(self, now: float, **fields: object) -> None:
        """The controller tells something else of the model."""
        epoch = self.core.table.epoch + 1
        told = control_pb2.RoutedModel(name="m", **fields)
        self.core.delta(control_pb2.RoutingDelta(epoch=epoch, models=[told]), now)

    def wait(self, name: str, now: float = 0.0, **fields: object) -> PendingRequest:
        request = PendingRequest(name, "m", **{"request_class": INTERACTIVE, "arrived": now, **fields})
        assert self.core.submit(request, now) == []
        return request


def test_a_loading_instance_is_named_with_its_time_so_far_and_to_come() -> None:
    rig = Rig(coming=[coming("m-1", 12, 18), coming("m-2", 1, 29)])
    request = rig.wait("r", now=1.0)
    told = rig.core.progress(request, 5.0)
    assert told.text == "model m: instance m-1 loads, 17 s of about 30 s; place 1 of 1 in the queue"
    assert (told.instance_id, told.loading_ms, told.ready_in_ms) == ("m-1", 17_000, 13_000)
    assert told.waited_ms == 4000


def test_a_late_one_is_said_to_be_late() -> None:
    rig = Rig(coming=[coming("m-1", 12, 18)])
    told = rig.core.progress(rig.wait("r"), 60.0)
    assert told.text.startswith("model m: instance m-1 loads, 72 s so far, longer than usual;")
    assert told.HasField("ready_in_ms")
    assert told.ready_in_ms == 0


def test_what_stands_in_its_way_is_told() -> None:
    rig = Rig(coming=[coming("m-1", 1, 9, state=PENDING, reason="the worker failed: no weights")])
    text = rig.core.progress(rig.wait("r"), 0.0).text
    assert "instance m-1 is about to load, 1 s of about 10 s (the worker failed: no weights)" in text


def test_the_newest_word_of_the_controller_counts_from_when_it_came() -> None:
    rig = Rig(on_demand=True, reason="one starts as soon as a request waits")
    request = rig.wait("r")
    told = rig.core.progress(request, 1.0)
    assert told.text == "model m: one starts as soon as a request waits; place 1 of 1 in the queue"
    assert (told.instance_id, told.HasField("ready_in_ms")) == ("", False)
    rig.model(2.0, on_demand=True, coming=[coming("m-1", 0.5, 9.5)])
    told = rig.core.progress(request, 3.0)
    assert (told.instance_id, told.loading_ms, told.ready_in_ms) == ("m-1", 1500, 8500)
    rig.model(4.0, on_demand=True, reason="none is wanted")
    assert rig.core.progress(request, 4.0).text.startswith("model m: none is wanted; ")


def test_places_count_from_the_front_and_by_class() -> None:
    rig = Rig(on_demand=True)
    first, last = rig.wait("first"), rig.wait("last", priority=9)
    urgent, batch = rig.wait("urgent", priority=-1), rig.wait("batch", request_class=BATCH)
    places = [
        (told.position, told.waiting) for told in (rig.core.progress(r, 9.0) for r in (urgent, first, last))
    ]
    assert places == [(1, 3), (2, 3), (3, 3)]
    told = rig.core.progress(batch, 9.0)
    assert (told.position, told.waiting) == (1, 1)


def test_a_newcomer_has_a_place_before_places_are_looked_up_again() -> None:
    rig = Rig(on_demand=True)
    assert rig.core.progress(rig.wait("r"), 9.0).position == 1
    told = rig.core.progress(rig.wait("s"), 9.1)
    assert (told.position, told.waiting) == (2, 2)


@pytest.mark.parametrize("passed_s", [0.1, 0.6])
def test_a_place_is_known_anew_within_a_second(passed_s: float) -> None:
    rig = Rig(on_demand=True)
    first, second = rig.wait("r"), rig.wait("s")
    assert rig.core.progress(second, 9.0).position == 2
    rig.core.cancel(first)
    told = rig.core.progress(second, 9.0 + passed_s)
    assert told.position == (2 if passed_s < 0.5 else 1)
    assert told.position <= told.waiting


def test_where_instances_serve_the_queue_alone_is_told() -> None:
    serving = control_pb2.RoutedInstance(
        instance_id="a", incarnation=1, model="m", address="h:1", role=types_pb2.ROLE_MIXED
    )
    rig = Rig(serving)
    told = rig.core.progress(rig.wait("r"), 0.0)
    assert told.text == "model m: place 1 of 1 in the queue, every instance is full"
    assert not rig.core.unserved("m")
    assert Rig().core.unserved("m")


def test_an_instance_whose_role_does_not_take_the_class_is_not_called_full() -> None:
    serving = control_pb2.RoutedInstance(
        instance_id="a", incarnation=1, model="m", address="h:1", role=types_pb2.ROLE_BATCH
    )
    rig = Rig(serving, role=types_pb2.ROLE_BATCH)
    request = rig.wait("r")
    text = rig.core.progress(request, 0.0).text
    assert (
        text == "model m: no instance has a role that takes interactive requests; place 1 of 1 in the queue"
    )
    rig.model(1.0, coming=[coming("m-1", 1, 9)])
    assert "instance m-1 loads" in rig.core.progress(request, 1.0).text
    batch = rig.wait("b", request_class=BATCH)
    assert rig.core.progress(batch, 1.0).text.endswith("place 1 of 1 in the queue, every instance is full")
