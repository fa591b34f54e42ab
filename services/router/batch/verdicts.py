"""What becomes of an item whose attempt failed. Pure.

| what happened | then | counts as an attempt |
|---|---|---|
| the item itself is refused: invalid, not allowed, unknown adapter, too large | it fails | - |
| no place, no instance, no such model (any more) | later | no: nothing was begun |
| instances refused it, or were lost | later | only where they were lost and it did not get on |
| it cannot go on from where it stood | from its start, at once | no, but twice in a row yes |
| the engine, or whatever else, failed it | later | yes |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import grpc

from chiron.batch.wire import failed
from chiron.rpc.errors import ChironError, Reason, reason_of, told_by
from services.router.proxy import WorkerStatusError


class Then(Enum):
    """What is done with the item."""

    FAIL = "it ends as failed"
    LATER = "it goes back to the queue"
    AGAIN = "it is begun anew at once"
    EXPIRE = "it ends as expired"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of it."""

    then: Then
    reason: str
    """As ItemError.reason."""
    message: str
    counts: bool = False
    """Whether the attempt counts."""
    after_s: float | None = None
    """When to try again, where the refusal says so, in seconds."""
    whole_unit: bool = False
    """What kept it away keeps everything else of its unit away too."""
    violations: tuple[tuple[str, str], ...] = ()
    """Fields of its request, and what is wrong with each."""
    limit: str = ""
    """What it is beyond, as the error's metadata names it."""

    @property
    def error(self) -> bytes:
        """The result of an item that fails for this, serialised."""
        return failed(self.reason, self.message, self.violations, limit=self.limit)


_FINAL = frozenset(
    reason.name
    for reason in (
        Reason.INVALID_ARGUMENT,
        Reason.ADAPTER_NOT_FOUND,
        Reason.NOT_ALLOWED,
        Reason.TENANT_UNKNOWN,
    )
)
_FINAL_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
)
_NOT_BEGUN = frozenset(
    reason.name
    for reason in (
        Reason.QUEUE_FULL,
        Reason.NO_INSTANCE,
        Reason.MODEL_NOT_FOUND,
        Reason.RETRY_ELSEWHERE,
        Reason.STREAM_INTERRUPTED,
    )
)
_NO_PLACE = frozenset(
    reason.name for reason in (Reason.QUEUE_FULL, Reason.NO_INSTANCE, Reason.MODEL_NOT_FOUND)
)


def verdict(error: Exception, *, faults: int, gained: int, each: int, restarted: bool) -> Verdict:
    """Judges the end of an attempt.

    Args:
        error: what it ended with.
        faults: instances that were lost or failed while they had the item.
        gained: output tokens that the attempt has added.
        each: output tokens that make up for one such loss: an item that gets on is not what kills them.
        restarted: whether it was begun anew in this attempt already.
    """
    if isinstance(error, ChironError):
        reason, message, code = error.reason.name, error.message, error.reason.code
        after_s = error.retry_after_s
    elif isinstance(error, WorkerStatusError):
        code = error.error.code()
        reason, message, after_s = reason_of(error.error) or code.name, error.error.details() or "", None
    else:
        return Verdict(Then.LATER, Reason.INTERNAL.name, f"{type(error).__name__}: {error}", counts=True)
    if reason in _FINAL or code in _FINAL_CODES:
        told = told_by(error.error) if isinstance(error, WorkerStatusError) else error
        if told is None:
            return Verdict(Then.FAIL, reason, message)
        limit = told.metadata.get("limit", "")
        return Verdict(Then.FAIL, reason, message, violations=told.violations, limit=limit)
    if reason == Reason.CANNOT_RESUME.name:
        then = Then.LATER if restarted else Then.AGAIN
        return Verdict(then, reason, message, counts=restarted)
    if reason == Reason.DEADLINE_EXCEEDED.name:
        return Verdict(Then.EXPIRE, reason, message)
    if reason in _NOT_BEGUN:
        its_own = gained < faults * each
        whole = reason in _NO_PLACE and not faults
        return Verdict(Then.LATER, reason, message, counts=its_own, after_s=after_s, whole_unit=whole)
    return Verdict(Then.LATER, reason, message, counts=True, after_s=after_s)
