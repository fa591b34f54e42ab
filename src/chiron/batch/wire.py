"""What the bytes in a batch queue are: bodies, and the part of a result that the work itself has made.

A body is a serialised GenerateRequest. A result is a serialised ItemResult with `output` or `error` alone;
what the queue itself knows of it is added when it is read.
"""

from __future__ import annotations

from chiron.batch.records import ItemState, Result
from chiron.rpc.errors import Reason
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import inference_pb2

_WITHOUT_WORDS = {
    ItemState.FAILED: (Reason.INTERNAL, "the queue kept neither answer nor reason"),
    ItemState.CANCELLED: (Reason.CANCELLED, "the batch was cancelled before this item had a result"),
    ItemState.EXPIRED: (Reason.DEADLINE_EXCEEDED, "the deadline passed before this item had a result"),
}


def body_of(request: inference_pb2.GenerateRequest) -> bytes:
    """The body of an item; equal requests have equal bodies."""
    return request.SerializeToString(deterministic=True)


def request_of(body: bytes) -> inference_pb2.GenerateRequest:
    """The inverse. Raises google.protobuf.message.DecodeError."""
    return inference_pb2.GenerateRequest.FromString(body)


def succeeded(output: pb.ItemOutput) -> bytes:
    """The result of an item that succeeded."""
    return pb.ItemResult(output=output).SerializeToString()


def failed(reason: str, message: str) -> bytes:
    """The result of an item that did not succeed; `reason` is the name of a `chiron.rpc.errors.Reason`."""
    return pb.ItemResult(error=pb.ItemError(reason=reason, message=message)).SerializeToString()


def item_result(result: Result) -> pb.ItemResult:
    """A recorded result as callers get it. Raises google.protobuf.message.DecodeError for damaged bytes."""
    message = pb.ItemResult.FromString(result.result)
    message.number, message.index, message.custom_id = result.number, result.index, result.custom_id
    message.state = pb.ItemState.ValueType(int(result.state))
    message.recorded.FromMicroseconds(round(result.recorded * 1e6))
    message.late, message.attempts = result.late, result.attempts
    if not result.result and result.state in _WITHOUT_WORDS:
        reason, text = _WITHOUT_WORDS[result.state]
        message.error.reason, message.error.message = reason.name, text
    return message
