"""What a router makes of a worker's failed stream."""

from __future__ import annotations

import grpc
import pytest

from services.router.outcomes import Verdict, judge

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
