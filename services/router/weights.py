"""Which weights a resumed stream may go on at. Pure."""

from __future__ import annotations

from chiron.rpc.errors import ChironError
from chiron.v1 import types_pb2
from services.router import refusals
from services.router.request import PendingRequest
from services.router.table import Table

_SERVING = (
    types_pb2.INSTANCE_STATE_PENDING,
    types_pb2.INSTANCE_STATE_LOADING,
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_SLEEPING,
)
"""States in which, or after which, an instance takes requests."""


def stranded(request: PendingRequest, table: Table) -> ChironError | None:
    """CANNOT_RESUME for a stream whose weights nobody will serve any more; its model is in the table."""
    if not request.spec_version:
        return None
    routed = table.models[request.model]
    wanted = request.spec_version
    if wanted == (routed.rollout_version or routed.spec_version):
        return None  # Another instance of them will come.
    if wanted in routed.kept_versions:
        return None  # One of them starts again.
    for one in table.instances.values():
        if one.model == request.model and one.state in _SERVING and one.spec_version == wanted:
            return None
    return refusals.other_weights(routed, request.spec_version)
