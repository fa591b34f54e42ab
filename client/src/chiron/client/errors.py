"""Typed errors, and the one table from gRPC status and reason to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import grpc

if TYPE_CHECKING:
    from chiron.client.output import Choice


class Violation(NamedTuple):
    """One bad field of a request."""

    field: str
    """Path of the field, e.g. `sampling.top_p`."""
    description: str
    """What is wrong with it."""


class ChironError(Exception):
    """Base of every error that this package raises about a request."""

    reason: str
    """Machine-readable cause in UPPER_SNAKE_CASE, e.g. `QUEUE_FULL`; the gRPC status name when the other
    side gave none."""
    message: str
    """What happened, for people."""
    violations: tuple[Violation, ...]
    """The bad fields of an InvalidRequest; empty otherwise."""
    retry_after_s: float | None
    """When to try again, in seconds, where the server said so."""
    metadata: dict[str, str]
    """More facts that the server gave."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).__name__.upper()
        self.violations = violations
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})


class InvalidRequest(ChironError):
    """The request can never work as it is; `.violations` names the fields."""

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequest:
        """An error about one field, found before anything was sent."""
        violation = Violation(field, description)
        return cls(f"{field}: {description}", reason="INVALID_ARGUMENT", violations=(violation,))


class NotFound(ChironError):
    """Something that the request names does not exist."""


class ModelNotFound(NotFound):
    """No such model; the message names those there are."""


class AdapterNotFound(NotFound):
    """The model has no such adapter."""


class BatchNotFound(NotFound):
    """The tenant has no batch of this id, or it was forgotten."""


class AlreadyExists(ChironError):
    """A request of this id is live already."""


class BatchExists(AlreadyExists):
    """Another batch has this id: its header or one of its items differs."""


class WaitEstimate(NamedTuple):
    """How long a router has estimated that a request would wait in its queue."""

    mean_s: float
    """Expected wait, in seconds."""
    quantile_s: float
    """The wait that is not exceeded with the probability `quantile`, in seconds."""
    quantile: float
    requests_ahead: int
    """Requests that would have been served before."""
    tokens_per_s: float
    """Output tokens per second of the instances that serve the queue."""
    budget_s: float | None = None
    """Wait that the SLO leaves, in seconds; None: it was not the reason."""


class Overloaded(ChironError):
    """A limit was reached; `.retry_after_s` tells when to come back, where known."""

    @property
    def estimate(self) -> WaitEstimate | None:
        """The wait that the router has estimated; None where it told none."""
        told = self.metadata
        try:
            return WaitEstimate(
                mean_s=float(told["wait_mean_s"]),
                quantile_s=float(told["wait_quantile_s"]),
                quantile=float(told["wait_quantile"]),
                requests_ahead=int(told["requests_ahead"]),
                tokens_per_s=float(told["tokens_per_s"]),
                budget_s=float(told["budget_s"]) if "budget_s" in told else None,
            )
        except (KeyError, ValueError):
            return None


class QueueFull(Overloaded):
    """The router's queue of this model is full."""


class SloOutOfReach(Overloaded):
    """The request asked not to wait in vain (`refuse_if_late`), and would have; `.estimate` says how long."""


class BatchQueueFull(Overloaded):
    """The batch queue takes no more at present."""


class TurnedAway(Overloaded):
    """The router turns this client away for a while, because it cancels too much of what it opens."""


class Unavailable(ChironError):
    """Nobody could serve the request now."""


class NoInstance(Unavailable):
    """No instance of the model serves, and none is on its way."""


class ConnectionLost(Unavailable):
    """The other side could not be reached, or the connection broke, before anything was delivered."""


class RetryElsewhere(Unavailable):
    """The instance or router takes nothing now (loading, draining, full); every attempt ended like this."""


class StreamInterrupted(Unavailable):
    """The stream broke after the first token; what it had delivered is in `.delivered`."""

    delivered: tuple[Choice, ...] = ()
    """The choices as far as they came; their `finish_reason` is None where unfinished."""


class Aborted(ChironError):
    """The other side gave the request up."""


class CannotResume(Aborted):
    """The stream broke after the first token and cannot go on as it began; the message says why."""

    delivered: tuple[Choice, ...] = ()
    """The choices as far as they came."""


class ReaderStalled(Aborted):
    """This side took nothing of its stream for too long."""


class BatchBrokenOff(Aborted):
    """A submission was given up by the router; the same submission may be made again."""


class DeadlineExceeded(ChironError):
    """`timeout_s` passed first, or the SLO's `deadline_s` before an instance had room."""


class Cancelled(ChironError):
    """The other side cancelled the request, or another thread closed its stream."""


class Unauthenticated(ChironError):
    """No credentials, or wrong ones."""


class TicketExpired(Unauthenticated):
    """A worker no longer takes the router's ticket; every attempt with a new one ended like this."""


class PermissionDenied(ChironError):
    """These credentials may not do this."""


class FailedPrecondition(ChironError):
    """The other side is not in a state to do this."""


class WrongBatchState(FailedPrecondition):
    """The batch is in a state in which this cannot be done; the message names it."""


class Unimplemented(ChironError):
    """The other side does not know this call."""


class NoBatchQueue(Unimplemented):
    """The router keeps no batch queue."""


class InternalError(ChironError):
    """A fault on the other side."""


class ProtocolError(ChironError):
    """The other side broke the protocol: a token was repeated or skipped, or the stream's end is missing."""


class InsecureTransport(ChironError, ValueError):
    """An API key would have travelled unencrypted off this host."""


class ClientClosed(ChironError, RuntimeError):
    """The client was used after it was closed, or in another process than the one that made it."""


_BY_REASON: dict[tuple[grpc.StatusCode, str], type[ChironError]] = {
    (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"): ModelNotFound,
    (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND"): AdapterNotFound,
    (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND"): BatchNotFound,
    (grpc.StatusCode.ALREADY_EXISTS, "BATCH_EXISTS"): BatchExists,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"): QueueFull,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLO_OUT_OF_REACH"): SloOutOfReach,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "BATCH_QUEUE_FULL"): BatchQueueFull,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ABANDONED"): TurnedAway,
    (grpc.StatusCode.UNAUTHENTICATED, "TICKET_EXPIRED"): TicketExpired,
    (grpc.StatusCode.UNAUTHENTICATED, "TICKET_KEY_UNKNOWN"): TicketExpired,
    (grpc.StatusCode.UNAVAILABLE, ""): ConnectionLost,
    (grpc.StatusCode.UNAVAILABLE, "NO_INSTANCE"): NoInstance,
    (grpc.StatusCode.UNAVAILABLE, "RETRY_ELSEWHERE"): RetryElsewhere,
    (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD"): RetryElsewhere,
    (grpc.StatusCode.UNAVAILABLE, "STREAM_INTERRUPTED"): StreamInterrupted,
    (grpc.StatusCode.ABORTED, "CANNOT_RESUME"): CannotResume,
    (grpc.StatusCode.ABORTED, "READER_STALLED"): ReaderStalled,
    (grpc.StatusCode.ABORTED, "BATCH_BROKEN_OFF"): BatchBrokenOff,
    (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_STATE"): WrongBatchState,
    (grpc.StatusCode.UNIMPLEMENTED, "NO_BATCH_QUEUE"): NoBatchQueue,
    # gRPC tells by these, too, that a connection or a process went away.
    (grpc.StatusCode.CANCELLED, ""): ConnectionLost,
    (grpc.StatusCode.UNKNOWN, ""): ConnectionLost,
    (grpc.StatusCode.INTERNAL, ""): ConnectionLost,
}
_BY_STATUS: dict[grpc.StatusCode, type[ChironError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}


def error_class(code: grpc.StatusCode, reason: str) -> type[ChironError]:
    """The class of a failed call.

    Args:
        code: its gRPC status.
        reason: google.rpc.ErrorInfo.reason; empty when the failure carries none, as a broken connection does.
    """
    return _BY_REASON.get((code, reason)) or _BY_STATUS.get(code, InternalError)
