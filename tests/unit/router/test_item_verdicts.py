"""What becomes of an item whose attempt failed, and what counts."""

from __future__ import annotations

import grpc
import pytest
from grpc_status import rpc_status

from chiron.batch import wire
from chiron.rpc.errors import OVER_CONTEXT, ChironError, Reason
from chiron.v1 import batch_pb2
from services.router.batch.verdicts import Then, verdict
from services.router.proxy import WorkerStatusError


def judged(reason: Reason, *, faults: int = 0, gained: int = 0, restarted: bool = False, **more):
    error = ChironError(reason, "why", **more)
    return verdict(error, faults=faults, gained=gained, each=256, restarted=restarted)


@pytest.mark.parametrize(
    "reason", [Reason.INVALID_ARGUMENT, Reason.ADAPTER_NOT_FOUND, Reason.NOT_ALLOWED, Reason.TENANT_UNKNOWN]
)
def test_what_is_wrong_with_the_item_itself_ends_it(reason: Reason) -> None:
    told = judged(reason)
    assert told.then is Then.FAIL
    error = batch_pb2.ItemResult.FromString(told.error).error
    assert (error.reason, error.message) == (reason.name, "why")
    assert told.error == wire.failed(reason.name, "why")


@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.NO_INSTANCE, Reason.MODEL_NOT_FOUND])
def test_no_place_is_no_attempt_and_keeps_the_whole_unit_away(reason: Reason) -> None:
    told = judged(reason, retry_after_s=7.0)
    assert (told.then, told.counts, told.whole_unit, told.after_s) == (Then.LATER, False, True, 7.0)


@pytest.mark.parametrize(
    ("faults", "gained", "counts"),
    [(0, 0, False), (1, 0, True), (1, 255, True), (1, 256, False), (3, 600, True)],
)
def test_instances_that_an_item_was_lost_with_count_unless_it_gets_on(faults, gained, counts) -> None:
    for reason in (Reason.RETRY_ELSEWHERE, Reason.STREAM_INTERRUPTED, Reason.NO_INSTANCE):
        told = judged(reason, faults=faults, gained=gained)
        assert (told.then, told.counts) == (Then.LATER, counts)


def test_what_cannot_go_on_begins_anew_once() -> None:
    assert judged(Reason.CANNOT_RESUME).then is Then.AGAIN
    again = judged(Reason.CANNOT_RESUME, restarted=True)
    assert (again.then, again.counts) == (Then.LATER, True)


def test_any_other_failure_counts() -> None:
    assert judged(Reason.INTERNAL).counts
    assert judged(Reason.TICKET_USED).then is Then.LATER
    odd = verdict(ValueError("odd"), faults=0, gained=0, each=1, restarted=False)
    assert (odd.then, odd.counts, odd.message) == (Then.LATER, True, "ValueError: odd")


def test_a_worker_status_is_judged_by_its_code_where_it_has_no_reason() -> None:
    def failed(code: grpc.StatusCode):
        error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no")
        return verdict(WorkerStatusError(error), faults=0, gained=0, each=1, restarted=False)

    assert failed(grpc.StatusCode.INVALID_ARGUMENT).then is Then.FAIL
    told = failed(grpc.StatusCode.DATA_LOSS)
    assert (told.then, told.counts, told.reason, told.message) == (Then.LATER, True, "DATA_LOSS", "no")


@pytest.mark.parametrize("at_worker", [False, True])
def test_the_fields_that_are_wrong_are_kept(at_worker: bool) -> None:
    wrong = ChironError.invalid([("chat", "is too long"), ("sampling.n", "is too many")], OVER_CONTEXT)
    error: Exception = wrong
    if at_worker:
        details = rpc_status.to_status(wrong.to_status()).trailing_metadata
        trailing = grpc.aio.Metadata(*details)
        status = grpc.aio.AioRpcError(wrong.reason.code, grpc.aio.Metadata(), trailing, details=wrong.message)
        error = WorkerStatusError(status)
    told = verdict(error, faults=0, gained=0, each=1, restarted=False)
    kept = wire.error_of(batch_pb2.ItemResult.FromString(told.error).error)
    assert (kept.reason, kept.message) == (wrong.reason, wrong.message)
    assert (kept.violations, kept.metadata) == (wrong.violations, wrong.metadata)
