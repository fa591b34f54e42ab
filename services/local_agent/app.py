"""The local agent as a process: lock, GPUs, leftovers, controller stream, orderly stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import ExitStack, closing, suppress

from chiron.rpc.controllers import Controllers
from chiron.service import announce
from services.local_agent.config import AgentConfig
from services.local_agent.controller_link import ControllerLink
from services.local_agent.gpus import Inventory, discover
from services.local_agent.launch import socket_folder
from services.local_agent.lock import GpuLocks, NodeLock
from services.local_agent.node import Node
from services.local_agent.records import StateDir
from services.local_agent.socket_folders import held

_LOG = logging.getLogger(__name__)
_FAREWELL_S = 3.0


async def serve(config: AgentConfig, stop: asyncio.Event) -> None:
    """Runs the agent until `stop`, then drains and stops its workers.

    Cancelling it stops them without draining. Raises ConfigError for a state folder in use or unreadable,
    and for GPUs that cannot be found.
    """
    state_dir = config.state_dir.absolute()
    with ExitStack() as locks:
        locks.enter_context(closing(NodeLock(state_dir)))
        inventory = await asyncio.to_thread(discover, config.gpus)
        gpus = await asyncio.to_thread(inventory.read)
        locks.enter_context(closing(GpuLocks(gpus if inventory.exclusive else ())))
        sockets = socket_folder(config.socket_dir and config.socket_dir.absolute(), state_dir)
        locks.enter_context(held(sockets, state_dir))
        changed = asyncio.Event()
        node = Node(
            config,
            node_id=config.node_id or socket.gethostname(),
            state=StateDir(state_dir),
            socket_dir=sockets,
            inventory=inventory,
            gpus=gpus,
            on_change=changed.set,
        )
        loop = asyncio.get_running_loop()

        def on_event(index: int, what: str) -> None:
            with suppress(RuntimeError):  # The loop has ended before this thread.
                loop.call_soon_threadsafe(node.gpu_event, index, what)

        inventory.watch(on_event)
        await node.adopt()
        link = ControllerLink(Controllers(config.controller), node, changed)
        connecting = asyncio.create_task(link.run())
        checking = asyncio.create_task(_watch_gpus(inventory, node, config.gpu_check_interval_s))
        announce("agent", node_id=node.node_id, gpus=len(gpus), state_dir=str(state_dir))
        try:
            await _until(stop, connecting, checking)
            _LOG.info("draining and stopping every worker")
            await node.stop()
            link.finish()
            await asyncio.wait({connecting}, timeout=_FAREWELL_S)
        except asyncio.CancelledError:
            _LOG.warning("asked again to stop: workers are stopped without draining")
            await node.stop(at_once=True)
            raise
        finally:
            connecting.cancel()
            checking.cancel()
            await asyncio.gather(connecting, checking, return_exceptions=True)
            await node.close()


async def _until(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    """Returns when `stop` is set; a task that fails before is a bug and ends the agent."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError(f"{task.get_name()} ended")
    finally:
        stopped.cancel()


async def _watch_gpus(inventory: Inventory, node: Node, interval_s: float) -> None:
    """Health has no stream that works on every GPU, so it is looked at now and then."""
    while True:
        await asyncio.sleep(interval_s)
        node.set_gpus(await asyncio.to_thread(inventory.read))
