"""What the bytes in a batch queue are: bodies, and the part of a result that the work itself has made.

A body is a serialised GenerateRequest. A result is a serialised ItemResult with `output` or `error` alone;
what the queue itself knows of it is added when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from chiron.batch.records import ItemState, Result
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import inference_pb2

_WITHOUT_WORDS = {
    ItemState.FAILED: (
        Reason.ATTEMPTS_EXHAUSTED,
        "the routers that worked on this item were lost, as often as the queue allows",
    ),
    ItemState.CANCELLED: (Reason.CANCELLED, "the batch was cancelled before this item had a result"),
    ItemState.EXPIRED: (Reason.DEADLINE_EXCEEDED, "the deadline passed before this item had a result"),
}
_REMOVED = (Reason.BATCH_NOT_FOUND, "the result was deleted with the file that showed it")
_DAMAGED = (Reason.INTERNAL, "the item or its result was found damaged in the queue's store")


def body_of(request: inference_pb2.GenerateRequest) -> bytes:
    """The body of an item; equal requests have equal bodies."""
    return request.SerializeToString(deterministic=True)


def request_of(body: bytes) -> inference_pb2.GenerateRequest:
    """The inverse. Raises google.protobuf.message.DecodeError."""
    return inference_pb2.GenerateRequest.FromString(body)


def succeeded(output: pb.ItemOutput) -> bytes:
    """The result of an item that succeeded."""
    return pb.ItemResult(output=output).SerializeToString()


def failed(
    reason: str, message: str, violations: Sequence[tuple[str, str]] = (), *, limit: str = ""
) -> bytes:
    """The result of an item that did not succeed.

    Args:
        reason: the name of a `chiron.rpc.errors.Reason`.
        message: what has gone wrong.
        violations: fields of its request, and what is wrong with each.
        limit: what it is beyond, as in the metadata of such an error; empty: nothing, or it is not known.
    """
    error = pb.ItemError(reason=reason, message=message, limit=limit)
    for field, what in violations:
        error.violations.add(field=field, description=what)
    return pb.ItemResult(error=error).SerializeToString()


def error_of(error: pb.ItemError) -> ChironError:
    """The inverse: the error as it was."""
    reason = Reason.__members__.get(error.reason, Reason.INTERNAL)
    violations = [(one.field, one.description) for one in error.violations]
    metadata = {"limit": error.limit} if error.limit else {}
    return ChironError(reason, error.message, violations=violations, metadata=metadata)


def item_result(result: Result) -> pb.ItemResult:
    """A recorded result as callers get it."""
    try:
        message = pb.ItemResult.FromString(b"" if result.damaged else result.result)
        damaged = result.damaged
    except DecodeError:
        message, damaged = pb.ItemResult(), True
    state = ItemState.FAILED if damaged else result.state
    message.number, message.index, message.custom_id = result.number, result.index, result.custom_id
    message.state = pb.ItemState.ValueType(int(state))
    message.recorded.FromMicroseconds(round(result.recorded * 1e6))
    message.late, message.attempts = result.late, result.attempts
    if damaged or result.removed or (not result.result and state in _WITHOUT_WORDS):
        reason, text = _DAMAGED if damaged else _REMOVED if result.removed else _WITHOUT_WORDS[state]
        message.error.reason, message.error.message = reason.name, text
    return message
