"""Reads a message that a handler has got as bytes."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from chiron.rpc.errors import ChironError, Reason

M = TypeVar("M", bound=Message)


def read(kind: type[M], wire: bytes) -> M:
    """The message. Raises ChironError (INVALID_ARGUMENT) for bytes that are none.

    gRPC's own reader would answer them with UNKNOWN, as if this server were at fault.
    """
    try:
        return kind.FromString(wire)
    except DecodeError as error:
        raise ChironError(Reason.INVALID_ARGUMENT, f"not a {kind.DESCRIPTOR.full_name}: {error}") from error
