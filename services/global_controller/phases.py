"""Which phase each instance is in, since when, and how long loads and wakes have taken.

Times are the controller's monotonic clock, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from chiron.internal.v1 import control_pb2
from chiron.policy.words import Phase
from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import is_stopping

_MEASURED_KEPT = 200
_PERCENTILE = 95
_PHASES = {
    types_pb2.INSTANCE_STATE_READY: Phase.READY,
    types_pb2.INSTANCE_STATE_DRAINING: Phase.DRAINING,
    types_pb2.INSTANCE_STATE_SLEEPING: Phase.SLEEPING,
}
_NO_CAPACITY = (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)

Measured = deque[tuple[int, float]]
"""(spec version, seconds), the newest last."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One instance's phase."""

    phase: Phase
    since_s: float
    waking: bool = False
    """It loads because it was asleep."""
    placed: bool = False
    """It loads for the first time: not again after a crash."""


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """Where an instance stands that does not serve yet, in seconds."""

    since_s: float
    """For how long it has been on its way."""
    ready_in_s: float
    """Until it is expected to be ready; 0: it is late."""


def phase_of(record: InstanceRecord) -> Phase | None:
    """The phase that the instance is in or has been told to enter; None: it holds no capacity any more."""
    state = record.observed.state
    if state in _NO_CAPACITY:
        return None
    if is_stopping(record):
        return Phase.DRAINING
    seen = _PHASES.get(state, Phase.LOADING)
    if record.desired == control_pb2.DESIRED_STATE_SLEEPING:
        return seen if seen is Phase.SLEEPING else Phase.DRAINING
    return Phase.LOADING if seen is Phase.SLEEPING else seen


class Phases:
    """Follows all instances. A command counts from the moment at which it is on record."""

    def __init__(self) -> None:
        self._standing: dict[str, Standing] = {}
        self._loads: dict[str, Measured] = {}
        self._wakes: dict[str, Measured] = {}

    def update(
        self,
        models: Iterable[ModelRecord],
        instances: Iterable[InstanceRecord],
        statuses: Mapping[str, cluster_pb2.InstanceStatus],
        now: float,
    ) -> None:
        """Takes down what has changed.

        Args:
            models: those on record; what was measured of any other is forgotten.
            instances: those on record; likewise.
            statuses: the last report of each, which tells how long a state has lasted.
            now: monotonic time, in seconds.
        """
        names = {model.name for model in models}
        for measured in (self._loads, self._wakes):
            for gone in measured.keys() - names:
                del measured[gone]
        before, self._standing = self._standing, {}
        for record in instances:
            phase = phase_of(record)
            if phase is None:
                continue
            known = before.get(record.instance_id)
            if known is None or known.phase is not phase:
                status = statuses.get(record.instance_id)
                standing = _entered(record, phase, known, status, now)
                self._measure(record, known, standing, status)
                known = standing
            self._standing[record.instance_id] = known

    def of(self, instance_id: str) -> Standing | None:
        """An instance's phase; None: it holds no capacity."""
        return self._standing.get(instance_id)

    def load_time_s(self, model: ModelRecord) -> float | None:
        """95th percentile of the times from placement to ready, of workers that need no replacement now."""
        return _percentile(self._loads.get(model.name), model)

    def wake_time_s(self, model: ModelRecord) -> float | None:
        """The same of the times from the command to wake to ready."""
        return _percentile(self._wakes.get(model.name), model)

    def _measure(
        self,
        record: InstanceRecord,
        before: Standing | None,
        after: Standing,
        status: cluster_pb2.InstanceStatus | None,
    ) -> None:
        if after.phase is not Phase.READY:
            return
        took_s = 0.0
        into = self._loads
        if before is None:
            # It has loaded under another controller; its worker remembers how long that took.
            took_s = status.load.load_ms / 1e3 if status is not None else 0.0
        elif before.waking or before.placed:
            took_s = after.since_s - before.since_s
            into = self._wakes if before.waking else self._loads
        if took_s > 0:
            measured = into.setdefault(record.model, deque(maxlen=_MEASURED_KEPT))
            measured.append((record.spec_version, took_s))


def _entered(
    record: InstanceRecord,
    phase: Phase,
    before: Standing | None,
    status: cluster_pb2.InstanceStatus | None,
    now: float,
) -> Standing:
    age_s = 0.0
    told = status is not None and status.state == record.observed.state
    if told and status is not None and phase is _PHASES.get(status.state, Phase.LOADING):
        age_s = status.state_age_ms / 1e3
    loading = phase is Phase.LOADING
    return Standing(
        phase,
        now - age_s,
        waking=loading and record.observed.state == types_pb2.INSTANCE_STATE_SLEEPING,
        placed=loading and before is None,
    )


def _percentile(measured: Measured | None, model: ModelRecord) -> float | None:
    current = [took_s for version, took_s in measured or () if version == model.rollout_version]
    return float(np.percentile(current, _PERCENTILE)) if current else None
