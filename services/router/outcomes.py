"""What a failed call to a worker means for the request. Pure."""

from __future__ import annotations

from enum import Enum

import grpc

from chiron.rpc.errors import Reason, handed_back_after, is_full, reason_of


class Verdict(Enum):
    """What the router does next."""

    ELSEWHERE = "the instance refused it: try another"
    UNREACHABLE = "the instance could not be talked to: try another, and send nothing more there"
    INTERRUPTED = "the stream broke after its first message: have another one go on"
    PASS_ON = "the caller gets the worker's status as it is"


class Blame(Enum):
    """What a failed call tells of the instance itself."""

    NONE = "nothing"
    FULL = "it has no place now"
    YIELDED = "it handed the request back: for interactive work, or because it drains"
    FAULT = "it failed"
    UNREACHABLE = "it cannot be talked to"


_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
"""Codes by which gRPC itself tells that a connection or a process went away."""
_TO_GO_ON = (Reason.ENGINE_DEAD.name, Reason.STREAM_INTERRUPTED.name, Reason.RETRY_ELSEWHERE.name)
_LOST = (Reason.ENGINE_DEAD.name, Reason.STREAM_INTERRUPTED.name)
_NEW_TICKET = (Reason.TICKET_EXPIRED.name, Reason.TICKET_KEY_UNKNOWN.name)
"""The router's own ticket came too late, or the worker lags behind with its keys."""


def blame(verdict: Verdict, error: grpc.aio.AioRpcError) -> Blame:
    """What the end of a worker's stream that was not OK tells of the worker; `verdict` is not PASS_ON."""
    if handed_back_after(error) is not None:
        return Blame.YIELDED
    if reason_of(error) in (Reason.RETRY_ELSEWHERE.name, *_NEW_TICKET):
        return Blame.FULL if is_full(error) else Blame.NONE
    unreachable = verdict is Verdict.UNREACHABLE or error.code() is grpc.StatusCode.UNAVAILABLE
    return Blame.UNREACHABLE if unreachable else Blame.FAULT


_NOT_MISSED = (
    # The request's own fault.
    Reason.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND,
    Reason.ADAPTER_NOT_FOUND,
    Reason.DUPLICATE_REQUEST,
    # Its caller takes it elsewhere, where it ends.
    Reason.RETRY_ELSEWHERE,
    Reason.STREAM_INTERRUPTED,
)


def missed(reason: Reason) -> bool:
    """Whether a request that ends so at a router has missed its SLO there."""
    return reason not in _NOT_MISSED


_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
"""Codes by which a worker turns away what it has not begun."""


def ran(verdict: Verdict, code: grpc.StatusCode, *, delivered: bool) -> bool:
    """Whether a request counts as run by an instance whose stream ended so.

    It does not where it was refused, or lost before the caller had anything of it.

    Args:
        verdict: of `judge`.
        code: its gRPC status.
        delivered: whether any instance has sent a message.
    """
    return delivered or (verdict is Verdict.PASS_ON and code not in _REFUSALS)


def judge(code: grpc.StatusCode, reason: str, *, delivered: bool) -> Verdict:
    """Judges the end of a worker's stream that was not OK.

    Args:
        code: its gRPC status.
        reason: ErrorInfo.reason; empty when the worker itself said nothing.
        delivered: whether this instance has sent a message.
    """
    if reason in _NEW_TICKET and not delivered:
        return Verdict.ELSEWHERE
    if code not in _BROKEN:
        return Verdict.PASS_ON
    if delivered:
        return Verdict.INTERRUPTED if reason in ("", *_TO_GO_ON) else Verdict.PASS_ON
    if reason == Reason.RETRY_ELSEWHERE.name:
        return Verdict.ELSEWHERE
    if reason in _LOST:
        return Verdict.UNREACHABLE
    if reason:
        return Verdict.PASS_ON
    return Verdict.UNREACHABLE if code is grpc.StatusCode.UNAVAILABLE else Verdict.ELSEWHERE
