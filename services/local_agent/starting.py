"""Starts one worker: on record first, then its files, then its process."""

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
from services.local_agent.health import GpuHealth
from services.local_agent.journal import Journal, JournalError
from services.local_agent.ledger import GpuLedger, PortPool
from services.local_agent.memory import Tally, WorkerEnded, WorkerNoted
from services.local_agent.process import WorkerProcess
from services.local_agent.records import StateDir
from services.local_agent.ticket_keys import TicketKeys


class CannotStartNow(Exception):
    """The node itself stands in the way, e.g. a full disk: no fault of the instance. The text says what."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the runners of a node share."""

    config: AgentConfig
    node_id: str
    policy: Policy
    state: StateDir
    journal: Journal
    socket_dir: Path
    inventory: Inventory
    health: GpuHealth
    gpus: GpuLedger
    ports: PortPool
    keys: TicketKeys
    on_change: Callable[[], None]
    """Called when what is reported of an instance has changed, its load aside."""
    on_release: Callable[[], None]
    """Called when GPUs or a port became free."""


async def start_worker(
    want: Want, incarnation: int, port: int, tally: Tally, around: Surroundings
) -> tuple[WorkerProcess, WorkerNoted]:
    """Starts a worker on GPUs that its instance holds; returns it as it is on record.

    Raises CannotStartNow, and OSError when the command cannot be run.
    """
    devices = around.inventory.visible_devices(want.gpus)
    noted = WorkerNoted(
        instance_id=want.instance_id,
        incarnation=incarnation,
        spec_version=want.spec_version,
        gpus=want.gpus,
        devices=devices,
        boot_id=procfs.boot_id(),
    )
    try:
        # A worker that nobody has a record of could share its GPUs with another.
        await around.journal.write(noted, tally)
    except JournalError as error:
        raise CannotStartNow(str(error)) from error
    socket = launch.socket_path(around.socket_dir, want.instance_id)
    folder = around.state.instance_dir(want.instance_id)
    try:
        try:
            spec_file, log = await asyncio.to_thread(launch.prepare_files, folder, socket, want)
        except OSError as error:
            raise CannotStartNow(f"cannot write to {folder}: {error.strerror or error}") from error
        command = launch.worker_command(
            around.config, want, incarnation=incarnation, port=port, spec_file=spec_file, socket=socket
        )
        environ = launch.worker_environ(around.config, devices, os.environ, want.trace_parent)
        process = await WorkerProcess.spawn(command, environ, log)
    except (CannotStartNow, OSError):
        around.journal.note(WorkerEnded(want.instance_id))
        raise
    noted = replace(noted, pid=process.pid, start_time=process.start_time)
    # Without it a successor looks for the command line.
    around.journal.note(noted)
    return process, noted
