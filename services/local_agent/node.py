"""All instances of one node: takes up what the controller wants, reports what there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2
from services.local_agent import decision_spans, launch, residues
from services.local_agent.adoption import Legacy, Stock, look_closer, take_stock
from services.local_agent.condition import Policy
from services.local_agent.config import AgentConfig, parse_ports
from services.local_agent.desired import BadDesired, Goal, Want, check_instance_id, level_of, want_of
from services.local_agent.gpus import GpuState, Inventory
from services.local_agent.health import GpuHealth
from services.local_agent.journal import Journal, JournalError
from services.local_agent.journal_file import JournalFile
from services.local_agent.ledger import GpuLedger, PortPool
from services.local_agent.memory import Forgotten, Wanted, WorkerNoted
from services.local_agent.process import StuckError, WorkerProcess
from services.local_agent.procfs import memory_bytes
from services.local_agent.records import StateDir
from services.local_agent.runner import Runner
from services.local_agent.starting import Surroundings
from services.local_agent.status import refusal
from services.local_agent.terms import StaleTerm, Terms
from services.local_agent.ticket_keys import TicketKeys

_LOG = logging.getLogger(__name__)
_STUCK_MARGIN_S = 15.0
_FIRST_WORDS_S = 2.0
_PRUNE_EVERY = 16


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
        """Reads the journal and starts nothing. Raises ConfigError for a state folder that cannot be used.

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
        self.host = config.reachable_host
        self._config = config
        self._state = state
        self._on_change = on_change
        self.state_id = state.identity()
        share = config.sleep_host_memory_gib
        self.sleep_host_bytes = int(share * 2**30) if share >= 0 else memory_bytes() // 2
        """Host memory that sleepers may take."""
        self._applied = (0, 0)
        self._postponed: control_pb2.DesiredNode | None = None
        self._listed: frozenset[str] = frozenset()
        self._runners: dict[str, Runner] = {}
        self._refused: dict[str, cluster_pb2.InstanceStatus] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgotten = 0
        self._closing = False
        # From here on it may be told of changes: the first look at a GPU may find it at fault.
        self._journal = Journal(JournalFile(state.journal), self._journal_changed)
        self._terms = Terms(self._journal)
        self._health = GpuHealth(
            gpus,
            self._journal,
            failed_starts=config.cordon_after_failed_starts,
            on_change=self._health_changed,
        )
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
            journal=self._journal,
            socket_dir=socket_dir,
            inventory=inventory,
            health=self._health,
            gpus=GpuLedger(),
            ports=PortPool(parse_ports(config.worker_ports)),
            keys=self.ticket_keys,
            on_change=on_change,
            on_release=self._resources_freed,
        )

    @property
    def highest_term(self) -> int:
        """The highest term that this node has ever seen."""
        return self._terms.highest

    @property
    def applied_revision(self) -> int:
        """The newest revision taken up from the controller of the highest term."""
        return self._applied[1] if self._applied[0] == self._terms.highest else 0

    @property
    def leaving(self) -> bool:
        """True once the agent is stopping."""
        return self._closing

    @property
    def problems(self) -> list[str]:
        """What keeps this agent from its work."""
        return [self._journal.problem] if self._journal.problem else []

    def gpus(self) -> list[cluster_pb2.Gpu]:
        """The node's GPUs for a report."""
        return self._health.reports()

    def set_gpus(self, gpus: Sequence[GpuState]) -> None:
        """Takes a newer look at the GPUs; a change of health is reported at once."""
        self._health.look(gpus)

    def gpu_event(self, index: int, what: str) -> None:
        """A GPU tells of a fault of its own."""
        self._health.event(index, what)

    async def accept_term(self, term: int) -> None:
        """Refuses what is older from now on. Raises StaleTerm for a lower term."""
        if await self._terms.accept(term):
            self._listed = frozenset()

    async def apply(self, desired: control_pb2.DesiredNode) -> None:
        """Takes up a level; the same one again changes nothing. Raises StaleTerm.

        Nothing is done for a term that is not on disk: the level waits until the disk takes it.
        """
        await self.accept_term(desired.term)
        if not self._terms.on_disk:
            self._postponed = desired
            return
        if self._closing or (desired.term, desired.revision) < self._applied:
            return
        self._postponed = None
        self._listed = frozenset(instance.instance_id for instance in desired.instances)
        self._refused.clear()
        for instance in desired.instances:
            self._apply_instance(instance)
        self._forget()
        for order in desired.gpu_orders:
            with contextlib.suppress(JournalError):  # It is among the problems, and the order comes again.
                await self._health.order(order.gpu_uuid, cordoned=order.cordoned, reason=order.reason)
        self._applied = (desired.term, desired.revision)
        # What waited for the controller's word has it.
        self._resources_freed()
        self._on_change()

    def hand_over(self, granted: control_pb2.HandOvers) -> None:
        """Passes on to workers that drain how fast they may hand their streams over."""
        for order in granted.orders:
            runner = self._runners.get(order.instance_id)
            if runner is not None:
                self._spawn(runner.hand_over(order.request))

    def reports(self) -> list[control_pb2.InstanceReport]:
        """Every instance, known or not."""
        statuses = {instance_id: runner.status() for instance_id, runner in self._runners.items()}
        return [
            control_pb2.InstanceReport(status=status, known=instance_id in self._listed)
            for instance_id, status in {**statuses, **self._refused}.items()
        ]

    async def adopt(self) -> None:
        """Takes charge of what an earlier agent has left, and returns once its workers have spoken.

        Workers that live serve on. Those that are gone are replaced, half-started ones found by their command
        line, second ones of an instance ended, and sockets that nobody serves removed.
        """
        stock = await asyncio.to_thread(
            take_stock,
            self._journal.memory,
            self._state,
            self._around.inventory,
            self._health.indexes,
            self._config.drain_timeout_s,
        )
        self._journal.note(*map(Forgotten, stock.dropped))
        sockets = self._around.socket_dir
        for legacy in await asyncio.gather(*(look_closer(one, sockets) for one in stock.instances)):
            if legacy.worker and (held := residues.hold(legacy.want, legacy.worker, self._around)):
                _LOG.error("%s: its worker runs on GPUs of others: %s", legacy.want.instance_id, held)
                stock.strays.append(legacy.worker)
                legacy = replace(legacy, worker=None)
            self._inherit(legacy)
        await asyncio.to_thread(self._remove_dead_sockets, stock)
        await asyncio.gather(*map(self._end_stray, stock.strays))
        runners = list(self._runners.values())
        for runner in runners:
            runner.start()
        waiting = [asyncio.create_task(runner.wait_heard()) for runner in runners]
        if waiting:
            # The first report then tells of roles, limits and loads as they are.
            await asyncio.wait(waiting, timeout=_FIRST_WORDS_S)
        for task in waiting:
            task.cancel()

    async def stop(self, *, at_once: bool = False) -> None:
        """Drains and stops every worker, all at once, and takes up nothing new.

        Returns when all are gone, or when those that survive even SIGKILL have been waited for.
        """
        self._closing = True
        # Replacements can start elsewhere while this node still drains.
        self._on_change()
        limit = self._config.drain_timeout_s
        self._note_stopped()
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
        rested = [name for name, runner in self._runners.items() if runner.rested]
        self._journal.note(*map(Forgotten, rested))

    async def close(self) -> None:
        """Ends the runners' tasks; workers that live are left as they are."""
        for runner in self._runners.values():
            await runner.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._journal.close()

    def _apply_instance(self, desired: control_pb2.DesiredInstance) -> None:
        instance_id = desired.instance_id
        runner = self._runners.get(instance_id)
        try:
            check_instance_id(instance_id)
            want = want_of(
                desired,
                node_gpus=self._health.indexes,
                drain_timeout_s=self._config.drain_timeout_s,
            )
        except BadDesired as error:
            _LOG.error("%s: refused: %s", instance_id, error)
            if runner is None:
                self._refused[instance_id] = refusal(desired, self.node_id, str(error))
            return
        decision_spans.received(want, runner.want if runner is not None else None, self.node_id)
        if runner is None:
            self._journal.note(Wanted(level_of(want)))
            self._add(want).start()
            return
        if want != runner.want:
            self._journal.note(Wanted(level_of(want), afresh=want.restarts_afresh(runner.want)))
        runner.take_up(want)

    def _add(self, want: Want) -> Runner:
        runner = self._runners[want.instance_id] = Runner(want, self._around)
        return runner

    def _inherit(self, legacy: Legacy) -> None:
        want, worker = legacy.want, legacy.worker
        if worker is not None:
            how = "" if legacy.on_record else ", which is not on record"
            text = "%s: adopted incarnation %d, pid %d on GPUs %s%s"
            _LOG.info(text, want.instance_id, worker.incarnation, worker.pid, list(worker.gpus), how)
        if not legacy.on_record:
            self._journal.note(Wanted(level_of(want)))
        if worker is not None:
            self._journal.note(worker)
        self._add(want).inherit(legacy)

    async def _end_stray(self, worker: WorkerNoted) -> None:
        """A worker that must not be: its GPUs stay claimed while any process of it lives."""
        _LOG.error("%s: pid %d must not run and is ended", worker.instance_id, worker.pid)
        process = WorkerProcess(worker.pid, worker.start_time)
        try:
            await process.stop(self._config.stop_grace_s)
        except StuckError as error:
            _LOG.error("%s: %s", worker.instance_id, error)
            self._around.gpus.claim(f"pid {worker.pid}", worker.gpus)

    def _remove_dead_sockets(self, stock: Stock) -> None:
        live = {legacy.want.instance_id for legacy in stock.instances if legacy.worker}
        for folder in self._state.instances.iterdir():
            if folder.name not in live:
                launch.socket_path(self._around.socket_dir, folder.name).unlink(missing_ok=True)

    def _forget(self) -> None:
        """Drops stopped instances that the controller lists no more."""
        for instance_id, runner in list(self._runners.items()):
            if instance_id not in self._listed and runner.rested:
                del self._runners[instance_id]
                self._journal.note(Forgotten(instance_id))
                self._spawn(runner.close())
                self._forgotten += 1
                if self._forgotten % _PRUNE_EVERY == 0:
                    self._spawn(asyncio.to_thread(self._state.prune, frozenset(self._runners)))

    def _note_stopped(self) -> None:
        """A successor starts nothing of what this agent ends, should it not come to an end itself."""
        self._journal.note(
            *(Wanted(level_of(replace(runner.want, goal=Goal.STOPPED))) for runner in self._runners.values())
        )

    def _health_changed(self) -> None:
        # Workers that wait for a GPU to be healthy look again.
        self._resources_freed()
        self._on_change()

    def _journal_changed(self) -> None:
        self._on_change()
        if not self._journal.problem:
            self._resources_freed()
            if self._postponed is not None:
                self._spawn(self._apply_postponed(self._postponed))

    async def _apply_postponed(self, desired: control_pb2.DesiredNode) -> None:
        with contextlib.suppress(StaleTerm):
            await self.apply(desired)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._tasks.discard)

    def _resources_freed(self) -> None:
        for runner in self._runners.values():
            runner.resources_freed()
