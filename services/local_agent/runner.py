"""Carries out the steps of one instance, one after another, in one task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from chiron.internal.v1 import worker_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import decision_spans, launch, residues, steps
from services.local_agent.adoption import Legacy
from services.local_agent.ages import Ages
from services.local_agent.autoscaling import Autoscaling
from services.local_agent.commands import carry_out
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Process
from services.local_agent.desired import Goal, Want
from services.local_agent.inheritance import inherited, tally_of
from services.local_agent.journal import JournalError
from services.local_agent.limits import set_by_hand
from services.local_agent.live_worker import Interrupted, LiveWorker, is_from_outside
from services.local_agent.memory import Tally, WorkerEnded, WorkerNoted
from services.local_agent.news import News
from services.local_agent.process import StuckError, WorkerProcess
from services.local_agent.starting import CannotStartNow, Surroundings, start_worker
from services.local_agent.status import given_up_reason, status_of
from services.local_agent.supervisor import as_wanted, plan
from services.local_agent.worker_link import CommandError, WorkerLink
from services.local_agent.worker_record import WorkerRecord

_LOG = logging.getLogger(__name__)
_AFTER_ERROR_S = 5.0
_START_AGAIN_S = 5.0


class Runner:
    """One instance: converges what there is to what is wanted."""

    def __init__(self, want: Want, around: Surroundings) -> None:
        """Does nothing until `start`."""
        self._want = want
        self._have = Have()
        self._around = around
        self._worker: LiveWorker | None = None
        self._record: WorkerRecord | None = None
        self._awake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._turned = asyncio.Event()
        self._rested = asyncio.Event()
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._news = News()
        self._ages = Ages()
        self._autoscaling: Autoscaling | None = None

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
        if want.goal is not self._want.goal:
            self._turned.set()
        self._want = want
        if want.at_once:
            self._hurry.set()
        self._changed()

    def stop(self, drain_timeout_s: float, *, at_once: bool = False) -> None:
        """The agent itself goes: drains and stops, whatever the controller wanted."""
        self.take_up(replace(self._want, goal=Goal.STOPPED, drain_timeout_s=drain_timeout_s, at_once=at_once))

    async def hand_over(self, grant: worker_pb2.HandOverRequest) -> None:
        """Tells the worker how fast it may hand its streams over, beside whatever it is told to do."""
        if (worker := self._worker) is None:
            return
        try:
            await worker.link.hand_over(grant)
        except CommandError as error:
            # The next grant comes within a second, and without any the drain serves to the end.
            _LOG.debug("%s: hands nothing over: %s", self._want.instance_id, error)

    def resources_freed(self) -> None:
        """Something was released: an instance that waits for it tries again."""
        if self._have.blocked:
            self._have = self._have.unblocked()
            self._awake.set()

    def inherit(self, legacy: Legacy) -> None:
        """Takes over what an earlier agent has left of this instance. Its GPUs are claimed already."""
        last_words = launch.log_tail(self._log_file) if legacy.died else ""
        self._have = inherited(legacy, last_words, time.monotonic(), self._around.policy)
        if (worker := legacy.worker) is not None:
            self._follow(WorkerProcess(worker.pid, worker.start_time), worker)
        else:
            self._heard.set()
            self._around.journal.note(WorkerEnded(self._want.instance_id), self._tally(self._have))

    async def wait_heard(self) -> None:
        """Returns when the present worker has told of itself, or is known to be gone."""
        await self._heard.wait()

    def status(self) -> cluster_pb2.InstanceStatus:
        """What to report now."""
        status = status_of(self._want, self._have, self._around.node_id)
        self._ages.fill(status, self._have.heard, time.monotonic())
        if self._autoscaling is not None and self._have.process is not Process.NONE:
            self._autoscaling.fill(status, self._want)
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
            self._turned.clear()
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
            case steps.CheckGpus(gpus):
                await self._check_gpus(gpus)
            case steps.Release():
                self._release()
            case steps.Launch():
                await self._launch()
            case steps.Drain(timeout_s):
                await self._drain(timeout_s)
            case steps.Terminate(failure):
                await self._terminate(failure)
            case steps.MeasureSleeper(gpus):
                await self._measure(gpus)
            case steps.Doze():
                await self._doze()
            case steps.Reclaim(gpus):
                why_not = residues.reclaim(self._want.instance_id, gpus, self._around)
                self._have = self._have.stopped_by(why_not) if why_not else self._have.reclaims()
            case steps.WakeUp():
                await self._wake(step)
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
        held = residues.claim(self._want.instance_id, gpus, self._around)
        self._have = self._have.stopped_by(held) if held else self._have.claimed(gpus)

    async def _check_gpus(self, gpus: tuple[int, ...]) -> None:
        session = None if self._worker is None else self._worker.process.pid
        occupied = await residues.occupied(gpus, session, self._around)
        if occupied and occupied != self._have.occupied:
            _LOG.warning("%s: %s", self._want.instance_id, occupied)
        self._have = self._have.looked_at(occupied, time.monotonic())

    def _release(self) -> None:
        self._around.gpus.release(self._want.instance_id)
        self._have = self._have.released()
        self._around.on_release()

    async def _launch(self) -> None:
        want, around = self._want, self._around
        if self._have.incarnation:
            # What has crashed starts again because of that, not of the decision.
            want = replace(want, trace_parent="")
        if obstacle := around.health.obstacle(want.gpus):
            self._have = self._have.stopped_by(obstacle)
            return
        port = around.ports.take(want.instance_id)
        if port is None:
            ports = around.config.worker_ports
            self._have = self._have.stopped_by(f"no port of worker_ports={ports} is free on this node")
            return
        incarnation = max(self._have.incarnation + 1, int(time.time() * 1000))
        began_s = time.monotonic()
        launched = self._have.launched(incarnation, want.spec_version, began_s)
        try:
            process, noted = await start_worker(want, incarnation, port, self._tally(launched), around)
        except CannotStartNow as error:
            around.ports.release(want.instance_id)
            self._have = self._have.stopped_by(str(error), time.monotonic() + _START_AGAIN_S)
            _LOG.warning("%s: not started: %s", want.instance_id, error)
            return
        except OSError as error:
            failure = Failure(FailureKind.CRASH, f"cannot start the worker: {error}")
            around.ports.release(want.instance_id)
            self._have = self._have.gone(failure, time.monotonic(), around.policy)
            around.journal.note(self._tally(self._have))
            self._loud()
            return
        self._have = launched
        decision_spans.started(want, around.node_id, began_s)
        text = "%s: started incarnation %d as pid %d on GPUs %s"
        _LOG.info(text, want.instance_id, incarnation, process.pid, list(want.gpus))
        self._follow(process, noted)

    def _follow(self, process: WorkerProcess, noted: WorkerNoted) -> None:
        self._record = WorkerRecord(noted, self._around.journal)
        self._heard.clear()
        interval_ms = self._around.config.statistics_interval_ms
        self._autoscaling = Autoscaling(self._want.instance_id, interval_ms / 1e3)
        self._worker = LiveWorker(
            process,
            WorkerLink(self._socket, self._have.incarnation),
            self._log_file,
            log_bytes=self._around.config.worker_log_mib * 2**20,
            statistics_interval_ms=interval_ms,
            keys=self._around.keys,
            on_statistics=partial(self._on_statistics, self._autoscaling),
            on_exit=self._on_exit,
        )

    def _on_statistics(self, scaling: Autoscaling, message: worker_pb2.WatchStatisticsResponse) -> None:
        now = time.monotonic()
        heard = Heard.of(message, now)
        before = self._have.heard
        scaling.decided_by(self._want.local_autoscaler or self._around.config.local_autoscaler)
        scaling.hear(message, set_by_hand(self._want))
        self._have = self._have.told(heard, now).proposing(scaling.wanted)
        if self._have.complaint and as_wanted(self._want, self._have):
            self._have = self._have.content()
        self._heard.set()
        if self._record is not None and heard.state == types_pb2.INSTANCE_STATE_READY:
            self._record.note_address(heard.address)
        if heard.state == types_pb2.INSTANCE_STATE_READY != before.state:
            self._around.health.start_succeeded(self._have.gpus or (), self._model)
        if (before.state, before.role) != (heard.state, heard.role):
            state = types_pb2.InstanceState.Name(heard.state).removeprefix("INSTANCE_STATE_")
            role = launch.role_name(heard.role)
            _LOG.info("%s: %s, role %s %s", self._want.instance_id, state, role, heard.reason)
        self._changed()

    def _on_exit(self, reason: str) -> None:
        self._have = self._have.exited(reason)
        self._heard.set()
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
        await worker.unfollow()
        self._worker = self._record = None
        self._around.ports.release(self._want.instance_id)
        if failure is not None and self._have.ready_at is None and not is_from_outside(failure.reason):
            self._around.health.start_failed(self._have.gpus or (), self._model, failure.reason)
        self._have = self._have.gone(failure, time.monotonic(), self._around.policy)
        self._around.journal.note(WorkerEnded(self._want.instance_id), self._tally(self._have))
        with contextlib.suppress(OSError):
            self._socket.unlink(missing_ok=True)
        self._loud()
        self._around.on_release()

    async def _measure(self, gpus: tuple[int, ...]) -> None:
        session = self._live().process.pid
        kept, too_much = await residues.measure(self._want, gpus, session, self._around)
        if too_much and too_much != self._have.occupied:
            _LOG.warning("%s: %s", self._want.instance_id, too_much)
        self._have = self._have.measured(kept, too_much, time.monotonic())

    async def _doze(self) -> None:
        if not await self._on_record(asleep=True):
            return
        # Whatever has happened meanwhile: others may have the GPUs of a worker that sleeps, and of no other.
        if self._have.freed and self._have.process is Process.ALIVE and self._want.goal is Goal.SLEEPING:
            sleeper = residues.sleeper_of(self._want, self._have.gpus or (), self._live().process.pid)
            self._around.gpus.doze(self._want.instance_id, sleeper)
            self._have = self._have.dozes()
            self._around.on_release()

    async def _wake(self, step: steps.WakeUp) -> None:
        # On record first: whoever takes this agent's place must count it as awake.
        if await self._on_record(asleep=False):
            self._have = self._have.waking(time.monotonic())
            await self._command(step)

    async def _on_record(self, *, asleep: bool) -> bool:
        """Puts on record whether others may own the worker's GPUs; False: it could not be, try later."""
        if self._record is not None:
            try:
                await self._record.write_asleep(asleep)
            except JournalError as error:
                self._have = self._have.refused(str(error), time.monotonic())
                return False
        return True

    async def _command(self, step: steps.Step) -> None:
        worker = self._live()
        events = [self._hurry]
        if isinstance(step, steps.PutToSleep | steps.WakeUp):
            events.append(self._turned)
        try:
            change = await worker.unless_interrupted(carry_out(worker.link, step, self._want), *events)
            self._have = change(self._have, time.monotonic()).content()
        except Interrupted:
            pass
        except CommandError as error:
            reason = f"{type(step).__name__} refused: {error}"
            _LOG.warning("%s: %s", self._want.instance_id, reason)
            self._have = self._have.refused(reason, time.monotonic())

    def _tally(self, have: Have) -> Tally:
        return tally_of(self._want.instance_id, have)

    @property
    def _model(self) -> tuple[str, int]:
        return self._want.spec.name, self._have.spec_version

    @property
    def _socket(self) -> Path:
        return launch.socket_path(self._around.socket_dir, self._want.instance_id)

    @property
    def _log_file(self) -> Path:
        return self._around.state.instance_dir(self._want.instance_id) / "worker.log"

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
        status = status_of(self._want, self._have, self._around.node_id)
        self._ages.note(status.state, time.monotonic())
        if self._news.is_news(status):
            self._around.on_change()
