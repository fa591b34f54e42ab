"""Follows what comes of one decision about one instance. Pure: what is seen in, what has come of it out.

Capacity that was added counts as needed when, at any report within one load time after it was ready, the
requests that ran and waited were more than a share of the other ready instances' slots: Θ as the decision
knew it, all of them where it knew none. A stop, a sleep, a wake or a change of role is reversed when the
contrary is decided within one load time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from chiron.internal.v1 import control_pb2
from chiron.store import DecisionRecord, InstanceRecord, Need, Outcome
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import is_failed, is_ready, is_stopping

SHORTEST_WATCH_S, LONGEST_WATCH_S = 5.0, 600.0
"""Bounds of the time for which added capacity is watched, in seconds."""
LONGEST_WAIT_S = 600.0
"""How long after it was ready an instance's first request is waited for, in seconds."""
NOTHING_ELSE = -1.0
"""In DecisionNeed.peak_without: requests, and no other slots."""
STARTED, STOPPED = cluster_pb2.OUTCOME_KIND_STARTED, cluster_pb2.OUTCOME_KIND_STOPPED
ASLEEP, WOKEN = cluster_pb2.OUTCOME_KIND_SENT_TO_SLEEP, cluster_pb2.OUTCOME_KIND_WOKEN
ROLE = cluster_pb2.OUTCOME_KIND_ROLE_CHANGED
CONTRARY = {STOPPED: (STARTED, WOKEN), ASLEEP: (STARTED, WOKEN), STARTED: (STOPPED, ASLEEP)} | {
    WOKEN: (STOPPED, ASLEEP),
    ROLE: (ROLE, STOPPED, ASLEEP),
}
"""What undoes or overtakes a decision of each kind."""
_FOLLOWS_FROM = {
    STARTED: (types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY),
    WOKEN: (types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY),
    STOPPED: (types_pb2.INSTANCE_STATE_DRAINING,),
    ASLEEP: (types_pb2.INSTANCE_STATE_DRAINING, types_pb2.INSTANCE_STATE_SLEEPING),
}
"""States that an agent has led its instance to by a command of this kind: it has had it for as long."""
_OF_THE_MODEL = (STOPPED, ASLEEP)
"""What is reversed by capacity of the same model, whichever instance gives it."""


def kind_of(before: InstanceRecord | None, after: InstanceRecord) -> cluster_pb2.OutcomeKind.ValueType | None:
    """What a write does to an instance; None: nothing that would have to be followed."""
    sleeping = control_pb2.DESIRED_STATE_SLEEPING
    if before is None:
        return None if is_ready(after) or is_stopping(after) else STARTED
    if is_stopping(after):
        return None if is_stopping(before) else STOPPED
    if after.desired != before.desired:
        return ASLEEP if after.desired == sleeping else WOKEN if before.desired == sleeping else None
    return ROLE if after.role != before.role else None


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a followed instance at one moment."""

    after_s: float
    """Time since the decision, in seconds."""
    record: InstanceRecord | None
    """None: it is on record no more."""
    status: cluster_pb2.InstanceStatus | None = None
    """Its agent's last report of it."""
    routed: bool = False
    """Routers know of its present state."""
    requests: float = 0.0
    """Requests of the model's that run and wait wherever the instance could take them."""
    other_slots: float = 0.0
    """Slots of the other ready instances that take them."""
    load_time_s: float = 30.0
    """Of the model: measured, or presumed."""


@dataclass(slots=True)
class Followed:
    """One decision whose outcome is open."""

    decision: DecisionRecord
    outcome: Outcome
    watched_until_s: float = math.inf
    """When its usefulness, or whether it stays, is known; in seconds since the decision."""
    _peak_use: float = 0.0
    _peak_without: float = 0.0
    _nothing_else: bool = False
    _served_before: int | None = field(default=None)

    def see(self, sight: Sight) -> bool:
        """Takes note of what is seen; True when the outcome has changed."""
        before = self.outcome
        if not before.is_open:
            return False
        if before.kind in (STARTED, WOKEN):
            self._see_capacity(sight)
        elif before.kind == STOPPED:
            self._see_stop(sight)
        elif before.kind == ASLEEP:
            self._see_sleep(sight)
        else:
            self._see_role(sight)
        return self.outcome != before

    def sent(self, generation: int, after_s: float) -> bool:
        """Takes note of what the agent is being told; True when the outcome has changed."""
        before = self.outcome
        if before.is_open and generation >= self.decision.generation:
            self._reach("sent", after_s)
        return self.outcome != before

    def meet(self, later: DecisionRecord, after_s: float) -> bool:
        """Takes note of a later decision; True when it undoes or overtakes this one.

        after_s: time between the two, in seconds.
        """
        mine, its = self.outcome, later.outcome
        if its is None or not mine.is_open or its.kind not in CONTRARY[mine.kind]:
            return False
        same = later.instance_id == self.decision.instance_id
        if mine.kind in _OF_THE_MODEL and its.kind == STARTED:
            moved = self.decision.action == "replace" or later.action == "replace"
            moved = moved or (later.cause != "" and later.cause == self.decision.cause)
            if later.model != self.decision.model or moved or after_s > self._watched(after_s):
                return False
            self._reach("reversed", after_s)
            self.outcome = replace(self.outcome, reversed_by=later.decision_id)
            return True
        if not same:
            return False
        self._judge(after_s)
        done = self.outcome.after_s("ready" if mine.kind in (STARTED, WOKEN) else "applied")
        if mine.kind in _OF_THE_MODEL:
            self._reach("reversed", after_s)
        reason = (
            f"{later.action} came {after_s - done:.1f} s after that"
            if done is not None
            else f"{later.action} came before that"
        )
        self.outcome = replace(
            self.outcome,
            state=cluster_pb2.OUTCOME_STATE_OVERTAKEN,
            reason=f"{reason}: {later.reason}",
            reversed_by=later.decision_id,
        )
        return True

    def _watched(self, after_s: float) -> float:
        return self.watched_until_s if math.isfinite(self.watched_until_s) else after_s

    def _see_capacity(self, sight: Sight) -> None:
        record = sight.record
        if record is None:
            self._end(cluster_pb2.OUTCOME_STATE_FAILED, "it is on record no more")
            return
        self._see_command(sight)
        if is_failed(record):
            self._end(cluster_pb2.OUTCOME_STATE_FAILED, record.observed.reason or "its agent has given it up")
            return
        state, age_s = record.observed.state, _state_age_s(sight)
        if state == types_pb2.INSTANCE_STATE_LOADING:
            self._reach("loading", sight.after_s - age_s)
        if state != types_pb2.INSTANCE_STATE_READY:
            self._waits_for(record.observed.reason)
            return
        if self.outcome.after_s("ready") is None:
            if not self._taken_up(sight):
                return
            self._reach("ready", sight.after_s - age_s)
            ready_s = self.outcome.after_s("ready") or 0.0
            self.watched_until_s = ready_s + min(LONGEST_WATCH_S, max(SHORTEST_WATCH_S, ready_s))
            self._waits_for("")
        if sight.routed:
            self._reach("routed", sight.after_s)
        self._see_use(sight)

    def _see_use(self, sight: Sight) -> None:
        ready_s = self.outcome.after_s("ready") or 0.0
        if not math.isfinite(self.watched_until_s):
            # Another leader saw it become ready.
            self.watched_until_s = ready_s + min(LONGEST_WATCH_S, max(SHORTEST_WATCH_S, ready_s))
        load = sight.status.load if sight.status is not None else cluster_pb2.InstanceLoad()
        served = load.finished_interactive.requests + load.finished_batch.requests
        if self._served_before is None:
            self._served_before = served if self.outcome.kind == WOKEN else 0
        running = load.running.interactive + load.running.batch
        if running or served > self._served_before:
            self._reach("first_request", sight.after_s)
        if self.outcome.need is None:
            waiting = load.waiting.interactive + load.waiting.batch
            self._peak_use = max(self._peak_use, (running + waiting) / max(1, load.batch_size))
            if sight.other_slots > 0:
                self._peak_without = max(self._peak_without, sight.requests / sight.other_slots)
            elif sight.requests > 0 or served > self._served_before:
                self._nothing_else = True
            if sight.after_s >= self.watched_until_s:
                self._judge(sight.after_s)
        served_first = self.outcome.after_s("first_request") is not None
        if self.outcome.need is not None and (served_first or sight.after_s - ready_s > LONGEST_WAIT_S):
            reason = "" if served_first else "no request has come to it"
            self._end(cluster_pb2.OUTCOME_STATE_DONE, reason)

    def _judge(self, after_s: float) -> None:
        """Says whether the capacity was needed, by what has been seen until now."""
        ready_s = self.outcome.after_s("ready")
        if self.outcome.kind not in (STARTED, WOKEN) or ready_s is None or self.outcome.need is not None:
            return
        limit = self.decision.numbers.get("theta", 0.0) or 1.0
        need = Need(
            needed=self._nothing_else or self._peak_without > limit,
            peak_use=self._peak_use,
            peak_without=NOTHING_ELSE if self._nothing_else else self._peak_without,
            limit=limit,
            window_s=min(after_s, self.watched_until_s) - ready_s,
        )
        self.outcome = replace(self.outcome, need=need)

    def _see_stop(self, sight: Sight) -> None:
        self._watch_for_reversal(sight)
        if sight.record is None:
            self._reach("stopped", sight.after_s)
        else:
            self._see_command(sight)
            if sight.status is not None and sight.status.state == types_pb2.INSTANCE_STATE_DRAINING:
                self._reach("draining", sight.after_s - _state_age_s(sight))
        if self.outcome.after_s("stopped") is not None and sight.after_s >= self.watched_until_s:
            self._end(cluster_pb2.OUTCOME_STATE_DONE)

    def _see_sleep(self, sight: Sight) -> None:
        self._watch_for_reversal(sight)
        record = sight.record
        if record is None:
            self._end(cluster_pb2.OUTCOME_STATE_FAILED, "it is on record no more")
            return
        self._see_command(sight)
        if is_failed(record):
            self._end(cluster_pb2.OUTCOME_STATE_FAILED, record.observed.reason)
        elif record.observed.state == types_pb2.INSTANCE_STATE_DRAINING:
            self._reach("draining", sight.after_s - _state_age_s(sight))
        elif record.observed.state == types_pb2.INSTANCE_STATE_SLEEPING:
            self._reach("asleep", sight.after_s - _state_age_s(sight))
            if sight.after_s >= self.watched_until_s:
                self._end(cluster_pb2.OUTCOME_STATE_DONE)

    def _see_role(self, sight: Sight) -> None:
        self._watch_for_reversal(sight)
        record, status = sight.record, sight.status
        if record is None or is_failed(record):
            why = record.observed.reason if record is not None else "it is on record no more"
            self._end(cluster_pb2.OUTCOME_STATE_FAILED, why)
            return
        self._see_command(sight)
        if status is not None and self._taken_up(sight) and status.role == record.role:
            self._reach("applied", sight.after_s)
            if sight.after_s >= self.watched_until_s:
                self._end(cluster_pb2.OUTCOME_STATE_DONE)

    def _watch_for_reversal(self, sight: Sight) -> None:
        if not math.isfinite(self.watched_until_s):
            self.watched_until_s = min(LONGEST_WATCH_S, max(SHORTEST_WATCH_S, sight.load_time_s))

    def _see_command(self, sight: Sight) -> None:
        if self._taken_up(sight):
            state = sight.record.observed.state if sight.record is not None else None
            since_s = _state_age_s(sight) if state in _FOLLOWS_FROM.get(self.outcome.kind, ()) else 0.0
            self._reach("received", sight.after_s - since_s)

    def _taken_up(self, sight: Sight) -> bool:
        """Whether the agent has reported the instance as this decision wants it."""
        return sight.status is not None and sight.status.generation >= self.decision.generation

    def _reach(self, name: str, after_s: float) -> None:
        """Notes a milestone, once; none lies before the one that was noted last."""
        if self.outcome.after_s(name) is None:
            last_s = self.outcome.milestones[-1][1] if self.outcome.milestones else 0.0
            reached = (*self.outcome.milestones, (name, round(max(last_s, after_s), 3)))
            self.outcome = replace(self.outcome, milestones=reached)

    def _waits_for(self, reason: str) -> None:
        if reason != self.outcome.reason:
            self.outcome = replace(self.outcome, reason=reason)

    def _end(self, state: cluster_pb2.OutcomeState.ValueType, reason: str = "") -> None:
        self.outcome = replace(self.outcome, state=state, reason=reason)


def _state_age_s(sight: Sight) -> float:
    """Time for which the instance is in its state, as its agent has told."""
    status, record = sight.status, sight.record
    if status is None or record is None or status.state != record.observed.state:
        return 0.0
    return status.state_age_ms / 1e3
