"""Instances that sleep: which of them must go, what keeps one from sleep or from waking. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from chiron.internal.v1 import control_pb2
from chiron.policy.placement import NodeGpus
from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import types_pb2
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.fleet import (
    Work,
    costs_by_model,
    costs_of,
    held_gpus,
    is_asleep,
    is_current,
    is_failed,
    is_ready,
    is_stopping,
    is_to_sleep,
    node_gpus,
)
from services.global_controller.view import ClusterView, Liveness

_GIB = 2**30
_ROUNDING = 1e-9
LOST_SLEEPER_S = 60.0
"""Silence of a node, in seconds, after which its sleepers are given up. They keep nothing from anybody until
then: on a node out of touch nothing is placed."""
_ENDED = (
    types_pb2.INSTANCE_STATE_FAILED,
    types_pb2.INSTANCE_STATE_STOPPED,
    types_pb2.INSTANCE_STATE_PENDING,
)


def stop_sleepers(work: Work) -> None:
    """Stops sleepers that nobody will wake: their worker has ended, or they would have to be replaced."""
    for model in work.live_models():
        for record in work.fleet(model).asleep:
            node = work.nodes.get(record.node_id)
            if node is not None and node.liveness is Liveness.DEAD and node.silent_s < LOST_SLEEPER_S:
                # It may come back, and its sleepers with it.
                work.look_again(LOST_SLEEPER_S - node.silent_s)
            elif why := _why_gone(work, model, record):
                work.stop(record, why, {}, follows=NOTHING)


def asleep_copy(record: InstanceRecord) -> InstanceRecord:
    """The record with SLEEPING desired, one generation on."""
    return dataclasses.replace(
        record, desired=control_pb2.DESIRED_STATE_SLEEPING, generation=record.generation + 1
    )


def awake_copy(record: InstanceRecord, role: types_pb2.Role.ValueType) -> InstanceRecord:
    """The record with RUNNING desired in this role, one generation on."""
    running = control_pb2.DESIRED_STATE_RUNNING
    return dataclasses.replace(record, desired=running, role=role, generation=record.generation + 1)


class Sleepers:
    """What may sleep and what may wake, as of one view of the cluster."""

    def __init__(self, view: ClusterView) -> None:
        self._models = {model.name: model for model in view.models if not model.deleted}
        self._costs = costs_by_model(view.models)
        self._records: Sequence[InstanceRecord] = (*view.instances, *view.unknown)
        self.nodes: Mapping[str, NodeGpus] = {
            node.node_id: node for node in node_gpus(view.nodes, self._records, self._costs)
        }
        """Every node's GPUs, by its id."""
        self._budgets = view.sleep_host_bytes
        self._kept = view.kept_host_bytes

    def why_not_sleep(self, record: InstanceRecord) -> str:
        """What keeps an instance from sleep; empty: nothing."""
        name = record.instance_id
        if is_to_sleep(record):
            return f"{name} sleeps already, or is about to"
        if is_stopping(record) or not is_ready(record):
            return f"{name} does not serve"
        if record.model not in self._models or not self._costs[record.model].level:
            return f"{record.model} may not sleep: autoscaling.sleep_level of its spec is 0"
        if not self._reachable(record.node_id):
            return f"{record.node_id} is not connected, or is being emptied"
        needed, left = self._host_bytes(record), self._host_left(record.node_id)
        if needed > left:
            more = f"sleepers on {record.node_id} may take {max(0, left) / _GIB:.1f} GiB more"
            return f"{name} needs {needed / _GIB:.1f} GiB of host memory, and {more}"
        return ""

    def why_not_wake(self, record: InstanceRecord) -> str:
        """What keeps a sleeper from waking; empty: nothing."""
        if not (is_asleep(record) and is_to_sleep(record)):
            return f"{record.instance_id} does not sleep"
        if not self._reachable(record.node_id):
            return f"{record.node_id} is not connected, or is being emptied"
        owners = self._owners(record)
        if owners:
            text = ", ".join(f"GPU {index} is {name}'s" for index, name in sorted(owners.items()))
            return f"{record.instance_id} cannot have its GPUs of {record.node_id}: {text}"
        node = self.nodes[record.node_id]
        share, own = costs_of(record, self._costs).memory_share, self._own_share(record)
        for index in record.gpu_indexes:
            if index not in node.healthy:
                return f"GPU {index} of {record.node_id} is not healthy"
            if node.residues.get(index, 0.0) - own.get(index, 0.0) + share > 1 + _ROUNDING:
                return f"what others keep of GPU {index} of {record.node_id} leaves it no room"
        return ""

    def _reachable(self, node_id: str) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.live and not node.draining

    def _owners(self, record: InstanceRecord) -> dict[int, str]:
        return {
            index: other.instance_id
            for other in self._records
            if other.node_id == record.node_id and other.instance_id != record.instance_id
            for index in held_gpus(other)
            if index in record.gpu_indexes
        }

    def _own_share(self, record: InstanceRecord) -> Mapping[int, float]:
        """What the sleeper itself keeps of each GPU."""
        kept = costs_of(record, self._costs).residual_bytes
        total = self._residual_bytes(record)
        residues = self.nodes[record.node_id].residues
        return {index: residues.get(index, 0.0) * kept / total[index] for index in record.gpu_indexes}

    def _residual_bytes(self, record: InstanceRecord) -> Mapping[int, int]:
        there = [one for one in self._records if one.node_id == record.node_id and is_asleep(one)]
        return {
            index: sum(costs_of(one, self._costs).residual_bytes for one in there if index in one.gpu_indexes)
            for index in record.gpu_indexes
        }

    def _host_left(self, node_id: str) -> int:
        there = [one for one in self._records if one.node_id == node_id]
        taken = sum(self._host_bytes(one) for one in there if is_to_sleep(one) and not is_failed(one))
        return self._budgets.get(node_id, 0) - taken

    def _host_bytes(self, record: InstanceRecord) -> int:
        """Host memory that the instance takes in its sleep, by its model's spec and as measured."""
        costs = costs_of(record, self._costs)
        if costs.level != 1:
            return self._kept.get(record.instance_id, 0)
        like = (self._kept.get(one.instance_id, 0) for one in self._records if one.model == record.model)
        return max(costs.host_bytes, *like, 0)


def _why_gone(work: Work, model: ModelRecord, record: InstanceRecord) -> str:
    node = work.nodes.get(record.node_id)
    if node is None or node.liveness is Liveness.DEAD:
        return (
            f"it sleeps on {record.node_id}, which has been silent for {node.silent_s if node else 0.0:.1f} s"
        )
    if node.emptying:
        return f"it sleeps on {record.node_id}, which {node.emptying}"
    if illness := work.illness(record):
        return f"it sleeps, and {illness}"
    if not is_current(model, record.spec_version):
        return f"it sleeps, and runs spec version {record.spec_version}, not {model.spec_version}"
    if record.observed.state in _ENDED:
        return f"its worker ended in its sleep: {record.observed.reason or 'its node runs it no more'}"
    return ""
