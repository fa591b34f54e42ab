"""Reads a message that a handler has got as bytes."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from chiron.rpc.errors import ChironError, Reason

M = TypeVar("M", bound=Message)
_Descriptor = Any
"""protobuf has two kinds, which have no type in common."""

MOST_FIELDS = 100_000
"""Fields of one message, those of its parts included. A part of two bytes takes a hundred once it is decoded,
and all of them together seconds, in which a server does nothing else."""
_SURELY_FEW_BYTES = 64 * 1024
_DEEPEST = 100
"""Nesting beyond which protobuf itself refuses a message."""


def read(kind: type[M], wire: bytes) -> M:
    """The message. Raises ChironError (INVALID_ARGUMENT) for bytes that are none, or of too many fields.

    gRPC's own reader would answer them with UNKNOWN, as if this server were at fault.
    """
    name = kind.DESCRIPTOR.full_name
    if len(wire) > _SURELY_FEW_BYTES and count_fields(kind, wire, MOST_FIELDS) > MOST_FIELDS:
        raise ChironError(Reason.INVALID_ARGUMENT, f"not a {name}: it has more than {MOST_FIELDS} fields")
    try:
        return kind.FromString(wire)
    except DecodeError as error:
        raise ChironError(Reason.INVALID_ARGUMENT, f"not a {name}: {error}") from error


def count_fields(kind: type[Message], wire: bytes, most: int) -> int:
    """Fields of an encoded message and its parts; `most` + 1 for more.

    Of bytes that end early, those before the end: the decoder judges them.
    """
    counter = _Counter(wire, most)
    with suppress(IndexError):
        counter.walk(kind.DESCRIPTOR, len(wire), 0)
    return min(counter.fields, most + 1)


class _Counter:
    """Goes through the tags of a message without decoding what they are of."""

    def __init__(self, wire: bytes, most: int) -> None:
        self._wire = wire
        self._at = 0
        self._most = most
        self.fields = 0

    def walk(self, descriptor: _Descriptor, end: int, depth: int) -> None:
        """Counts up to `end`. Raises IndexError where the bytes end early."""
        parts = _parts(descriptor)
        while self._at < end and self.fields <= self._most:
            self.fields += 1
            tag = self._varint()
            kind = tag & 7
            if kind == 0:
                self._varint()
            elif kind == 1:
                self._at += 8
            elif kind == 5:
                self._at += 4
            elif kind == 2:
                length = self._varint()
                part = parts.get(tag >> 3)
                after = self._at + length
                if part is not None and depth < _DEEPEST:
                    self.walk(part, min(after, end), depth + 1)
                if self.fields <= self._most:
                    self._at = after
            # What is in a group counts as if it stood here: no message of this package has any.

    def _varint(self) -> int:
        wire, at = self._wire, self._at
        byte = wire[at]
        value, shift = byte & 0x7F, 7
        while byte & 0x80:
            at += 1
            byte = wire[at]
            value |= (byte & 0x7F) << shift
            shift += 7
        self._at = at + 1
        return value


@cache
def _parts(descriptor: _Descriptor) -> dict[int, _Descriptor]:
    """The messages that a message's fields hold, by number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
