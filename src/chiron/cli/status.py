"""`chiron status`: the cluster as tables, as JSON, or as a line for each change."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from chiron.cli.autoscaling_table import autoscaling_tables
from chiron.cli.fitting import Column, FittingTable
from chiron.cli.runner import CliError
from chiron.cluster import AdminError, ClusterAdmin
from chiron.cluster.leaderless import Standing, store_of
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_STYLES = {
    "READY": "green",
    "FAILED": "bold red",
    "LOADING": "yellow",
    "PENDING": "yellow",
    "DRAINING": "cyan",
}
_OVER = (types_pb2.INSTANCE_STATE_FAILED, types_pb2.INSTANCE_STATE_STOPPED)


async def show_status(controller: str, *, watch: bool, as_json: bool) -> int:
    """Prints one snapshot, or what is known while nobody leads; or each snapshot until it is cancelled."""
    console = Console()
    async with ClusterAdmin(controller) as admin:
        if not watch:
            try:
                _print(console, await admin.snapshot(), as_json)
            except AdminError as error:
                standings = await admin.standings()
                if error.reason or not any(one.answers for one in standings):
                    raise
                _print_leaderless(console, standings, as_json)
                raise CliError(_nobody_leads(standings)) from error
            return 0
        async with aclosing(admin.watch()) as snapshots:
            if as_json or not console.is_terminal:
                async for snapshot in snapshots:
                    _print(console, snapshot, as_json)
            else:
                with Live(console=console, auto_refresh=False) as live:
                    async for snapshot in snapshots:
                        live.update(tables(snapshot), refresh=True)
    return 0


def _print(console: Console, snapshot: pb.ClusterSnapshot, as_json: bool) -> None:
    if as_json:
        print(to_json(snapshot), flush=True)
    elif console.is_terminal:
        console.print(tables(snapshot))
    else:
        # A pipe has no width: nothing may be cut or wrapped.
        Console(file=sys.stdout, width=1000).print(tables(snapshot), soft_wrap=True)


def _print_leaderless(console: Console, standings: Sequence[Standing], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"leader": False, "controllers": [asdict(one) for one in standings]}), flush=True)
    elif console.is_terminal:
        console.print(leaderless_tables(standings))
    else:
        Console(file=sys.stdout, width=1000).print(leaderless_tables(standings), soft_wrap=True)


def _nobody_leads(standings: Sequence[Standing]) -> str:
    store = store_of(standings)
    why = f" ({store.store_kind}: {store.store_reason})" if store and store.store_reason else ""
    return (
        f"no controller leads{why}: what serves goes on, nothing can be changed, and nodes, routers and "
        "instances cannot be shown; `chiron router HOST:PORT` shows what a router holds"
    )


def leaderless_tables(standings: Sequence[Standing]) -> RenderableType:
    """Controllers and store, while nobody leads."""
    controllers = FittingTable(Column("controller"), Column("role", prose=True))
    for one in standings:
        said = "answers, and does not lead" if one.answers else f"silent; {one.reason}"
        controllers.add_row(one.address, Text(said, style="yellow" if one.answers else "red"))
    store = FittingTable(Column("store"), Column("state", prose=True))
    if known := store_of(standings):
        well = known.store_state == "ok"
        said = "ok" if well else f"{known.store_state} for {known.store_age_s:.0f} s: {known.store_reason}"
        store.add_row(known.store_kind or "store", Text(said, style="green" if well else "bold red"))
    return Group(controllers, store)


def to_json(message: Message) -> str:
    """One line of protobuf JSON with the fields' own names; 64-bit numbers are text, as the format has it."""
    return json.dumps(
        json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )


def tables(snapshot: pb.ClusterSnapshot) -> RenderableType:
    """Controllers and store, models, nodes, routers and instances."""
    return Group(
        controllers_table(snapshot),
        store_table(snapshot.store),
        models_table(snapshot.models),
        *autoscaling_tables(snapshot.models),
        *attainment_tables(snapshot.models),
        nodes_table(snapshot),
        routers_table(snapshot.routers),
        instances_table(snapshot),
    )


def controllers_table(snapshot: pb.ClusterSnapshot) -> FittingTable:
    """A row for each controller."""
    table = FittingTable(Column("controller"), Column("role", prose=True), Column("term", rank=1))
    for one in snapshot.controllers:
        if not one.leader:
            table.add_row(one.address, "follower", "")
            continue
        role = f"leader for {one.reign_ms / 1000:.0f} s"
        if one.settling:
            awaited = ", ".join(one.awaited_nodes)
            role += f"; settling: waits for {awaited or 'nodes'} to report, and until then stops nothing"
        table.add_row(one.address, Text(role, style="yellow" if one.settling else "green"), str(one.term))
    return table


def store_table(store: pb.StoreStatus) -> FittingTable:
    """A row for the store, and one for each of its members."""
    table = FittingTable(
        Column("store"), Column("state", prose=True), Column("version", rank=2), Column("size", rank=1)
    )
    state = pb.StoreState.Name(store.state).removeprefix("STORE_STATE_").replace("_", "-").lower()
    well = store.state == pb.STORE_STATE_OK
    said = state if well else f"{state} for {store.state_age_ms / 1000:.0f} s: {store.reason}"
    table.add_row(store.kind, Text(said, style="green" if well else "bold red"), "", "")
    for one in store.endpoints:
        role = "leads" if one.leader else "follows"
        said = "; ".join(filter(None, [role if one.answers else "silent", one.reason]))
        style = "" if one.answers and not one.reason else "red"
        size = f"{one.db_bytes / 1e6:.1f} MB" if one.answers else ""
        table.add_row(f"  {one.address}", Text(said, style=style), one.version, size)
    return table


def models_table(models: Iterable[pb.ModelStatus]) -> FittingTable:
    """A row for each model."""
    table = FittingTable(
        Column("model"),
        Column("engine", rank=1),
        Column("ready"),
        Column("GPUs each", rank=2),
        Column("spec", rank=3),
        Column("what stands in the way", prose=True),
    )
    for model in models:
        spec = model.spec
        ready = f"{model.ready_instances}/{model.desired_instances}"
        table.add_row(
            spec.name, spec.engine, ready, str(spec.gpus_per_instance), _version(model), _obstacle(model)
        )
    return table


def attainment_tables(models: Iterable[pb.ModelStatus]) -> Sequence[FittingTable]:
    """A row for each model and class of which requests with an SLO have ended; no table without one."""
    table = FittingTable(
        Column("SLO attainment"),
        Column("class"),
        Column("last minute"),
        Column("last 10 minutes", rank=1),
        Column("since start", rank=2),
        Column("missed since start", prose=True),
    )
    any_ended = False
    for model in models:
        told = model.attainment
        windows = (told.last_minute, told.last_ten_minutes, told.since_start)
        for name in ("interactive", "batch"):
            counts: list[pb.ClassAttainment] = [getattr(window, name) for window in windows]
            if not counts[-1].requests:
                continue
            any_ended = True
            table.add_row(model.spec.name, name, *map(_share, counts), _missed(counts[-1]))
    return [table] if any_ended else []


def nodes_table(snapshot: pb.ClusterSnapshot) -> FittingTable:
    """A row for each node."""
    table = FittingTable(
        Column("node"),
        Column("state", prose=True),
        Column("GPUs in use", rank=1),
        Column("host", rank=2),
        Column("last report", rank=3),
    )
    awaited = {node for one in snapshot.controllers if one.settling for node in one.awaited_nodes}
    for node in snapshot.nodes:
        taken = {
            index
            for instance in snapshot.instances
            if instance.node_id == node.node_id and instance.state != types_pb2.INSTANCE_STATE_STOPPED
            for index in instance.gpu_indexes
        }
        state = "lost" if not node.live else "draining" if node.draining else "live"
        if node.node_id in awaited:
            state = "not heard of yet"
        unhealthy = [f"GPU {gpu.index}: {gpu.reason}" for gpu in node.gpus if not gpu.healthy]
        unhealthy += node.problems
        table.add_row(
            node.node_id,
            Text(
                "; ".join([state, *unhealthy]), style="green" if state == "live" and not unhealthy else "red"
            ),
            f"{len(taken)}/{len(node.gpus)}",
            node.host,
            "" if node.node_id in awaited else _age(node.report_age_ms),
        )
    return table


def routers_table(routers: Iterable[pb.RouterStatus]) -> FittingTable:
    """A row for each router."""
    routers = tuple(routers)
    columns = [
        Column("router"),
        Column("address", rank=1),
        Column("queued", rank=2),
        Column("last report", rank=3),
    ]
    batches = any(router.HasField("batch_queue") for router in routers)
    if batches:
        columns.append(Column("batch items wait", rank=4))
    trouble = any(router.ejected for router in routers)
    table = FittingTable(*columns, *([Column("ejected instances", prose=True)] if trouble else []))
    for router in routers:
        ejected = "; ".join(f"{one.instance_id}: {one.reason}" for one in router.ejected)
        table.add_row(
            router.router_id,
            router.address,
            _counts(router.queued),
            _age(router.report_age_ms),
            *([_batch_items(router)] if batches else []),
            *([Text(ejected, style="red")] if trouble else []),
        )
    return table


def instances_table(snapshot: pb.ClusterSnapshot) -> FittingTable:
    """A row for each instance."""
    table = FittingTable(
        Column("instance"),
        Column("node", rank=2),
        Column("GPUs", rank=5),
        Column("role", rank=6),
        Column("state"),
        Column("running", rank=3),
        Column("waiting", rank=4),
        Column("safe", rank=7),
        Column("LBP", rank=8),
        Column("tok/s", rank=9),
        Column("restarts", rank=10),
        Column("reason", rank=1, prose=True),
    )
    awaited = {node for one in snapshot.controllers if one.settling for node in one.awaited_nodes}
    lost = {node.node_id for node in snapshot.nodes if not node.live} - awaited
    for instance in snapshot.instances:
        load, state = instance.load, state_name(instance.state)
        doubtful = instance.node_id in lost and instance.state not in _OVER
        reason = ["its node is lost; the rest is what was last heard"] if doubtful else []
        table.add_row(
            instance.instance_id,
            instance.node_id,
            ",".join(map(str, instance.gpu_indexes)),
            types_pb2.Role.Name(instance.role).removeprefix("ROLE_").lower(),
            Text(state, style=_STYLES.get(state, "")),
            f"{_counts(load.running)}/{load.batch_size}",
            _counts(load.waiting),
            str(load.safe_batch_size or ""),
            f"{instance.local.backpressure:.2f}" if instance.local.backpressure else "",
            f"{load.tokens_per_s:.0f}",
            str(instance.restarts),
            "; ".join(filter(None, [*reason, instance.reason, *_limits(instance.local)])),
        )
    return table


def state_name(state: types_pb2.InstanceState.ValueType) -> str:
    """READY, FAILED, …"""
    return types_pb2.InstanceState.Name(state).removeprefix("INSTANCE_STATE_")


def _limits(local: pb.LocalControl) -> list[str]:
    """What keeps the local autoscaler from setting the limits."""
    set_by_hand = [
        f"{name} {value}"
        for name, value in (
            ("batch size", local.set_batch_size),
            ("step tokens", local.set_step_token_budget),
        )
        if value
    ]
    held = [f"set by an operator: {', '.join(set_by_hand)}"] if set_by_hand else []
    return [*held, f"limits held: {local.error}"] if local.error else held


def _version(model: pb.ModelStatus) -> str:
    """The spec's version; while a roll is not over, where it comes from and how far it is."""
    roll = model.roll
    if roll.state not in (pb.ROLL_STATE_ROLLING, pb.ROLL_STATE_STALLED):
        return f"v{model.spec_version}"
    came_from = f"v{roll.from_version}" if roll.from_version else "?"
    return f"{came_from}→v{roll.to_version} {roll.replaced}/{roll.replaced + roll.remaining}"


def _obstacle(model: pb.ModelStatus) -> str:
    """What keeps the model from what it should have, a roll that goes on included."""
    roll = model.roll
    texts = [model.reason] if model.reason else []
    if roll.state == pb.ROLL_STATE_ROLLING:
        texts.append(f"rolling: {roll.reason}")
    elif roll.state == pb.ROLL_STATE_DONE and roll.reason and roll.to_version == model.spec_version:
        texts.append(roll.reason)
    return "; ".join(texts)


def _share(counts: pb.ClassAttainment) -> str:
    """Which share of how many; cut, not rounded, so that 100 % is all of them."""
    if not counts.requests:
        return "-"
    share = f"{1000 * counts.met // counts.requests / 10:.1f}".removesuffix(".0")
    return f"{share} % of {counts.requests}"


def _missed(counts: pb.ClassAttainment) -> str:
    causes = {
        "TTFT": counts.missed_ttft,
        "ITL": counts.missed_itl,
        "deadline": counts.missed_deadline,
        "refused": counts.refused,
        "failed": counts.failed,
    }
    return ", ".join(f"{count} {cause}" for cause, count in causes.items() if count)


def _batch_items(router: pb.RouterStatus) -> str:
    """What waits in the durable queue; empty for a router without one."""
    return str(router.batch_queue.waiting) if router.HasField("batch_queue") else ""


def _counts(counts: types_pb2.ClassCounts) -> str:
    """Interactive + batch."""
    return f"{counts.interactive}+{counts.batch}"


def _age(age_ms: float) -> str:
    return f"{age_ms / 1000:.1f} s ago"
