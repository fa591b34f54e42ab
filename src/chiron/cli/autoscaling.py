"""What operators tell the autoscaler: pause and resume, numbers and roles of their own."""

from __future__ import annotations

from chiron.cli.runner import CliError
from chiron.cluster import ClusterAdmin
from chiron.cluster.specs import ROLES
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_NOBODYS = {
    pb.AUTOSCALE_STATE_ADVISORY: "advisory mode",
    pb.AUTOSCALE_STATE_PAUSED: "the autoscaler is paused for it",
    pb.AUTOSCALE_STATE_OFF: "the autoscaler is off",
}


async def pause(controller: str, name: str, *, paused: bool, reason: str = "") -> int:
    """Suspends the autoscaler's acts on a model, or lets it act again."""
    async with ClusterAdmin(controller) as admin:
        model = await admin.set_autoscaling(name, paused=paused, reason=reason)
    print(f"{name}: {state_name(model.autoscale.state)}, {_count(model)}")
    return 0


async def scale(controller: str, name: str, instances: int | None, *, auto: bool) -> int:
    """Sets how many instances a model has, or gives the number back (`auto`)."""
    if auto == (instances is not None):
        raise CliError("name a number of instances, or else --auto")
    async with ClusterAdmin(controller) as admin:
        model = await admin.scale_model(name, instances or 0, auto=auto)
    whose = ""
    if model.HasField("autoscale"):
        whose = f", {_whose(model.autoscale.state)}" if auto else ", until `--auto` gives the number back"
    print(f"{name}: {_count(model)}{whose}")
    return 0


async def set_role(controller: str, instance: str, role: str | None, *, auto: bool) -> int:
    """Sets an instance's role, or gives it back (`auto`)."""
    if auto == (role is not None):
        raise CliError("name a role, or else --auto")
    if role is not None and role not in ROLES:
        raise CliError(f"the role must be one of {', '.join(ROLES)}, not {role!r}")
    async with ClusterAdmin(controller) as admin:
        shown = await admin.set_role(instance, ROLES[role] if role else types_pb2.ROLE_UNSPECIFIED, auto=auto)
    whose = "set by an operator" if shown.role_pinned else "set by the autoscaler"
    print(f"{instance}: {types_pb2.Role.Name(shown.role).removeprefix('ROLE_').lower()}, {whose}")
    return 0


def state_name(state: pb.AutoscaleState.ValueType) -> str:
    """active, advisory, paused, pinned, holding or off."""
    return pb.AutoscaleState.Name(state).removeprefix("AUTOSCALE_STATE_").lower()


def _whose(state: pb.AutoscaleState.ValueType) -> str:
    """Who sets a number of instances that no operator has set."""
    if why := _NOBODYS.get(state):
        return f"its number is nobody's now: {why}"
    return "set by the autoscaler"


def _count(model: pb.ModelStatus) -> str:
    return f"{model.ready_instances} of {model.desired_instances} instances ready"
