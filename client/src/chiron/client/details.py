"""Reads a failed gRPC call into a typed error, google.rpc details included."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from chiron.client.errors import ChironError, Violation, error_class
from chiron.v1 import status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


def from_rpc(error: grpc.aio.AioRpcError) -> ChironError:
    """The typed error of a failed call."""
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
    return error_class(code, reason)(
        error.details() or code.name,
        reason=reason or code.name,
        violations=tuple(violations),
        retry_after_s=retry_after_s,
        metadata=metadata,
    )


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
