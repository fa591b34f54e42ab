"""A node that leaves in good order, explained."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2
from chiron.store import Snapshot
from services.global_controller.observe import has_left
from services.global_controller.view import Act
from services.global_controller.wording import counted


def farewell(snapshot: Snapshot, node_id: str, report: control_pb2.AgentReport, *, starts: bool) -> list[Act]:
    """What a leaving node's report changes, explained."""
    gone = has_left(report)
    if node_id not in snapshot.nodes or not (starts or gone):
        # As almost always: nobody counts the cluster's instances for that.
        return []
    count = sum(one.node_id == node_id for one in snapshot.instances.values())
    acts = []
    if starts:
        reason = f"its agent stops and drains its workers; {counted(count, 'instance')} to move elsewhere"
        acts.append(Act("node_leaving", reason, node_id=node_id, numbers={"instances": count}))
    if gone:
        reason = "its agent has stopped, and all its workers before it"
        acts.append(Act("node_left", reason, node_id=node_id, numbers={"instances": count}))
    return acts
