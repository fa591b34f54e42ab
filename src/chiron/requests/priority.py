"""How class and client priority become the one number that an engine orders its queue by."""

from __future__ import annotations

from chiron.v1 import types_pb2

BATCH_OFFSET = 10_000
"""Above every client priority, so that any interactive request goes before any batch request."""


def engine_priority(request_class: types_pb2.RequestClass.ValueType, priority: int) -> int:
    """The engine's priority of a request: a lower value is more urgent."""
    return priority + (BATCH_OFFSET if request_class == types_pb2.REQUEST_CLASS_BATCH else 0)
