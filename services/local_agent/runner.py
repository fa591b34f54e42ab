"""Carries out the steps of one instance, one after another, in one task."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import launch, steps
from services.local_agent.ages import Ages
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.live_worker import Interrupted, LiveWorker
from services.local_agent.process import StuckError, WorkerProcess
from services.local_agent.records import InstanceRecord
from services.local_agent.starting import Surroundings, start_worker
from services.local_agent.status import given_up_reason, status_of
from services.local_agent.supervisor import plan
from services.local_agent.worker_link import CommandError, WorkerLink

_LOG = logging.getLogger(__name__)
_AFTER_ERROR_S = 5.0


class Runner:
    """One instance: converges what there is to what is wanted."""

    def __init__(self, want: Want, around: Surroundings) -> None:
        """Does nothing until `start`."""
        self._want = want
        self._have = Have()
        self._around = around
        self._worker: LiveWorker | None = None
        self._awake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._rested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reported = b""
        self._ages = Ages()

    @property
    def want(self) -> Want:
        """The level that it converges to."""
        return self._want

    def start(self) -> None:
        """Begins to converge."""
        self._task = asyncio.create_task(self._run(), name=f"instance {self._want.instance_id}")
        self._changed()

    def take_up(self, want: Want) -> None:
        """Replaces the level; the same one again changes nothing."""
        if want.restarts_afresh(self._want):
            self._have = self._have.wanted_afresh()
        if want != self._want:
            self._have = self._have.content()
        self._want = want
        if want.at_once:
            self._hurry.set()
        self._changed()

    def stop(self, drain_timeout_s: float, *, at_once: bool = False) -> None:
        """The agent itself goes: drains and stops, whatever the controller wanted."""
        self.take_up(replace(self._want, goal=Goal.STOPPED, drain_timeout_s=drain_timeout_s, at_once=at_once))

    def resources_freed(self) -> None:
        """Something was released: an instance that waits for it tries again."""
        if self._have.blocked:
            self._have = self._have.unblocked()
            self._awake.set()

    def attach(self, record: InstanceRecord) -> None:
        """Takes charge of a worker of an earlier agent. It is taken to serve until it says otherwise."""
        self._around.gpus.claim(record.instance_id, record.gpus)
        now = time.monotonic()
        have = self._have.claimed(record.gpus).launched(record.incarnation, record.spec_version, now)
        self._have = have.told(Heard(state=types_pb2.INSTANCE_STATE_READY), now)
        self._follow(WorkerProcess(record.pid, record.start_time))

    def status(self) -> cluster_pb2.InstanceStatus:
        """What to report now."""
        status = status_of(self._want, self._have, self._around.node_id)
        self._ages.fill(status, self._have.heard, time.monotonic())
        return status

    @property
    def rested(self) -> bool:
        """True for a stopped instance that has no process and holds no GPU."""
        return self._rested.is_set()

    async def wait_rested(self) -> None:
        """Returns when `rested` becomes true."""
        await self._rested.wait()

    async def close(self) -> None:
        """Stops converging; a worker that still lives is left as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._worker is not None:
            await self._worker.unfollow()

    async def _run(self) -> None:
        while True:
            step = plan(self._want, self._have, time.monotonic(), self._around.policy)
            try:
                await self._execute(step)
            except Exception:
                _LOG.exception("%s: %s failed", self._want.instance_id, type(step).__name__)
                await asyncio.sleep(_AFTER_ERROR_S)
            self._changed(wake=False)

    async def _execute(self, step: steps.Step) -> None:
        if not isinstance(step, steps.Idle):
            _LOG.debug("%s: %s", self._want.instance_id, step)
        match step:
            case steps.Idle(until):
                await self._idle(until)
            case steps.Claim(gpus):
                self._claim(gpus)
            case steps.Release():
                self._release()
            case steps.Launch():
                await self._launch()
            case steps.Drain(timeout_s):
                await self._drain(timeout_s)
            case steps.Terminate(failure):
                await self._terminate(failure)
            case _:
                await self._command(step)

    async def _idle(self, until: float | None) -> None:
        if not self._awake.is_set():
            delay = None if until is None else max(0.0, until - time.monotonic())
            waiting = asyncio.ensure_future(self._awake.wait())
            try:
                await asyncio.wait({waiting}, timeout=delay)
            finally:
                waiting.cancel()
        self._awake.clear()

    def _claim(self, gpus: tuple[int, ...]) -> None:
        held = self._around.gpus.claim(self._want.instance_id, gpus)
        if held:
            text = ", ".join(f"GPU {index} is still held by {holder}" for index, holder in held.items())
            self._have = self._have.stopped_by(text)
        else:
            self._have = self._have.claimed(gpus)

    def _release(self) -> None:
        self._around.gpus.release(self._want.instance_id)
        self._have = self._have.released()
        self._around.on_release()

    async def _launch(self) -> None:
        want, around = self._want, self._around
        port = around.ports.take(want.instance_id)
        if port is None:
            ports = around.config.worker_ports
            self._have = self._have.stopped_by(f"no port of worker_ports={ports} is free on this node")
            return
        incarnation = max(self._have.incarnation + 1, int(time.time() * 1000))
        try:
            process = await start_worker(want, incarnation, port, around)
        except OSError as error:
            failure = Failure(FailureKind.CRASH, f"cannot start the worker: {error}")
            around.ports.release(want.instance_id)
            self._have = self._have.gone(failure, time.monotonic(), around.policy)
            self._loud()
            return
        self._have = self._have.launched(incarnation, want.spec_version, time.monotonic())
        _LOG.info(
            "%s: started incarnation %d as pid %d on GPUs %s",
            want.instance_id,
            incarnation,
            process.pid,
            list(want.gpus),
        )
        self._follow(process)

    def _follow(self, process: WorkerProcess) -> None:
        socket = launch.socket_path(self._around.socket_dir, self._want.instance_id)
        self._worker = LiveWorker(
            process,
            WorkerLink(socket, self._have.incarnation),
            self._around.state.instance_dir(self._want.instance_id) / "worker.log",
            log_bytes=self._around.config.worker_log_mib * 2**20,
            statistics_interval_ms=self._around.config.statistics_interval_ms,
            keys=self._around.keys,
            on_statistics=self._on_statistics,
            on_exit=self._on_exit,
        )

    def _on_statistics(self, message: worker_pb2.WatchStatisticsResponse) -> None:
        now = time.monotonic()
        heard = Heard.of(message, now)
        before = self._have.heard
        self._have = self._have.told(heard, now)
        if (before.state, before.role) != (heard.state, heard.role):
            state = types_pb2.InstanceState.Name(heard.state).removeprefix("INSTANCE_STATE_")
            role = launch.role_name(heard.role)
            _LOG.info("%s: %s, role %s %s", self._want.instance_id, state, role, heard.reason)
        self._changed()

    def _on_exit(self, reason: str) -> None:
        self._have = self._have.exited(reason)
        self._changed()

    async def _drain(self, timeout_s: float) -> None:
        worker = self._live()
        _LOG.info("%s: draining for at most %g s", self._want.instance_id, timeout_s)
        try:
            aborted = await worker.unless_interrupted(worker.link.drain(timeout_s), self._hurry)
            if aborted:
                _LOG.warning("%s: %d requests were cut off", self._want.instance_id, aborted)
        except CommandError as error:
            _LOG.warning("%s: not drained: %s", self._want.instance_id, error)
        except Interrupted:
            pass
        self._have = self._have.drained()

    async def _terminate(self, failure: Failure | None) -> None:
        worker = self._live()
        if failure is not None:
            _LOG.warning("%s: worker failed: %s", self._want.instance_id, failure.reason)
        try:
            await worker.stop(self._around.config.stop_grace_s, self._hurry)
        except StuckError as error:
            _LOG.error("%s: its GPUs stay taken: %s", self._want.instance_id, error)
            return
        # First what can fail: the whole step is then taken again.
        await asyncio.to_thread(self._around.state.remove_record, self._want.instance_id)
        await worker.unfollow()
        self._worker = None
        self._around.ports.release(self._want.instance_id)
        self._have = self._have.gone(failure, time.monotonic(), self._around.policy)
        self._loud()
        self._around.on_release()

    async def _command(self, step: steps.Step) -> None:
        worker = self._live()
        try:
            await worker.unless_interrupted(self._send(worker.link, step), self._hurry)
        except Interrupted:
            pass
        except CommandError as error:
            reason = f"{type(step).__name__} refused: {error}"
            _LOG.warning("%s: %s", self._want.instance_id, reason)
            self._have = self._have.refused(reason, time.monotonic())

    async def _send(self, link: WorkerLink, step: steps.Step) -> None:
        heard = self._have.heard
        match step:
            case steps.SetRole(role):
                await link.set_role(role)
                heard = replace(self._have.heard, role=role)
            case steps.SetLimits(batch_size, step_token_budget):
                now = await link.set_limits(batch_size, step_token_budget)
                if (batch_size or now.batch_size, step_token_budget or now.step_token_budget) != (
                    now.batch_size,
                    now.step_token_budget,
                ):
                    raise CommandError(f"in force are {now.batch_size} and {now.step_token_budget}")
                load = cluster_pb2.InstanceLoad()
                load.CopyFrom(self._have.heard.load or load)
                load.batch_size, load.step_token_budget = now.batch_size, now.step_token_budget
                heard = replace(self._have.heard, load=load)
            case steps.PutToSleep():
                await link.sleep()
                heard = replace(self._have.heard, state=types_pb2.INSTANCE_STATE_SLEEPING)
            case steps.WakeUp():
                await link.wake()
                heard = replace(self._have.heard, state=types_pb2.INSTANCE_STATE_READY)
        self._have = self._have.told(heard, time.monotonic()).content()

    def _live(self) -> LiveWorker:
        if self._worker is None:
            raise RuntimeError("a step for a live worker without one")
        return self._worker

    def _loud(self) -> None:
        if self._have.gave_up:
            _LOG.error("%s: given up: %s", self._want.instance_id, given_up_reason(self._have))

    def _changed(self, *, wake: bool = True) -> None:
        have = self._have
        resting = have.process is Process.NONE and have.gpus is None
        if resting and self._want.goal is Goal.STOPPED:
            self._rested.set()
        else:
            self._rested.clear()
        if wake:
            self._awake.set()
        visible = status_of(self._want, self._have, self._around.node_id)
        self._ages.note(visible.state, time.monotonic())
        visible.ClearField("load")
        serialized = visible.SerializeToString(deterministic=True)
        if serialized != self._reported:
            self._reported = serialized
            self._around.on_change()
