"""What a router makes of a worker's failed stream."""

from __future__ import annotations

import grpc
import pytest
from grpc_status import rpc_status

from chiron.rpc.errors import ChironError, Reason, handed_back, handed_back_after
from services.router.outcomes import Blame, Verdict, blame, judge, ran
from services.router.retries import Retries

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "reason", "before", "after"),
    [
        (CODE.UNAVAILABLE, "RETRY_ELSEWHERE", Verdict.ELSEWHERE, Verdict.INTERRUPTED),
        (CODE.UNAVAILABLE, "ENGINE_DEAD", Verdict.UNREACHABLE, Verdict.INTERRUPTED),
        (CODE.UNAVAILABLE, "STREAM_INTERRUPTED", Verdict.UNREACHABLE, Verdict.INTERRUPTED),
        # gRPC's own: the connection could not be made, or broke.
        (CODE.UNAVAILABLE, "", Verdict.UNREACHABLE, Verdict.INTERRUPTED),
        (CODE.CANCELLED, "", Verdict.ELSEWHERE, Verdict.INTERRUPTED),
        (CODE.INTERNAL, "", Verdict.ELSEWHERE, Verdict.INTERRUPTED),
        (CODE.UNKNOWN, "", Verdict.ELSEWHERE, Verdict.INTERRUPTED),
        (CODE.INTERNAL, "INTERNAL", Verdict.PASS_ON, Verdict.PASS_ON),
        (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT", Verdict.PASS_ON, Verdict.PASS_ON),
        (CODE.DEADLINE_EXCEEDED, "", Verdict.PASS_ON, Verdict.PASS_ON),
        (CODE.ALREADY_EXISTS, "DUPLICATE_REQUEST", Verdict.PASS_ON, Verdict.PASS_ON),
        (CODE.RESOURCE_EXHAUSTED, "", Verdict.PASS_ON, Verdict.PASS_ON),
    ],
)
def test_verdicts(code: grpc.StatusCode, reason: str, before: Verdict, after: Verdict) -> None:
    assert judge(code, reason, delivered=False) is before
    assert judge(code, reason, delivered=True) is after


@pytest.mark.parametrize(
    ("code", "reason", "counts"),
    [
        (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT", False),
        (CODE.ALREADY_EXISTS, "DUPLICATE_REQUEST", False),
        (CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL", False),
        (CODE.UNAVAILABLE, "RETRY_ELSEWHERE", False),
        (CODE.UNAVAILABLE, "ENGINE_DEAD", False),
        (CODE.UNAVAILABLE, "", False),
        # It may have been worked on for as long as it was wanted.
        (CODE.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", True),
        (CODE.ABORTED, "ABORTED", True),
        (CODE.ABORTED, "READER_STALLED", True),
        (CODE.INTERNAL, "INTERNAL", True),
    ],
)
def test_what_was_refused_or_lost_before_its_first_token_never_ran(
    code: grpc.StatusCode, reason: str, *, counts: bool
) -> None:
    assert ran(judge(code, reason, delivered=False), code, delivered=False) is counts
    assert ran(judge(code, reason, delivered=True), code, delivered=True)


def ended(error: ChironError) -> grpc.aio.AioRpcError:
    status = rpc_status.to_status(error.to_status())
    return grpc.aio.AioRpcError(
        error.reason.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), error.message
    )


@pytest.mark.parametrize("reason", [Reason.STREAM_INTERRUPTED, Reason.RETRY_ELSEWHERE])
def test_what_was_handed_back_tells_nothing_of_the_instance(reason: Reason) -> None:
    back = ended(ChironError(reason, "handed back", metadata=handed_back(2)))
    assert handed_back_after(back) == 2
    for delivered in (False, True):
        verdict = judge(back.code(), reason.name, delivered=delivered)
        assert blame(verdict, back) is Blame.YIELDED
    lost = ended(ChironError(reason, "lost"))
    assert handed_back_after(lost) is None
    assert blame(Verdict.INTERRUPTED, lost) is not Blame.YIELDED


async def test_a_request_that_is_handed_back_pays_nothing_however_often() -> None:
    attempts = Retries(max_attempts=1, share=0.0, floor_per_s=0.0).begin(first=True)
    assert all(attempts.another(Blame.YIELDED, progressed=turn % 2 == 0) for turn in range(10))
    assert (attempts.made, attempts.failed, attempts.faults) == (10, 0, 0)
    assert not attempts.another(Blame.FAULT)
