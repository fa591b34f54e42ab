"""Starts one worker: its record first, then its files, then its process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from services.local_agent import launch, procfs
from services.local_agent.condition import Policy
from services.local_agent.config import AgentConfig
from services.local_agent.desired import Want
from services.local_agent.gpus import Inventory
from services.local_agent.ledger import GpuLedger, PortPool
from services.local_agent.process import WorkerProcess
from services.local_agent.records import InstanceRecord, StateDir
from services.local_agent.ticket_keys import TicketKeys


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the runners of a node share."""

    config: AgentConfig
    node_id: str
    policy: Policy
    state: StateDir
    socket_dir: Path
    inventory: Inventory
    gpus: GpuLedger
    ports: PortPool
    keys: TicketKeys
    on_change: Callable[[], None]
    """Called when what is reported of an instance has changed, its load aside."""
    on_release: Callable[[], None]
    """Called when GPUs or a port became free."""


async def start_worker(want: Want, incarnation: int, port: int, around: Surroundings) -> WorkerProcess:
    """Starts a worker on GPUs that its instance holds. Raises OSError."""
    record = InstanceRecord(
        instance_id=want.instance_id,
        model=want.spec.name,
        generation=want.generation,
        spec_version=want.spec_version,
        incarnation=incarnation,
        gpus=want.gpus,
        boot_id=procfs.boot_id(),
    )
    socket = launch.socket_path(around.socket_dir, want.instance_id)
    spec_file, log = await asyncio.to_thread(_prepare, want, record, socket, around.state)
    command = launch.worker_command(
        around.config, want, incarnation=incarnation, port=port, spec_file=spec_file, socket=socket
    )
    devices = around.inventory.visible_devices(want.gpus)
    environ = launch.worker_environ(around.config, devices, os.environ)
    process = await WorkerProcess.spawn(command, environ, log)
    started = replace(record, pid=process.pid, start_time=process.start_time)
    try:
        await asyncio.to_thread(around.state.write_record, started)
    except OSError:
        await process.stop(0.0)
        raise
    return process


def _prepare(want: Want, record: InstanceRecord, socket: Path, state: StateDir) -> tuple[Path, Path]:
    # The record comes first: a worker that nobody has a record of could share its GPUs with another.
    state.write_record(record)
    folder = state.instance_dir(want.instance_id)
    socket.unlink(missing_ok=True)
    return launch.write_spec(folder, want), launch.rotate_log(folder)
