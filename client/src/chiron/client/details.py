"""Reads a failed gRPC call into a typed error, google.rpc details included."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from chiron.client.errors import ChironError, Violation, error_class
from chiron.v1 import status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a call."""

    kind: str
    """`router` or `worker`."""
    name: str
    """Which one, for messages."""


def from_rpc(
    error: grpc.aio.AioRpcError, peer: Peer | None = None, *, timeout_s: float | None = None
) -> ChironError:
    """The typed error of a failed call.

    Args:
        error: what gRPC raised.
        peer: who was called; named in the message of an error that is not the peer's own.
        timeout_s: the request's limit in seconds; None: it has none.
    """
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_after_s: float | None = None
    for kind, value in _details(error):
        if kind == "google.rpc.ErrorInfo":
            info = status_pb2.ErrorReason.FromString(value)
            reason, metadata = info.reason, dict(info.metadata)
        elif kind == "google.rpc.BadRequest":
            bad = status_pb2.FieldViolations.FromString(value)
            violations += [Violation(each.field, each.description) for each in bad.violations]
        elif kind == "google.rpc.RetryInfo":
            delay = status_pb2.RetryDelay.FromString(value).delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    code = error.code()
    message = error.details() or code.name
    return error_class(code, reason)(
        message if reason else _without_reason(code, message, peer, timeout_s),
        reason=reason or code.name,
        violations=tuple(violations),
        retry_after_s=retry_after_s,
        metadata=metadata,
    )


def timed_out(timeout_s: float) -> str:
    """What a request is told whose time is up."""
    return f"timeout_s={timeout_s:g} passed before the answer was complete"


def _without_reason(code: grpc.StatusCode, text: str, peer: Peer | None, timeout_s: float | None) -> str:
    """What an error means that no server of Chiron's raised: gRPC itself did, or a server of another kind."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        return timed_out(timeout_s)
    if peer is None:
        return text
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"{peer.name} does not serve chiron.v1.InferenceService as a {peer.kind} does ({text}); "
            f"is it the address of a {peer.kind}?"
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"{peer.name} was lost: {text}"
    return f"{peer.name}: {text}"


def _details(error: grpc.aio.AioRpcError) -> list[tuple[str, bytes]]:
    """(full message name, serialised message) of each detail; none when they cannot be read."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.ErrorStatus.FromString(value)
            except DecodeError:
                # Foreign details must not hide the status that they came with.
                return []
            return [(each.type_url.rpartition("/")[2], each.value) for each in status.details]
    return []
