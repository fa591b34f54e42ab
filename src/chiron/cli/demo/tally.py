"""What the autoscalers did during a run, from the cluster's own snapshots and decisions. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_SCALE_UPS, _SCALE_DOWNS, _ROLE_CHANGES = ("start", "wake"), ("retire", "sleep"), ("change_role",)


class Tally:
    """Counts that grow with each snapshot."""

    def __init__(self) -> None:
        self._preempted: dict[tuple[str, int], int] = {}
        self._held, self._since = 0, 0.0
        self.gpu_seconds = 0.0
        """GPU-seconds held so far: by instances that wait for their node, load, serve, drain or sleep.

        Added up here because a controller counts for as long as it leads. While nobody leads, what was held
        last counts on.
        """
        self.most_gpus = 0
        """Most GPUs held at once."""

    def see(self, snapshot: pb.ClusterSnapshot, now: float) -> None:
        """Takes a snapshot at a time in seconds, later than the last one.

        Workers that have gone keep what they had counted when they were seen last.
        """
        self.until(now)
        self._held = len(
            {(one.node_id, gpu) for one in snapshot.instances for gpu in one.gpu_indexes if not _is_over(one)}
        )
        self.most_gpus = max(self.most_gpus, self._held)
        for instance in snapshot.instances:
            key = (instance.instance_id, instance.incarnation)
            seen = instance.load.preempted_for_interactive
            self._preempted[key] = max(seen, self._preempted.get(key, 0))

    def until(self, now: float) -> None:
        """Counts GPU-seconds up to now."""
        self.gpu_seconds += self._held * (now - self._since)
        self._since = now

    @property
    def preemptions(self) -> int:
        """Batch requests that gave way to interactive ones."""
        return sum(self._preempted.values())


def _is_over(instance: pb.InstanceStatus) -> bool:
    return instance.state in (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)


def scaling(decisions: Iterable[pb.Decision]) -> dict[str, int]:
    """The autoscaler's acts, by what they did to the fleet."""
    acts = Counter(decision.action for decision in decisions)
    return {
        "scale_ups": sum(acts[action] for action in _SCALE_UPS),
        "scale_downs": sum(acts[action] for action in _SCALE_DOWNS),
        "role_changes": sum(acts[action] for action in _ROLE_CHANGES),
    }
