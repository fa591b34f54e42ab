"""`chiron instances`: list them, set the limits of one by hand, put one to sleep and wake it."""

from __future__ import annotations

import sys

from rich.console import Console

from chiron.cli.runner import CliError
from chiron.cli.status import instances_table, to_json
from chiron.cluster import ClusterAdmin
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2


async def list_instances(controller: str, *, as_json: bool) -> int:
    """Prints every instance."""
    async with ClusterAdmin(controller) as admin:
        snapshot = await admin.snapshot()
    if as_json:
        print(to_json(pb.ClusterSnapshot(instances=snapshot.instances)))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(file=sys.stdout, width=1000)
        wide.print(instances_table(snapshot), soft_wrap=not console.is_terminal)
    return 0


async def set_limits(
    controller: str, instance: str, batch_size: int | None, step_tokens: int | None, *, auto: bool
) -> int:
    """Sets an instance's limits, or gives both back (`auto`); prints whose they are now."""
    if auto == (batch_size is not None or step_tokens is not None):
        raise CliError("name --batch-size, --step-tokens or both, or else --auto")
    async with ClusterAdmin(controller) as admin:
        shown = await admin.set_instance_limits(
            instance,
            batch_size=0 if auto else batch_size,
            step_token_budget=0 if auto else step_tokens,
        )
    print(f"{instance}: {limits_line(shown)}")
    return 0


async def set_sleeping(controller: str, instance: str, *, sleeping: bool) -> int:
    """Puts an instance to sleep or wakes it; says what comes of it."""
    async with ClusterAdmin(controller) as admin:
        shown = await admin.set_sleeping(instance, sleeping=sleeping)
        snapshot = await admin.snapshot()
    name = types_pb2.InstanceState.Name(shown.state).removeprefix("INSTANCE_STATE_").lower()
    then = "sleeps once its requests have finished" if sleeping else "wakes"
    print(f"{instance}: {then} (now {name})")
    model = next((one for one in snapshot.models if one.spec.name == shown.model), None)
    if model is not None and (line := afterwards(model, sleeping=sleeping)):
        print(line)
    return 0


def afterwards(model: pb.ModelStatus, *, sleeping: bool) -> str:
    """Who decides on an instance that an operator has put to sleep or woken; empty: nobody but operators."""
    name = model.spec.name
    if not model.HasField("autoscale"):
        return ""
    if model.autoscale.HasField("pinned_instances"):
        count = model.autoscale.pinned_instances
        return (
            f"{name} stays at {count} as an operator set; `chiron models scale {name} --auto` gives it back"
        )
    return f"its autoscaler may {'wake it again when requests come' if sleeping else 'put it back to sleep'}"


def limits_line(instance: pb.InstanceStatus) -> str:
    """Each limit and who sets it."""
    local, who = instance.local, instance.local.autoscaler or "its local autoscaler"
    rest = "stays as it is" if who == "off" else f"is set by {who}"
    parts = [
        f"{name} {value} by hand" if value else f"{name} {rest}"
        for name, value in (
            ("batch size", local.set_batch_size),
            ("step-token budget", local.set_step_token_budget),
        )
    ]
    return ", ".join(parts)
