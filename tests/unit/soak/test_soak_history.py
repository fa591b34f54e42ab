"""What the soak test reads from the history of the state in etcd."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2, state_pb2
from chiron.store.etcd.keys import Keys
from chiron.store.records import Kind
from tests.soak.history import Write, check

KEYS = Keys("/soak")


def term(at: int, number: int) -> Write:
    return Write(at, KEYS.term, state_pb2.StoredTerm(term=number).SerializeToString())


def head(at: int, revision: int) -> Write:
    return Write(at, KEYS.head, state_pb2.StoredHead(revision=revision).SerializeToString())


def decided(at: int, number: int) -> Write:
    logged = state_pb2.StoredDecisions(decisions=[{"term": number, "action": "place"}])
    return Write(at, KEYS.decisions(at), logged.SerializeToString())


def instance(at: int, name: str, *gpus: int, node: str = "n") -> Write:
    stored = state_pb2.StoredInstance(
        instance_id=name, node_id=node, gpu_indexes=gpus, desired=control_pb2.DESIRED_STATE_RUNNING
    )
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


def test_a_gpu_that_changes_hands_in_one_transaction_is_given_once() -> None:
    assert check([instance(1, "a", 0), instance(2, "b", 0), gone(2, "a")], "/soak").gpus == ()
