"""A resumed stream goes to the weights that it began on, ahead of those that have not begun, or ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.request import Instruction, OpenWatch, PendingRequest, Place, Refuse

READY, DRAINING, LOADING, STOPPED = (
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_DRAINING,
    types_pb2.INSTANCE_STATE_LOADING,
    types_pb2.INSTANCE_STATE_STOPPED,
)


class Rig:
    """A core with model `m` and instances of different spec versions, one slot each."""

    def __init__(
        self, versions: Mapping[str, int], *, current: int, rollout: int = 0, queue_limit: int = 10
    ) -> None:
        self.core = RouterCore(CoreSettings(queue_limit, 0, 1.0, 2.0), LeastExpectedWait())
        self._watches: dict[str, int] = {}
        self._epoch = 1
        table = control_pb2.RoutingTable(
            epoch=1,
            term=1,
            models=[control_pb2.RoutedModel(name="m", spec_version=current, rollout_version=rollout)],
            instances=[routed(key, version) for key, version in versions.items()],
        )
        self._note(self.core.snapshot(table, 0.0))
        for key in versions:
            self.load(key)

    def _note(self, out: list[Instruction]) -> list[Instruction]:
        self._watches |= {one.instance_id: one.watch for one in out if isinstance(one, OpenWatch)}
        return out

    def load(self, key: str, *, running: int = 0) -> list[Instruction]:
        message = worker_pb2.WatchLoadResponse(
            instance_id=key,
            incarnation=1,
            role=types_pb2.ROLE_MIXED,
            state=READY,
            batch_size=1,
            running=types_pb2.ClassCounts(interactive=running),
        )
        return self.core.load(key, self._watches[key], message, 0.0)

    def delta(self, **changes: object) -> list[Instruction]:
        self._epoch += 1
        return self._note(self.core.delta(control_pb2.RoutingDelta(epoch=self._epoch, **changes), 0.0))

    def submit(self, name: str, *, version: int = 0) -> list[Instruction]:
        request = PendingRequest(name, "m", RequestClass.INTERACTIVE, arrived=0.0)
        if version:
            request.resume(version, 0.0)
        return self.core.submit(request, 0.0)


def routed(key: str, version: int, state: int = READY) -> control_pb2.RoutedInstance:
    return control_pb2.RoutedInstance(
        instance_id=key,
        incarnation=1,
        model="m",
        address=f"host-{key}:1",
        role=types_pb2.ROLE_MIXED,
        state=state,
        spec_version=version,
    )


def places(out: list[Instruction]) -> list[tuple[str, str, int]]:
    return [
        (one.request.request_id, one.placement.instance_id, one.placement.spec_version)
        for one in out
        if isinstance(one, Place)
    ]


def refusal(out: list[Instruction]) -> ChironError:
    (found,) = [one.error for one in out if isinstance(one, Refuse)]
    return found


@pytest.mark.parametrize(("version", "instance"), [(1, "old"), (2, "new")])
def test_a_resumed_stream_goes_to_its_own_version_alone(version: int, instance: str) -> None:
    rig = Rig({"old": 1, "new": 2}, current=2)
    assert places(rig.submit("r", version=version)) == [("r", instance, version)]
    assert places(rig.submit("s", version=version)) == []
    assert places(rig.submit("fresh")) != []


def test_a_version_that_needed_no_new_workers_goes_on_at_those_of_the_one_before() -> None:
    rig = Rig({"a": 2}, current=3, rollout=2)
    assert places(rig.submit("r", version=2)) == [("r", "a", 2)]
    assert rig.submit("waits", version=2) == []
    assert refusal(rig.submit("s", version=1)).reason is Reason.CANNOT_RESUME


def test_a_stream_whose_version_is_gone_ends_and_is_told_which() -> None:
    rig = Rig({"new": 2}, current=2)
    error = refusal(rig.submit("r", version=1))
    assert error.reason is Reason.CANNOT_RESUME
    assert "spec version 1" in error.message
    assert "now version 2" in error.message


@pytest.mark.parametrize("state", [DRAINING, STOPPED])
def test_a_stream_that_waits_ends_when_its_last_instance_takes_no_more(state: int) -> None:
    rig = Rig({"old": 1, "new": 2}, current=2)
    rig.load("old", running=1)
    assert rig.submit("r", version=1) == []
    assert refusal(rig.delta(instances=[routed("old", 1, state)])).reason is Reason.CANNOT_RESUME
    assert rig.core.queues()["m"].resumed == set()


def test_a_stream_waits_for_an_instance_of_its_version_that_starts_again() -> None:
    rig = Rig({"old": 1, "new": 2}, current=2)
    rig.load("old", running=1)
    assert rig.submit("r", version=1) == []
    assert rig.delta(instances=[routed("old", 1, LOADING)]) == []
    assert places(rig.load("old")) == [("r", "old", 1)]


def test_a_stream_waits_for_a_version_that_is_kept_though_no_worker_of_it_runs_now() -> None:
    rig = Rig({"old": 1, "new": 2}, current=2)
    rig.load("old", running=1)
    assert rig.submit("r", version=1) == []
    model = control_pb2.RoutedModel(name="m", spec_version=2, kept_versions=[1, 2])
    out = rig.delta(removed_instance_ids=["old"], models=[model])
    assert not any(isinstance(one, Refuse) for one in out)
    assert rig.submit("s", version=1) == []
    rig.delta(instances=[routed("again", 1)])
    assert places(rig.load("again")) == [("r", "again", 1)]
    rig.load("again", running=1)
    model.kept_versions.remove(1)
    assert refusal(rig.delta(instances=[routed("again", 1, DRAINING)], models=[model])).reason is (
        Reason.CANNOT_RESUME
    )


def test_a_stream_of_the_present_version_waits_without_any_instance() -> None:
    rig = Rig({"new": 2}, current=2)
    out = rig.delta(removed_instance_ids=["new"])
    assert not places(out)
    assert rig.submit("r", version=2) == []
    rig.delta(instances=[routed("next", 2)])
    assert places(rig.load("next")) == [("r", "next", 2)]


def test_a_resumed_stream_is_placed_before_those_that_wait_and_beyond_the_queues_limit() -> None:
    rig = Rig({"a": 1}, current=1, queue_limit=1)
    rig.load("a", running=1)
    assert rig.submit("first") == []
    assert refusal(rig.submit("second")).reason is Reason.QUEUE_FULL
    assert rig.submit("resumed", version=1) == []
    assert rig.submit("resumed too", version=1) == []
    order = []
    for _ in range(3):
        order += [name for name, _, _ in places(rig.load("a"))]
        rig.load("a", running=1)
        rig.core.tick(10.0)
    assert order == ["resumed", "resumed too", "first"]


def test_a_stream_for_other_weights_holds_up_nobody_behind_it() -> None:
    rig = Rig({"old": 1, "new": 2}, current=2)
    rig.load("old", running=1)
    rig.load("new", running=1)
    assert rig.submit("resumed", version=1) == []
    assert rig.submit("fresh") == []
    assert places(rig.load("new")) == [("fresh", "new", 2)]
