"""The cluster at work as one screen: GPUs, models, and decisions as they happen. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from chiron.cli.batch.durations import short
from chiron.cli.decision_text import headline, in_short
from chiron.cli.fitting import Column, FittingTable
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

DECISIONS_SHOWN = 8
_WIDEST_ACT = 40
"""Columns to which what was done is filled up, so that what came of it stands in line."""
_AWAKE = (
    types_pb2.INSTANCE_STATE_PENDING,
    types_pb2.INSTANCE_STATE_LOADING,
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_DRAINING,
)
_STYLES = {
    pb.OUTCOME_STATE_DONE: "green",
    pb.OUTCOME_STATE_FAILED: "bold red",
    pb.OUTCOME_STATE_OVERTAKEN: "yellow",
}


def top_view(
    snapshot: pb.ClusterSnapshot, decisions: Sequence[pb.Decision], *, decisions_shown: int = DECISIONS_SHOWN
) -> RenderableType:
    """One screen.

    Args:
        snapshot: the cluster now.
        decisions: those known, the oldest first, each with its outcome so far.
        decisions_shown: how many of them to show, the newest.
    """
    parts: list[RenderableType] = [cluster_line(snapshot), Text(""), model_table(snapshot)]
    parts += [Text(text, style="yellow") for model in snapshot.models if (text := _said(model))]
    if decisions and decisions_shown > 0:
        parts += [Text(""), decision_lines(decisions[-decisions_shown:])]
    return Group(*parts)


def cluster_line(snapshot: pb.ClusterSnapshot) -> Text:
    """GPUs, nodes, leader and routers in one line."""
    counts = gpu_counts(snapshot)
    live = sum(node.live for node in snapshot.nodes)
    nodes = (
        _counted(live, "node")
        if live == len(snapshot.nodes)
        else f"{live} of {_counted(len(snapshot.nodes), 'node')}"
    )
    gpus = ", ".join(
        f"{counts[name]} {name}" for name in ("awake", "asleep", "free", "out of use") if counts[name]
    )
    leader = next((one for one in snapshot.controllers if one.leader), None)
    led = (
        f"{leader.address} leads for {short(leader.reign_ms / 1e3)}" if leader is not None else "nobody leads"
    )
    if leader is not None and leader.settling:
        led += ", settling"
    interactive = sum(router.queued.interactive for router in snapshot.routers)
    batch = sum(router.queued.batch for router in snapshot.routers)
    routers = _counted(len(snapshot.routers), "router")
    queued = f"{routers}, {interactive} interactive and {batch} batch wait there"
    if items := _queued_items(snapshot.routers):
        queued += f", {_counted(items, 'batch item')} queued"
    return Text(
        f"{_counted(sum(counts.values()), 'GPU')}: {gpus or 'none'} · {nodes} · {led} · {queued}",
        style="bold",
    )


def gpu_counts(snapshot: pb.ClusterSnapshot) -> Counter[str]:
    """How many GPUs of live nodes are awake, asleep, free or out of use: each counts once."""
    held: dict[tuple[str, int], str] = {}
    for instance in snapshot.instances:
        for index in instance.gpu_indexes:
            if instance.state in _AWAKE:
                held[instance.node_id, index] = "awake"
            elif instance.state == types_pb2.INSTANCE_STATE_SLEEPING:
                held.setdefault((instance.node_id, index), "asleep")
    counts: Counter[str] = Counter()
    for node in snapshot.nodes:
        for gpu in node.gpus if node.live else ():
            out = "free" if gpu.healthy and not node.draining else "out of use"
            counts[held.get((node.node_id, gpu.index), out)] += 1
    return counts


def model_table(snapshot: pb.ClusterSnapshot) -> FittingTable:
    """A row for each model."""
    table = FittingTable(
        Column("model"),
        Column("ready"),
        Column("instances", rank=4, prose=True),
        Column("running/slots", rank=1),
        Column("safe", rank=9),
        Column("IBP", rank=2),
        Column("Θ", rank=5),
        Column("BBP", rank=6),
        Column("attained", rank=3),
        Column("waiting", rank=7),
        Column("tok/s", rank=8),
    )
    for model in snapshot.models:
        name = model.spec.name
        mine = [one for one in snapshot.instances if one.model == name]
        ready = [one for one in mine if one.state == types_pb2.INSTANCE_STATE_READY]
        running = sum(one.load.running.interactive + one.load.running.batch for one in ready)
        waiting = sum(one.load.waiting.interactive + one.load.waiting.batch for one in ready)
        ibp, theta, bbp = _pressures(model, ready)
        table.add_row(
            name,
            f"{model.ready_instances}/{model.desired_instances}",
            by_role(mine),
            f"{running}/{sum(one.load.batch_size for one in ready)}",
            str(sum(one.load.safe_batch_size for one in ready)),
            ibp,
            theta,
            bbp,
            attained(model.attainment),
            str(waiting),
            f"{sum(one.load.tokens_per_s for one in ready):.0f}",
        )
    return table


def decision_lines(decisions: Sequence[pb.Decision]) -> RenderableType:
    """A line for each decision, with what has come of it: that alone is cut where there is little room."""
    width = min(_WIDEST_ACT, max(cell_len(what(one)) for one in decisions))
    lines = []
    for one in decisions:
        did = what(one)
        came = in_short(one) if one.HasField("outcome") else one.reason
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{clock(one)}  ", style="dim").append(did.ljust(width))
        lines.append(line.append(f"  {came}", style=_STYLES.get(one.outcome.state, "")))
    return Group(*lines)


def decision_line(decision: pb.Decision) -> str:
    """A decision as one line: what was done and why, and what has come of it."""
    came = f" [{in_short(decision)}]" if decision.HasField("outcome") else ""
    return f"{clock(decision)} {what(decision)}: {decision.reason}{came}"


def what(decision: pb.Decision) -> str:
    """What was done, with the model where it is not named by that."""
    done = headline(decision)
    return f"{decision.model}: {done}" if decision.model and decision.model not in done else done


def clock(decision: pb.Decision) -> str:
    """When it was made, by the local clock."""
    return time.strftime("%H:%M:%S", time.localtime(decision.time.ToMilliseconds() / 1e3))


def by_role(instances: Iterable[pb.InstanceStatus]) -> str:
    """How many instances of which role are in which state."""
    counts = Counter(
        (
            types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower(),
            types_pb2.InstanceState.Name(one.state).removeprefix("INSTANCE_STATE_"),
        )
        for one in instances
        if one.state != types_pb2.INSTANCE_STATE_STOPPED
    )
    return ", ".join(f"{count} {role} {state}" for (role, state), count in sorted(counts.items()))


def attained(attainment: pb.Attainment) -> str:
    """Share of the interactive requests of the last minute that kept their SLO; empty: none had one."""
    told = attainment.last_minute.interactive
    return f"{told.met / told.requests:.1%}" if told.requests else ""


def _pressures(model: pb.ModelStatus, ready: Sequence[pb.InstanceStatus]) -> tuple[str, str, str]:
    """IBP, Θ and BBP as the autoscaler last found them; where none works, IBP by the last reports."""
    if model.HasField("autoscale") and model.autoscale.numbers:
        found = model.autoscale
        return f"{found.ibp:.2f}", f"{found.theta:.2f}", f"{found.bbp:.0f}"
    open_to_all = [one for one in ready if one.role != types_pb2.ROLE_BATCH]
    slots = sum(one.load.batch_size for one in open_to_all)
    demand = sum(one.load.running.interactive + one.load.waiting.interactive for one in open_to_all)
    return (f"{demand / slots:.2f}" if slots else ""), "", ""


def _said(model: pb.ModelStatus) -> str:
    """What stands in the model's way, and what its autoscaler says where it does not act freely."""
    texts = [model.reason] if model.reason else []
    state = model.autoscale.state
    if model.HasField("autoscale") and state != pb.AUTOSCALE_STATE_ACTIVE:
        name = pb.AutoscaleState.Name(state).removeprefix("AUTOSCALE_STATE_").lower()
        texts.append(f"autoscaling {name}: {model.autoscale.reason}")
    return f"{model.spec.name}: {'; '.join(texts)}" if texts else ""


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _queued_items(routers: Iterable[pb.RouterStatus]) -> int:
    """Items of all durable queues: routers that share one tell the same of it."""
    return sum({one.batch_queue.queue_id: one.batch_queue.waiting for one in routers}.values())
