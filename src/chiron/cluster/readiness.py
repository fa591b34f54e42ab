"""What a snapshot says about whether a model serves as asked. Pure."""

from __future__ import annotations

from chiron.policy.placement import NOT_CONNECTED
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_AT_REST = (types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_FAILED)


def is_ready(snapshot: pb.ClusterSnapshot, model: str) -> bool:
    """True when the model is known and as many instances are ready as should be."""
    return any(
        status.spec.name == model and status.ready_instances >= status.desired_instances
        for status in snapshot.models
    )


def failures(snapshot: pb.ClusterSnapshot, model: str) -> list[str]:
    """`instance on node: reason` for each instance of the model that has failed for good."""
    return [
        f"{instance.instance_id} on {instance.node_id}: {instance.reason}"
        for instance in snapshot.instances
        if instance.model == model and instance.state == types_pb2.INSTANCE_STATE_FAILED
    ]


def obstacle(snapshot: pb.ClusterSnapshot, model: str) -> str:
    """Why the model will not become ready by itself; empty while it is ready or anything still moves.

    An instance of any model that starts or drains may be what a placement waits for, and so may a node whose
    agent is not connected now. Where all are and the reason speaks of one that is not, it was told before
    that one came back: the next pass tells another, or places the model.
    """
    if is_ready(snapshot, model) or any(one.state not in _AT_REST for one in snapshot.instances):
        return ""
    if not all(node.live for node in snapshot.nodes):
        return ""
    reason = next((status.reason for status in snapshot.models if status.spec.name == model), "")
    return "" if NOT_CONNECTED in reason else reason
