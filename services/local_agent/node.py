"""All instances of one node: takes up what the controller wants, reports what there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import procfs
from services.local_agent.condition import Policy
from services.local_agent.config import AgentConfig, parse_ports
from services.local_agent.desired import BadDesired, Goal, Want, check_instance_id, want_of
from services.local_agent.gpus import GpuState, Inventory
from services.local_agent.ledger import GpuLedger, PortPool
from services.local_agent.records import InstanceRecord, StateDir
from services.local_agent.runner import Runner
from services.local_agent.starting import Surroundings
from services.local_agent.ticket_keys import TicketKeys

_LOG = logging.getLogger(__name__)
_STUCK_MARGIN_S = 15.0


class StaleTerm(Exception):
    """A message of a controller that has been superseded; the text names both terms."""


class Node:
    """The instances of this node and the newest level that a controller has set."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        node_id: str,
        state: StateDir,
        socket_dir: Path,
        inventory: Inventory,
        gpus: Sequence[GpuState],
        on_change: Callable[[], None],
    ) -> None:
        """Starts nothing.

        Args:
            config: the agent's keys.
            node_id: name of this node.
            state: files that outlive the agent.
            socket_dir: folder of the workers' control sockets.
            inventory: names the devices of a worker.
            gpus: what the inventory found first.
            on_change: called when something worth an immediate report has changed.
        """
        self.node_id = node_id
        self.host = config.host
        self._config = config
        self._state = state
        self._on_change = on_change
        self._gpus = tuple(gpus)
        self.state_id = state.identity()
        self._highest_term = state.read_term()
        self._applied = (0, 0)
        self._listed: frozenset[str] = frozenset()
        self._runners: dict[str, Runner] = {}
        self._refused: dict[str, cluster_pb2.InstanceStatus] = {}
        self._dismissed: set[asyncio.Task[None]] = set()
        self._closing = False
        self.ticket_keys = TicketKeys()
        """What workers check tickets with."""
        self._around = Surroundings(
            config=config,
            node_id=node_id,
            policy=Policy(
                max_restarts=config.max_restarts,
                max_load_retries=config.max_load_retries,
                restart_backoff_s=config.restart_backoff_s,
                stable_after_s=config.stable_after_s,
                load_timeout_s=config.load_timeout_s,
                silence_timeout_s=config.silence_timeout_s,
            ),
            state=state,
            socket_dir=socket_dir,
            inventory=inventory,
            gpus=GpuLedger(),
            ports=PortPool(parse_ports(config.worker_ports)),
            keys=self.ticket_keys,
            on_change=on_change,
            on_release=self._resources_freed,
        )

    @property
    def highest_term(self) -> int:
        """The highest term that this node has ever seen."""
        return self._highest_term

    @property
    def applied_revision(self) -> int:
        """The newest revision taken up from the controller of the highest term."""
        return self._applied[1] if self._applied[0] == self._highest_term else 0

    @property
    def leaving(self) -> bool:
        """True once the agent is stopping."""
        return self._closing

    def gpus(self) -> list[cluster_pb2.Gpu]:
        """The node's GPUs for a report."""
        return [
            cluster_pb2.Gpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                healthy=gpu.healthy,
                reason=gpu.reason,
            )
            for gpu in self._gpus
        ]

    def set_gpus(self, gpus: Sequence[GpuState]) -> None:
        """Takes a newer look at the GPUs; a change of health is reported at once."""
        if tuple(gpus) != self._gpus:
            for gpu in gpus:
                if not gpu.healthy:
                    _LOG.error("GPU %d (%s) is not healthy: %s", gpu.index, gpu.uuid, gpu.reason)
            self._gpus = tuple(gpus)
            self._on_change()

    async def accept_term(self, term: int) -> None:
        """Keeps a higher term on disk before anything of it is carried out.

        Raises StaleTerm for a lower one.
        """
        if term < self._highest_term:
            raise StaleTerm(f"term {term} is over: this node has seen term {self._highest_term}")
        if term > self._highest_term:
            await asyncio.to_thread(self._state.write_term, term)
            self._highest_term = term
            self._listed = frozenset()

    async def apply(self, desired: control_pb2.DesiredNode) -> None:
        """Takes up a level; the same one again changes nothing. Raises StaleTerm."""
        await self.accept_term(desired.term)
        if self._closing or (desired.term, desired.revision) < self._applied:
            return
        self._listed = frozenset(instance.instance_id for instance in desired.instances)
        self._refused.clear()
        for instance in desired.instances:
            self._apply_instance(instance)
        self._forget()
        self._applied = (desired.term, desired.revision)
        self._on_change()

    def reports(self) -> list[control_pb2.InstanceReport]:
        """Every instance, known or not."""
        statuses = {instance_id: runner.status() for instance_id, runner in self._runners.items()}
        return [
            control_pb2.InstanceReport(status=status, known=instance_id in self._listed)
            for instance_id, status in {**statuses, **self._refused}.items()
        ]

    async def stop_leftovers(self) -> None:
        """Takes charge of workers that an earlier agent left running: they drain and stop.

        Their GPUs are taken until every process is gone. This version does not adopt them, because a
        worker that nobody asked for must not serve.
        """
        boot = await asyncio.to_thread(procfs.boot_id)
        for record in await asyncio.to_thread(self._state.read_records):
            found = await asyncio.to_thread(_find, record, boot, self._state)
            if found is None:
                await asyncio.to_thread(self._state.remove_record, record.instance_id)
                continue
            _LOG.warning(
                "%s: an earlier agent left its worker running (pid %d, GPUs %s); draining and stopping it",
                record.instance_id,
                found.pid,
                list(record.gpus),
            )
            want = Want(
                instance_id=record.instance_id,
                goal=Goal.STOPPED,
                spec=cluster_pb2.ModelSpec(name=record.model),
                generation=record.generation,
                spec_version=record.spec_version,
                gpus=record.gpus,
                drain_timeout_s=self._config.drain_timeout_s,
            )
            runner = self._add(want)
            runner.attach(found)
            runner.start()

    async def stop(self, *, at_once: bool = False) -> None:
        """Drains and stops every worker, all at once, and takes up nothing new.

        Returns when all are gone, or when those that survive even SIGKILL have been waited for.
        """
        self._closing = True
        # Replacements can start elsewhere while this node still drains.
        self._on_change()
        limit = self._config.drain_timeout_s
        for runner in self._runners.values():
            runner.stop(limit, at_once=at_once)
        stopping = [asyncio.create_task(runner.wait_rested()) for runner in self._runners.values()]
        if not stopping:
            return
        try:
            margin = self._config.stop_grace_s + _STUCK_MARGIN_S
            _, late = await asyncio.wait(stopping, timeout=margin if at_once else limit + margin)
        finally:
            for task in stopping:
                task.cancel()
        if late:
            _LOG.error("%d workers could not be stopped", len(late))

    async def close(self) -> None:
        """Ends the runners' tasks; workers that live are left as they are."""
        for runner in self._runners.values():
            await runner.close()

    def _apply_instance(self, desired: control_pb2.DesiredInstance) -> None:
        instance_id = desired.instance_id
        runner = self._runners.get(instance_id)
        try:
            check_instance_id(instance_id)
            want = want_of(
                desired,
                node_gpus=[gpu.index for gpu in self._gpus],
                drain_timeout_s=self._config.drain_timeout_s,
            )
        except BadDesired as error:
            _LOG.error("%s: refused: %s", instance_id, error)
            if runner is None:
                self._refused[instance_id] = _refusal(desired, self.node_id, str(error))
            return
        if runner is None:
            self._add(want).start()
        else:
            runner.take_up(want)

    def _add(self, want: Want) -> Runner:
        runner = self._runners[want.instance_id] = Runner(want, self._around)
        return runner

    def _forget(self) -> None:
        """Drops stopped instances that the controller lists no more."""
        for instance_id, runner in list(self._runners.items()):
            if instance_id not in self._listed and runner.rested:
                del self._runners[instance_id]
                self._dismissed.add(task := asyncio.create_task(runner.close()))
                task.add_done_callback(self._dismissed.discard)

    def _resources_freed(self) -> None:
        for runner in self._runners.values():
            runner.resources_freed()


def _refusal(desired: control_pb2.DesiredInstance, node_id: str, reason: str) -> cluster_pb2.InstanceStatus:
    return cluster_pb2.InstanceStatus(
        instance_id=desired.instance_id,
        model=desired.spec.name,
        node_id=node_id,
        gpu_indexes=desired.gpu_indexes,
        state=types_pb2.INSTANCE_STATE_FAILED,
        reason=reason,
        generation=desired.generation,
        spec_version=desired.spec_version,
    )


def _find(record: InstanceRecord, boot: str, state: StateDir) -> InstanceRecord | None:
    """The record, completed, when a process of its worker still lives."""
    if record.boot_id != boot:
        return None
    if record.pid == 0:
        # The earlier agent died between starting the worker and noting its pid.
        leader = procfs.find_by_argument(f"spec_file={state.instance_dir(record.instance_id) / 'spec.json'}")
        return None if leader is None else replace(record, pid=leader.pid, start_time=leader.start_time)
    leader = procfs.stat_of(record.pid)
    if leader is not None and leader.start_time != record.start_time:
        return None
    return record if procfs.session_members(record.pid) else None
