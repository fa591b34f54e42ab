"""What the soak test reads from the history of the state in etcd."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2, state_pb2
from chiron.store.etcd.keys import Keys
from chiron.store.records import Kind
from chiron.v1 import types_pb2
from tests.soak.history import Write, check

KEYS = Keys("/soak")
LOADING, READY, DRAINING, FAILED = (
    types_pb2.INSTANCE_STATE_LOADING,
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_DRAINING,
    types_pb2.INSTANCE_STATE_FAILED,
)


def term(at: int, number: int) -> Write:
    return Write(at, KEYS.term, state_pb2.StoredTerm(term=number).SerializeToString())


def head(at: int, revision: int) -> Write:
    return Write(at, KEYS.head, state_pb2.StoredHead(revision=revision).SerializeToString())


def decided(at: int, number: int) -> Write:
    logged = state_pb2.StoredDecisions(decisions=[{"term": number, "action": "place"}])
    return Write(at, KEYS.decisions(at), logged.SerializeToString())


def instance(
    at: int, name: str, *gpus: int, node: str = "n", state: types_pb2.InstanceState.ValueType = LOADING
) -> Write:
    stored = state_pb2.StoredInstance(
        instance_id=name, node_id=node, gpu_indexes=gpus, desired=control_pb2.DESIRED_STATE_RUNNING
    )
    stored.observed.state = state
    record = state_pb2.StoredRecord(instance=stored)
    return Write(at, KEYS.record((Kind.INSTANCE, name)), record.SerializeToString())


def gone(at: int, name: str) -> Write:
    return Write(at, KEYS.record((Kind.INSTANCE, name)), None)


def test_a_right_history_has_no_breach() -> None:
    history = [
        term(1, 10),
        head(2, 1),
        instance(2, "a", 0),
        decided(2, 10),
        term(3, 12),
        head(4, 1),
        decided(4, 12),
        head(5, 2),
        gone(5, "a"),
        instance(5, "b", 0),
        instance(6, "c", 1),
        instance(6, "d", 0, node="m"),
    ]
    breaches = check(history, "/soak")
    assert (breaches.terms, breaches.gpus) == ((), ())


def test_a_term_that_does_not_rise_is_found() -> None:
    assert check([term(1, 10), term(2, 10)], "/soak").terms
    assert check([term(1, 10), term(2, 9)], "/soak").terms


def test_a_write_by_whoever_has_not_the_newest_term_is_found() -> None:
    assert check([term(1, 10), term(2, 11), decided(3, 10)], "/soak").terms


def test_a_revision_that_goes_back_or_jumps_is_found() -> None:
    assert check([head(1, 1), head(2, 3)], "/soak").terms
    assert check([head(1, 1), head(2, 2), head(3, 1)], "/soak").terms


def test_a_gpu_that_is_given_twice_is_found_however_shortly() -> None:
    history = [instance(1, "a", 0, 1), instance(2, "b", 1), gone(3, "a")]
    assert check(history, "/soak").gpus == ("GPU 1 of n is given to a and b at etcd revision 2",)


def test_only_one_that_its_agent_has_given_up_leaves_its_gpu_to_others() -> None:
    history = [instance(1, "a", 0), instance(2, "a", 0, state=FAILED), instance(3, "b", 0)]
    assert check(history, "/soak").gpus == ()
    assert check([*history, instance(4, "a", 0)], "/soak").gpus, "it starts again"
    for state in (LOADING, READY, DRAINING):
        assert check([instance(1, "a", 0, state=state), instance(2, "b", 0)], "/soak").gpus


def test_a_gpu_that_changes_hands_in_one_transaction_is_given_once() -> None:
    assert check([instance(1, "a", 0), instance(2, "b", 0), gone(2, "a")], "/soak").gpus == ()


def model(at: int, desired: int) -> Write:
    record = state_pb2.StoredRecord(model=state_pb2.StoredModel(name="m", desired_instances=desired))
    return Write(at, KEYS.record((Kind.MODEL, "m")), record.SerializeToString())


def serving(at: int, name: str, *, ready: bool = True, stopped: bool = False) -> Write:
    stored = state_pb2.StoredInstance(instance_id=name, model="m", node_id=name)
    stored.observed.state = types_pb2.INSTANCE_STATE_READY if ready else types_pb2.INSTANCE_STATE_LOADING
    stored.desired = control_pb2.DESIRED_STATE_STOPPED if stopped else control_pb2.DESIRED_STATE_RUNNING
    record = state_pb2.StoredRecord(instance=stored)
    return Write(at, KEYS.record((Kind.INSTANCE, name)), record.SerializeToString())


def act(at: int, action: str, *names: str) -> Write:
    logged = state_pb2.StoredDecisions(decisions=[{"action": action, "instance_id": name} for name in names])
    return Write(at, KEYS.decisions(at), logged.SerializeToString())


def handovers(*writes: Write) -> tuple[str, ...]:
    return check([model(1, 2), *writes], "/soak").handovers


def test_what_serves_is_replaced_while_enough_others_serve() -> None:
    two = [serving(2, "a"), serving(2, "b")]
    assert handovers(*two, serving(3, "c"), serving(4, "a", stopped=True), act(4, "replace", "a")) == ()
    assert handovers(*two, serving(4, "a", stopped=True), act(4, "replace", "a")) == ()
    loading = serving(3, "b", ready=False)
    told = handovers(*two, loading, serving(4, "a", stopped=True), act(4, "replace", "a"))
    assert told == ("a was replaced while 0 of 2 others served at etcd revision 4",)
    both = (serving(4, "a", stopped=True), serving(4, "b", stopped=True))
    assert len(handovers(*two, *both, act(4, "replace", "a", "b"))) == 2


def test_what_does_not_serve_or_is_wanted_no_more_may_stop_at_any_time() -> None:
    two = [serving(2, "a"), serving(2, "b", ready=False)]
    assert handovers(*two, serving(3, "b", stopped=True, ready=False), act(3, "replace", "b")) == ()
    assert handovers(*two, serving(3, "a", stopped=True), act(3, "stop", "a")) == ()
    assert handovers(*two, model(3, 0), serving(3, "a", stopped=True), act(3, "replace", "a")) == ()
