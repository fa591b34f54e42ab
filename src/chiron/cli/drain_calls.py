"""What `chiron drain` asks of the controller."""

from __future__ import annotations

from chiron.cli.runner import CliError
from chiron.cluster import ClusterAdmin
from chiron.cluster.specs import ROLES
from chiron.v1 import types_pb2

_GOING = {
    types_pb2.INSTANCE_STATE_DRAINING: "drains already: it was to go, and this starts no other in its place",
    types_pb2.INSTANCE_STATE_STOPPED: "has stopped already, and this starts no other in its place",
    types_pb2.INSTANCE_STATE_FAILED: "has failed: nothing is left to drain, and this starts no other",
}


async def drain_instance(controller: str, instance: str) -> int:
    """Has an instance replaced, then stopped."""
    async with ClusterAdmin(controller) as admin:
        shown = await admin.drain_instance(instance)
    what = _GOING.get(shown.state, f"drains, another instance of {shown.model} takes its place")
    print(f"{instance}: {what}")
    return 0


async def drain_role(controller: str, model: str, role: str) -> int:
    """Does so with all instances of a model that have a role."""
    if role not in ROLES:
        raise CliError(f"the role must be one of {', '.join(ROLES)}, not {role!r}")
    async with ClusterAdmin(controller) as admin:
        count = await admin.drain_role(model, ROLES[role])
    print(f"{model}: {count} {role} {'instance drains' if count == 1 else 'instances drain'}")
    return 0


async def drain_node(controller: str, node: str, *, undo: bool) -> int:
    """Empties a node, or takes it back into service."""
    async with ClusterAdmin(controller) as admin:
        shown = await admin.drain_node(node, undo=undo)
    print(f"{node}: {'draining' if shown.draining else 'in service'}")
    return 0
