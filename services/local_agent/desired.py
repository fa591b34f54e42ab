"""What the controller wants of one instance, checked."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2

_RESIDUAL_BYTES = 4096 * 2**20
_INSTANCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


class BadDesired(Exception):
    """A desired instance that cannot be carried out; the text names the field."""


class Goal(Enum):
    """Where an instance should end up."""

    RUNNING = "running"
    SLEEPING = "sleeping"
    STOPPED = "stopped"


_GOALS = {
    control_pb2.DESIRED_STATE_RUNNING: Goal.RUNNING,
    control_pb2.DESIRED_STATE_SLEEPING: Goal.SLEEPING,
    control_pb2.DESIRED_STATE_STOPPED: Goal.STOPPED,
}
_STATES = {goal: state for state, goal in _GOALS.items()}


@dataclass(frozen=True, slots=True)
class Want:
    """The level that an instance converges to."""

    instance_id: str
    goal: Goal
    spec: cluster_pb2.ModelSpec
    generation: int = 0
    spec_version: int = 0
    """0: whatever the worker runs."""
    role: types_pb2.Role.ValueType = types_pb2.ROLE_MIXED
    gpus: tuple[int, ...] = ()
    drain_timeout_s: float = 30.0
    batch_size: int = 0
    """What an operator has set, in requests; 0: nothing."""
    step_token_budget: int = 0
    """Likewise, in tokens."""
    local_autoscaler: str = ""
    """What the model says of it; empty: nothing."""
    at_once: bool = False
    """Stop without draining."""
    sleep_level: int = 1
    """What its worker does with the weights when it sleeps, as its engine defines."""
    sleep_residual_bytes: int = _RESIDUAL_BYTES
    """Most memory of each GPU that it may keep in its sleep, so that others can have the GPU."""
    trace_parent: str = field(default="", compare=False)
    """W3C context of the decision that asks for this; empty: it has none."""

    def restarts_afresh(self, earlier: Want) -> bool:
        """True when this asks for another worker than `earlier` did, so that its failures count no more."""
        return (self.goal, self.spec_version, self.gpus) != (
            earlier.goal,
            earlier.spec_version,
            earlier.gpus,
        )


def check_instance_id(instance_id: str) -> None:
    """Raises BadDesired for an id that must not become a folder's name."""
    if not _INSTANCE_ID.fullmatch(instance_id):
        raise BadDesired(f"instance_id: {instance_id!r} is not 1 to 100 characters of [a-z0-9.-]")


def want_of(
    desired: control_pb2.DesiredInstance, *, node_gpus: Collection[int], drain_timeout_s: float
) -> Want:
    """Checks one desired instance.

    Args:
        desired: as the controller sent it.
        node_gpus: indexes of the GPUs on this node.
        drain_timeout_s: used where the controller names none.

    Raises:
        BadDesired: names the field that cannot be carried out.
    """
    goal = _GOALS.get(desired.state)
    if goal is None:
        raise BadDesired(f"state: {desired.state} is not RUNNING, SLEEPING or STOPPED")
    gpus = tuple(sorted(desired.gpu_indexes))
    if goal is not Goal.STOPPED:
        _check_placement(desired, gpus, node_gpus)
    return Want(
        instance_id=desired.instance_id,
        goal=goal,
        spec=desired.spec,
        generation=desired.generation,
        spec_version=desired.spec_version,
        role=desired.role or desired.spec.role or types_pb2.ROLE_MIXED,
        gpus=gpus,
        drain_timeout_s=desired.drain_timeout_s if desired.drain_timeout_s > 0 else drain_timeout_s,
        batch_size=desired.batch_size,
        step_token_budget=desired.step_token_budget,
        local_autoscaler=desired.local_autoscaler,
        sleep_level=desired.sleep_level or 1,
        sleep_residual_bytes=desired.sleep_residual_bytes or _RESIDUAL_BYTES,
        trace_parent=desired.trace_parent,
    )


def level_of(want: Want) -> control_pb2.DesiredInstance:
    """The desired instance that `want_of` makes this of."""
    return control_pb2.DesiredInstance(
        instance_id=want.instance_id,
        generation=want.generation,
        state=_STATES[want.goal],
        spec=want.spec,
        spec_version=want.spec_version,
        role=want.role,
        gpu_indexes=want.gpus,
        drain_timeout_s=want.drain_timeout_s,
        batch_size=want.batch_size,
        step_token_budget=want.step_token_budget,
        local_autoscaler=want.local_autoscaler,
        sleep_level=want.sleep_level,
        sleep_residual_bytes=want.sleep_residual_bytes,
    )


def _check_placement(
    desired: control_pb2.DesiredInstance, gpus: tuple[int, ...], node_gpus: Collection[int]
) -> None:
    if not desired.spec.name:
        raise BadDesired("spec.name: must not be empty")
    if not desired.spec.engine:
        raise BadDesired("spec.engine: must not be empty")
    if len(set(gpus)) != len(gpus):
        raise BadDesired(f"gpu_indexes: {_listed(gpus)} names a GPU twice")
    missing = [index for index in gpus if index not in node_gpus]
    if missing:
        have = f"GPUs {_listed(sorted(node_gpus))}" if node_gpus else "no GPUs"
        raise BadDesired(f"gpu_indexes: this node has {have}, not {_listed(missing)}")


def _listed(indexes: Collection[int]) -> str:
    return ", ".join(str(index) for index in indexes)
