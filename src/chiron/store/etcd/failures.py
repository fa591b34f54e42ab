"""What a failed call to etcd means."""

from __future__ import annotations

import grpc

from chiron.store.contract import CompactedError, RefusedError, TooLargeError, UnavailableError

_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_TOO_LARGE = ("request is too large", "too many operations in txn", "larger than max")
_NOT_TAKEN = ("too many requests", "database space exceeded")
"""Refusals that pass, and before which nothing is written."""
_BAD_TOKEN = ("invalid auth token", "revision of auth store is old", "token is not provided")


def is_token_refused(error: grpc.aio.AioRpcError) -> bool:
    """True when the call was turned away before it did anything, for a token that is not known any more."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _BAD_TOKEN)


def meaning(error: grpc.aio.AioRpcError, endpoint: str) -> Exception:
    """The store's error for a failed call.

    UnavailableError with `uncertain` set stands for a call that may have been carried out all the same.
    """
    details = error.details() or error.code().name
    text = f"etcd at {endpoint}: {details}"
    if error.code() is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return CompactedError(text)
    if any(part in details for part in _TOO_LARGE):
        return TooLargeError(text)
    if any(part in details for part in _NOT_TAKEN):
        return UnavailableError(text)
    if error.code() in _TRANSIENT and "election: no leader" not in details:
        return UnavailableError(text, uncertain=True)
    return RefusedError(text)
