"""From JSON objects to those of the wire. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from services.router.http.reading import invalid

_DEEPEST = 28
"""Objects and arrays within each other: the wire has 100 levels, of which each takes up to three."""


def to_struct(found: Mapping[str, Any], at: str) -> struct_pb2.Struct:
    """The same object. Raises HttpError: it is nested too deeply, or has a number that is too large."""
    if _deeper(found, _DEEPEST):
        raise invalid(f"{at}: has more than {_DEEPEST} objects and arrays within each other.", at)
    struct = struct_pb2.Struct()
    try:
        struct.update(found)
    except OverflowError:
        raise invalid(f"{at}: has a number that is too large.", at) from None
    return struct


def _deeper(found: Any, than: int) -> bool:
    """Whether more than so many objects and arrays are within each other."""
    if isinstance(found, dict):
        inner: Any = found.values()
    elif isinstance(found, list):
        inner = found
    else:
        return False
    return than == 0 or any(_deeper(each, than - 1) for each in inner)
