"""The one table from Chiron's errors to gRPC status, and google.rpc details."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

_Detail = TypeVar(
    "_Detail", error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo
)
DOMAIN = "chiron"
FULL: Mapping[str, str] = {"full": "true"}
"""Metadata of a RETRY_ELSEWHERE whose only cause is that there is no place now: nothing is wrong there."""
OVER_CONTEXT: Mapping[str, str] = {"limit": "context"}
"""Metadata of an INVALID_ARGUMENT: prompt and output are longer than the model's context."""

_HANDED_BACK = "handed_back"


class Reason(Enum):
    """Why a call was refused or ended; the value is its gRPC status. The name travels in ErrorInfo.reason."""

    def __new__(cls, code: grpc.StatusCode) -> Reason:
        """Keeps members apart that share a status."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.code = code
        return member

    code: grpc.StatusCode

    INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
    MODEL_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    ADAPTER_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    NODE_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    DECISION_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    INSTANCE_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    VERSION_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    """No such version of a model's spec is kept."""
    DUPLICATE_REQUEST = grpc.StatusCode.ALREADY_EXISTS
    QUEUE_FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
    SLO_OUT_OF_REACH = grpc.StatusCode.RESOURCE_EXHAUSTED
    """The wait is estimated to be longer than the SLO allows, and the caller asked to be told; the metadata
    has the estimate."""
    NO_INSTANCE = grpc.StatusCode.UNAVAILABLE
    """No instance of the model serves, and none is on its way."""
    RETRY_ELSEWHERE = grpc.StatusCode.UNAVAILABLE
    """This worker takes nothing (loading, draining, asleep, other incarnation); no token was sent."""
    STREAM_INTERRUPTED = grpc.StatusCode.UNAVAILABLE
    """The worker was lost after the first token."""
    ENGINE_DEAD = grpc.StatusCode.UNAVAILABLE
    """The engine died; no token was sent."""
    DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
    CANNOT_RESUME = grpc.StatusCode.ABORTED
    """A stream that broke after its first token cannot go on as it began; the message says why."""
    READER_STALLED = grpc.StatusCode.ABORTED
    """The caller took nothing of its stream for too long."""
    ABORTED = grpc.StatusCode.ABORTED
    BUSY = grpc.StatusCode.FAILED_PRECONDITION
    STALE_TERM = grpc.StatusCode.FAILED_PRECONDITION
    NOT_LEADER = grpc.StatusCode.UNAVAILABLE
    """This controller does not lead; `leader` in the metadata is host:port of the one that does, if known."""
    STORE_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
    """The cluster's state, or a router's batch queue, cannot be written at present."""
    NOT_CONTROL_SOCKET = grpc.StatusCode.PERMISSION_DENIED
    NOT_LOCAL = grpc.StatusCode.PERMISSION_DENIED
    """Only callers on the same host may ask for this."""
    CREDENTIALS_MISSING = grpc.StatusCode.UNAUTHENTICATED
    """Neither an API key nor a certificate says who calls."""
    KEY_INVALID = grpc.StatusCode.UNAUTHENTICATED
    KEY_REVOKED = grpc.StatusCode.UNAUTHENTICATED
    KEY_EXPIRED = grpc.StatusCode.UNAUTHENTICATED
    TENANT_UNKNOWN = grpc.StatusCode.PERMISSION_DENIED
    NOT_ALLOWED = grpc.StatusCode.PERMISSION_DENIED
    """These credentials may not do this: a model, a class, a priority, an administrator's call."""
    QUOTA_EXCEEDED = grpc.StatusCode.RESOURCE_EXHAUSTED
    TOO_MANY_ABANDONED = grpc.StatusCode.RESOURCE_EXHAUSTED
    """The caller cancels too much of what it opens, or leaves its tickets unused."""
    KEY_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    TENANT_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    TICKET_REQUIRED = grpc.StatusCode.UNAUTHENTICATED
    """A worker was called without a ticket, and not by a router."""
    TICKET_INVALID = grpc.StatusCode.UNAUTHENTICATED
    """Unreadable, unsigned, or its signature does not fit it."""
    TICKET_KEY_UNKNOWN = grpc.StatusCode.UNAUTHENTICATED
    """Signed with a key that is not accepted (any more); a new ticket may be."""
    TICKET_EXPIRED = grpc.StatusCode.UNAUTHENTICATED
    """It was not used in time; ask for a new one."""
    TICKET_USED = grpc.StatusCode.UNAUTHENTICATED
    """A ticket counts once."""
    TICKET_MISMATCH = grpc.StatusCode.PERMISSION_DENIED
    """The request asks for something else, or for more, than its ticket says."""
    NO_BATCH_QUEUE = grpc.StatusCode.UNIMPLEMENTED
    """This router keeps no batch queue."""
    BATCH_NOT_FOUND = grpc.StatusCode.NOT_FOUND
    """The tenant has no such batch, or it was forgotten."""
    BATCH_EXISTS = grpc.StatusCode.ALREADY_EXISTS
    """Another batch of the tenant has this id."""
    BATCH_STATE = grpc.StatusCode.FAILED_PRECONDITION
    """The batch is in a state in which this cannot be done."""
    BATCH_QUEUE_FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
    """A limit of the whole queue is reached; one of the tenant is QUOTA_EXCEEDED."""
    BATCH_BROKEN_OFF = grpc.StatusCode.ABORTED
    """A submission was given up (silent for too long, or discarded by another one); send it again."""
    CANCELLED = grpc.StatusCode.CANCELLED
    """Of an item: its batch was cancelled before the item had a result."""
    ATTEMPTS_EXHAUSTED = grpc.StatusCode.ABORTED
    """Of an item: it was begun as often as the queue allows, and never came to an end."""
    INTERNAL = grpc.StatusCode.INTERNAL


_MOST_TEXT = 2000
"""Bytes on the wire of an error's text, and of its fields together: a text travels twice, and gRPC drops
trailers beyond 16 KiB, and the status with them."""
_LEAST_ROOM = 64
"""Too little for one more violation."""
_CUT = "..."


class ChironError(Exception):
    """A refusal with everything that the caller is told."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        """(field path, what is wrong with it)."""
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

    @classmethod
    def invalid(
        cls, violations: Sequence[tuple[str, str]], metadata: Mapping[str, str] | None = None
    ) -> ChironError:
        """INVALID_ARGUMENT whose text and details name each bad field."""
        text = "; ".join(f"{field}: {what}" for field, what in violations)
        return cls(Reason.INVALID_ARGUMENT, text, violations=violations, metadata=metadata)

    def to_status(self) -> status_pb2.Status:
        """The google.rpc.Status with ErrorInfo, and BadRequest and RetryInfo where they apply.

        Text that is too long to travel is cut, violations that do not fit are left out.
        """
        info = error_details_pb2.ErrorInfo(reason=self.reason.name, domain=DOMAIN, metadata=self.metadata)
        details: list[any_pb2.Any] = [_pack(info)]
        if self.violations:
            bad = error_details_pb2.BadRequest()
            room = _MOST_TEXT
            for field, what in self.violations:
                told = shortened(field, room // 2), shortened(what, room // 2)
                bad.field_violations.add(field=told[0], description=told[1])
                room -= sum(map(_wire_length, told))
                if room < _LEAST_ROOM:
                    break
            details.append(_pack(bad))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        code = code_pb2.Code.Value(self.reason.code.name)
        return status_pb2.Status(code=code, message=shortened(self.message), details=details)


def shortened(text: str, most: int = _MOST_TEXT) -> str:
    """The text as an error can carry it: cut where it would take more than `most` bytes of a trailer."""
    if len(text) <= most and _wire_length(text) <= most:
        return text
    kept = text[:most]
    while _wire_length(kept) > most - len(_CUT):
        kept = kept[: len(kept) * 2 // 3]
    return kept + _CUT


def _wire_length(text: str) -> int:
    """Bytes of a text in a gRPC trailer, where all but printable ASCII is written in three characters."""
    if text.isascii() and text.isprintable():
        return len(text) + 2 * text.count("%")
    return sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in text.encode())


class Prepared:
    """A refusal that is serialised once, for many calls."""

    def __init__(self, error: ChironError) -> None:
        self._code, self._message = error.reason.code, shortened(error.message)
        self._details = rpc_status.to_status(error.to_status()).trailing_metadata

    async def abort(self, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        """Ends the caller's call with the status and details. Raises CancelledError when it has gone."""
        try:
            await context.abort(self._code, self._message, self._details)
        except grpc.aio.InternalError as failure:
            raise asyncio.CancelledError from failure
        raise AssertionError("context.abort raises")


async def abort(context: grpc.aio.ServicerContext[object, object], error: ChironError) -> NoReturn:
    """Ends the call with the error's status and details. Raises CancelledError when the caller has gone."""
    await Prepared(error).abort(context)


def reason_of(error: grpc.RpcError) -> str:
    """ErrorInfo.reason of a failed call; empty when the server sent none."""
    for info in _details(error, error_details_pb2.ErrorInfo):
        return str(info.reason)
    return ""


def metadata_of(error: grpc.RpcError) -> Mapping[str, str]:
    """ErrorInfo.metadata of a failed call; empty when the server sent none."""
    for info in _details(error, error_details_pb2.ErrorInfo):
        return dict(info.metadata)
    return {}


def told_by(error: grpc.RpcError) -> ChironError | None:
    """The error that a server has ended a call with, as it was before it travelled; None: it gave no reason
    that is known here."""
    reason = Reason.__members__.get(reason_of(error))
    if reason is None or not isinstance(error, grpc.aio.AioRpcError):
        return None
    retry_after_s: float | None = None
    for info in _details(error, error_details_pb2.RetryInfo):
        retry_after_s = info.retry_delay.ToTimedelta().total_seconds()
    violations = [
        (one.field, one.description)
        for bad in _details(error, error_details_pb2.BadRequest)
        for one in bad.field_violations
    ]
    return ChironError(
        reason,
        error.details() or reason.name,
        violations=violations,
        retry_after_s=retry_after_s,
        metadata=metadata_of(error),
    )


def is_full(error: grpc.RpcError) -> bool:
    """Whether the server refused the call for want of a place alone."""
    return FULL.items() <= metadata_of(error).items()


def handed_back(preemptions: int) -> Mapping[str, str]:
    """Metadata of the end of a request that a worker gives back: for interactive work, or as it drains.

    With STREAM_INTERRUPTED it goes on elsewhere from the tokens that it has, with RETRY_ELSEWHERE it had not
    begun. Nothing has failed. `preemptions`: how often it was preempted, over all its attempts.
    """
    return {_HANDED_BACK: str(preemptions)}


def handed_back_after(error: grpc.RpcError) -> int | None:
    """How often a request was preempted that a worker has given back; None: it ended for another reason."""
    told = metadata_of(error).get(_HANDED_BACK, "")
    return int(told) if told.isdecimal() else None


def _details(error: grpc.RpcError, kind: type[_Detail]) -> list[_Detail]:
    trailing = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else None
    found = []
    for key, value in trailing or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    found.append(message)
    return found


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
