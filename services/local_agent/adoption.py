"""What an agent finds of its predecessor: instances on record, and workers that live, on record or not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf import json_format

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import procfs
from services.local_agent.desired import BadDesired, Goal, Want, check_instance_id, want_of
from services.local_agent.gpus import Inventory
from services.local_agent.launch import socket_path
from services.local_agent.memory import Memory, Tally, WorkerNoted
from services.local_agent.procfs import FoundWorker
from services.local_agent.records import StateDir
from services.local_agent.worker_link import WorkerLink

_LOG = logging.getLogger(__name__)
_FIRST_WORD_S = 2.0


@dataclass(frozen=True, slots=True)
class Legacy:
    """One instance that a predecessor has left."""

    want: Want
    worker: WorkerNoted | None = None
    """Its worker, of which at least one process lives."""
    died: WorkerNoted | None = None
    """Its worker, which has ended since the predecessor saw it last."""
    tally: Tally | None = None
    on_record: bool = True
    """False: the worker was found running, and the journal says nothing of it."""


@dataclass(frozen=True, slots=True)
class Stock:
    """Everything that was found."""

    instances: list[Legacy] = field(default_factory=list)
    strays: list[WorkerNoted] = field(default_factory=list)
    """Second workers of an instance: they must go."""
    dropped: list[str] = field(default_factory=list)
    """Instances on record that this node can no longer run and that have no worker."""


def take_stock(
    memory: Memory, state: StateDir, inventory: Inventory, node_gpus: Collection[int], drain_timeout_s: float
) -> Stock:
    """Compares the journal with the processes that live. Reads /proc: some milliseconds.

    Args:
        memory: the journal's content.
        state: the folder by which workers are recognised.
        inventory: tells which GPUs a worker's devices are now.
        node_gpus: indexes of the GPUs of this node.
        drain_timeout_s: for instances that nobody has set one for.
    """
    boot_id = procfs.boot_id()
    stock = Stock()
    running: dict[str, list[FoundWorker]] = {}
    for found in procfs.workers_below(state.instances):
        running.setdefault(found.settings.get("instance_id", ""), []).append(found)
    for instance_id, remembered in memory.instances.items():
        if remembered.level is None:
            stock.dropped.append(instance_id)
            continue
        candidates = running.pop(instance_id, [])
        worker = _survivor(remembered.worker, candidates, boot_id)
        worker = worker and _on_present_gpus(worker, inventory)
        others = [found for found in candidates if worker is None or found.pid != worker.pid]
        stock.strays.extend(_noted(found, boot_id, inventory) for found in others)
        want = _want(remembered.level, worker, node_gpus, drain_timeout_s)
        if want is None:
            stock.dropped.append(instance_id)
            continue
        same_boot = remembered.worker is not None and remembered.worker.boot_id == boot_id
        died = remembered.worker if worker is None and same_boot else None
        stock.instances.append(Legacy(want, worker, died, remembered.tally))
    for instance_id, founds in running.items():
        newest, *older = sorted(founds, key=_incarnation, reverse=True)
        stock.strays.extend(_noted(found, boot_id, inventory) for found in older)
        noted = _noted(newest, boot_id, inventory)
        try:
            check_instance_id(instance_id)
        except BadDesired as error:
            _LOG.error("pid %d runs below %s: %s", newest.pid, state.instances, error)
            stock.strays.append(noted)
            continue
        want = _reconstructed(newest, noted, drain_timeout_s)
        stock.instances.append(Legacy(want, noted, on_record=False))
    return stock


async def look_closer(legacy: Legacy, socket_dir: Path) -> Legacy:
    """The same, with what the worker alone can say where it is not on record: that it sleeps."""
    if legacy.on_record or legacy.worker is None:
        return legacy
    link = WorkerLink(socket_path(socket_dir, legacy.want.instance_id), legacy.worker.incarnation)
    try:
        asleep = await link.state(_FIRST_WORD_S) == types_pb2.INSTANCE_STATE_SLEEPING
    finally:
        await link.close()
    if not asleep:
        return legacy
    want, worker = replace(legacy.want, goal=Goal.SLEEPING), replace(legacy.worker, asleep=True)
    return replace(legacy, want=want, worker=worker)


def _survivor(
    noted: WorkerNoted | None, candidates: Sequence[FoundWorker], boot_id: str
) -> WorkerNoted | None:
    """The worker on record, completed, where a process of it lives; None else."""
    if noted is None or noted.boot_id != boot_id:
        return None
    if noted.pid == 0:
        # The predecessor died between starting it and noting its pid.
        for found in candidates:
            if _incarnation(found) == noted.incarnation:
                return replace(noted, pid=found.pid, start_time=found.start_time)
        return None
    leader = procfs.stat_of(noted.pid)
    if leader is not None and leader.start_time != noted.start_time:
        return None
    return noted if procfs.session_members(noted.pid) else None


def _want(
    level: control_pb2.DesiredInstance,
    worker: WorkerNoted | None,
    node_gpus: Collection[int],
    drain_timeout_s: float,
) -> Want | None:
    try:
        # A worker that lives is looked after wherever it runs.
        there = node_gpus if worker is None else [*node_gpus, *level.gpu_indexes]
        return want_of(level, node_gpus=there, drain_timeout_s=drain_timeout_s)
    except BadDesired as error:
        _LOG.error("%s: on record, but not possible any more: %s", level.instance_id, error)
        return None


def _reconstructed(found: FoundWorker, noted: WorkerNoted, drain_timeout_s: float) -> Want:
    """What must have been wanted of a worker, as its command line tells."""
    settings = found.settings
    role = types_pb2.Role.Value(name) if (name := _role_name(settings)) else types_pb2.ROLE_MIXED
    return Want(
        instance_id=noted.instance_id,
        goal=Goal.RUNNING,
        spec=_spec(Path(settings.get("spec_file", ""))),
        spec_version=noted.spec_version,
        role=role,
        gpus=noted.gpus,
        drain_timeout_s=drain_timeout_s,
    )


def _role_name(settings: Mapping[str, str]) -> str:
    name = f"ROLE_{settings.get('role', '').upper()}"
    return name if name in types_pb2.Role.keys() else ""  # noqa: SIM118 - no mapping


def _spec(path: Path) -> cluster_pb2.ModelSpec:
    try:
        return json_format.Parse(path.read_text(encoding="utf-8"), cluster_pb2.ModelSpec())
    except (OSError, ValueError, json_format.ParseError) as error:
        _LOG.warning("%s of a running worker is unreadable: %s", path, error)
        return cluster_pb2.ModelSpec()


def _noted(found: FoundWorker, boot_id: str, inventory: Inventory) -> WorkerNoted:
    settings = found.settings
    return WorkerNoted(
        instance_id=settings.get("instance_id", ""),
        incarnation=_incarnation(found),
        spec_version=_number(settings.get("spec_version", "")),
        gpus=inventory.indexes(found.devices),
        devices=found.devices,
        boot_id=boot_id,
        pid=found.pid,
        start_time=found.start_time,
    )


def _on_present_gpus(worker: WorkerNoted, inventory: Inventory) -> WorkerNoted:
    """GPUs are numbered anew when one falls off the bus; a worker stays on those that it was started on."""
    return replace(worker, gpus=inventory.indexes(worker.devices))


def _incarnation(found: FoundWorker) -> int:
    return _number(found.settings.get("incarnation", ""))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
