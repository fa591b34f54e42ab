"""The clairvoyant schedule: instances start when what is to come needs them, and stop as long as it does not.

At each tick the work in the system is carried forward as a fluid, with the arrivals that will come and the
pace of the engines: requests in flight and in the queue are a buffer, which may fill up to what the SLOs
allow. An instance starts a load time before the buffer would overflow, and stops when the rest would do for
`least_stop_s` at least. Batch work is done as late as its deadlines allow with the instances that are there,
so that it fills what interactive requests leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role
from chiron.sim.clairvoyant.future import Future

STEP_S = 2.0
"""Of the fluid."""
_WINDOW_S = 4.0
"""For so long after they are ready, new instances must keep the buffer from overflowing."""
_STOPPING_FILL = 0.85
"""Part of the buffer that an instance's stop may fill: the fluid is not exact."""
_MOST_AT_ONCE = 64
"""Instances that start for batch work at one tick."""
_CLEAR_S = 12.0
"""New instances need not clear what waits any faster."""
_LATE_S = 2.0
"""From an action that is due to its effect: a tick, and the reports before it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How close the schedule goes to the limits."""

    fill: float = 0.0
    """Of the buffer: above 0 the share of the TTFT SLO for which requests may have to wait when it is full,
    below 0 the share of the slots that stay free then."""
    least_stop_s: float = 300.0
    """An instance stops when the rest will do for so long; inf: never."""
    spare: float = 0.02
    """Share of the capacity that batch work is not planned on."""


class ClairvoyantFleet:
    """Follows the schedule. Only mixed instances; nobody sleeps."""

    def __init__(self, known: Mapping[str, Future], schedule: Schedule) -> None:
        """Plans ahead with what is known of each model's workload, by the model's name."""
        self._known = known
        self._schedule = schedule

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """See `chiron.policy.fleet.GlobalAutoscaler`."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            known = self._known.get(model.name)
            if known is None:
                continue
            action, assessment = _Now(model, known, self._schedule, snapshot.now_s).decide()
            assessments.append(assessment)
            if action is not None:
                actions.append(action)
        return FleetDecision(tuple(actions), tuple(assessments))


class _Now:
    """One model at one tick."""

    def __init__(self, model: ModelFleet, known: Future, schedule: Schedule, now_s: float) -> None:
        self._model, self._known, self._schedule, self._now_s = model, known, schedule, now_s
        self._ready = [each for each in model.instances if each.phase is Phase.READY]
        self._loading = [each for each in model.instances if each.phase is Phase.LOADING]
        self._slots = known.pace.batch_size
        self._batch = sum(group.requests for group in model.backlog) + sum(
            each.running_batch + each.waiting_batch for each in self._ready
        )
        self._each = known.mean_work(now_s)
        self._full = known.pace.work_per_s(self._slots)

    def decide(self) -> tuple[Action | None, ModelAssessment]:
        """What to do, if anything, and why."""
        held, name = len(self._ready) + len(self._loading), self._model.name
        queued = self._model.traffic.queued_interactive
        inside = queued + sum(_interactive(each) for each in self._ready)
        missing = self._missing(inside)
        numbers = {"instances": held, "missing": missing, "interactive": inside, "batch": self._batch}
        if missing:
            reason = "what is to come overflows the buffer, or is late, without more instances"
            action: Action = Start(name, Role.MIXED, missing, reason, numbers)
            return action, ModelAssessment(name, numbers, reason)
        if self._ready and held > self._model.min_instances:
            idlest = min(self._ready, key=lambda each: _interactive(each) + each.running_batch)
            left = inside - idlest.running_interactive
            if (held > 1 or not idlest.waiting_batch) and self._does(left, held):
                reason = "the rest will do for long enough"
                return Retire(name, idlest.instance_id, reason, numbers), ModelAssessment(
                    name, numbers, reason
                )
        return None, ModelAssessment(name, numbers, "the fleet does, and one less would not for long")

    def _missing(self, inside: int) -> int:
        """Fewest instances to start now."""
        known, most = self._known, self._model.max_instances
        held = len(self._ready) + len(self._loading)
        ready_s = self._now_s + known.load_s + _LATE_S
        allowed = max(0, most - held) if most else 1 << 16
        # Not more than what clears all that is there by then, however full the buffer is.
        work = inside * self._each + known.until(ready_s + _CLEAR_S) - known.until(self._now_s)
        served_s = ready_s - self._now_s + _CLEAR_S
        enough = max(0, ceil((work / self._full - held * served_s) / _CLEAR_S))
        more = 0
        while more < min(allowed, enough) and inf > self._overflow_s(
            inside, more, from_s=ready_s, until_s=ready_s + _WINDOW_S
        ):
            more += 1
        late = 0
        while more + late < allowed and late < _MOST_AT_ONCE:
            # The last one starts when it must: until then the others are kept full.
            if self._in_time(held, more + late, self._schedule.spare, again_s=_LATE_S):
                break
            late += 1
        return more + late

    def _does(self, inside: int, held: int) -> bool:
        """Whether the instances that are held will do for long without one of them, and what runs there."""
        stop_s = self._schedule.least_stop_s
        if stop_s == inf:
            return False
        until_s = self._now_s + stop_s
        if self._overflow_s(inside, -1, from_s=self._now_s, until_s=until_s, part=_STOPPING_FILL) < inf:
            return False
        if not self._model.backlog:
            return True
        return held > 1 and self._in_time(held, -1, self._schedule.spare + 0.01, again_s=stop_s)

    def _limit(self, instances: int) -> float:
        """Interactive work that may be in the system with so many instances."""
        fill = self._schedule.fill
        slots = instances * self._slots * self._each * (1.0 + min(fill, 0.0))
        return slots + max(fill, 0.0) * self._model.ttft_slo_s * instances * self._full

    def _overflow_s(
        self, inside: int, change: int, *, from_s: float, until_s: float, part: float = 1.0
    ) -> float:
        """When interactive work first exceeds this part of the limit between these times; inf: not then.

        change: instances that begin to load now, or -1 for one that stops now.
        """
        known, each, slots = self._known, self._each, self._slots
        joining = sorted(self._now_s + one.ready_in_s for one in self._loading)
        joining += [self._now_s + known.load_s] * max(change, 0)
        instances = len(self._ready) + min(change, 0)
        work, at_s, come = inside * each, self._now_s, known.until(self._now_s)
        place = 0
        while at_s < until_s:
            while place < len(joining) and joining[place] <= at_s:
                place, instances = place + 1, instances + 1
            at_s += STEP_S
            more = known.until(at_s)
            if instances > 0:
                running = work / (each * instances) if each else 0.0
                share = known.pace.work_per_s(min(running, slots))
                if self._batch and running < slots:
                    # Batch work has the other slots, and each token takes as long as in a full batch.
                    share = self._full * running / slots
                work = max(0.0, work - instances * share * STEP_S)
            work += more - come
            come = more
            if at_s >= from_s and work > part * self._limit(instances) + 1e-9:
                return at_s
        return inf

    def _in_time(self, instances: int, more: int, spare: float, again_s: float) -> bool:
        """Whether all batch work begins in time, with `more` instances once they have loaded, or -1 at once.

        again_s: after so long one instance more may start.
        """
        known = self._known
        due: dict[float, float] = {}
        for group in self._model.backlog:
            at_s = self._now_s + group.deadline_in_s
            due[at_s] = due.get(at_s, 0.0) + group.requests * known.batch_each
        for at_s, work in known.batch_before(self._now_s, self._now_s + known.load_s + _LATE_S):
            due[at_s] = due.get(at_s, 0.0) + work
        come, total = known.until(self._now_s), 0.0
        for at_s in sorted(due):
            total += due[at_s]
            begin_s = at_s - known.batch_tail_s * (1 + spare)
            span_s = begin_s - self._now_s
            if span_s <= known.load_s:
                # Nobody who starts now helps, and nobody who is there goes.
                if more < 0:
                    return False
                continue
            served_s = instances * span_s + (more * (span_s - known.load_s) if more > 0 else more * span_s)
            served_s += max(0.0, span_s - again_s - known.load_s)
            needed = total + known.until(begin_s) - come
            if served_s * self._full * (1 - spare) < needed:
                return False
        return True


def _interactive(instance: FleetInstance) -> int:
    return instance.running_interactive + instance.waiting_interactive
