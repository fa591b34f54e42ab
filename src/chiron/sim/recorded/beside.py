"""What was live beside what was simulated: the same figures of the same requests, by the same rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import Phase
from chiron.sim.recorded.cluster import LiveCluster
from chiron.sim.recorded.requests import RecordedRequest
from chiron.sim.results import ActionRecord, Percentiles, SimResult, TimelinePoint

PHASES = (Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)
PHASE_NAMES = ("loading", "serving", "draining", "sleeping")
SAMPLES = 12
"""Times at which instances are shown."""
_KIND = {"change_role": "change-role"}
_ACTS = ("start", "retire", "change-role", "wake", "sleep")
_OPERATORS = {
    "scale": "scale",
    "apply_model": "spec applied",
    "delete_model": "model deleted",
    "set_role": "role set",
    "set_limits": "limits set",
    "pause": "pause",
    "resume": "resume",
    "drain": "drain",
    "drain_node": "node drained or given back",
}
"""What operators do, by the action of its decision."""


@dataclass(frozen=True, slots=True)
class Service:
    """How requests were served."""

    interactive: float | None
    """Share of those with an SLO that kept it, 0 to 1; None: there is none. Likewise the next."""
    batch: float | None
    ttft_ms: Percentiles
    itl_ms: Percentiles
    preemptions: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """What served them."""

    gpu_seconds: Mapping[str, float]
    """By phase."""
    gpus_peak: int
    acts: Mapping[str, int]
    """How often: start, retire, change-role, wake, sleep."""

    @property
    def total(self) -> float:
        """GPU-seconds over all phases."""
        return sum(self.gpu_seconds.values())


@dataclass(frozen=True, slots=True)
class Sample:
    """Instances at one time."""

    at_s: float
    live_ready: int
    live_loading: int
    ready: int
    loading: int


@dataclass(frozen=True, slots=True)
class Act:
    """One decision, of either side."""

    at_s: float
    live: bool
    kind: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Beside:
    """The report."""

    requests: int
    left_out: int
    """Of the recording, which are in the live figures alone."""
    span_s: float
    """From the first arrival until the last answer: the time over which fleets are compared."""
    live: Service
    simulated: Service
    live_fleet: Fleet | None
    """None: nobody recorded the cluster."""
    fleet: Fleet
    samples: tuple[Sample, ...]
    acts: tuple[Act, ...]
    """Of both, by time."""
    operators: Mapping[str, int]
    """What operators did meanwhile, which is not simulated: how often, by kind."""

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for json.dump."""
        return {
            "requests": self.requests,
            "left_out": self.left_out,
            "span_s": self.span_s,
            "live": {**_service(self.live), **_fleet(self.live_fleet)},
            "simulated": {**_service(self.simulated), **_fleet(self.fleet)},
            "attainment_difference": _difference(self.live.interactive, self.simulated.interactive),
            "deadline_difference": _difference(self.live.batch, self.simulated.batch),
            "gpu_seconds_ratio": None
            if self.live_fleet is None or not self.live_fleet.total
            else self.fleet.total / self.live_fleet.total,
            "instances": [
                {
                    "at_s": one.at_s,
                    "live": {"ready": one.live_ready, "loading": one.live_loading},
                    "simulated": {"ready": one.ready, "loading": one.loading},
                }
                for one in self.samples
            ],
            "decisions": [
                {
                    "at_s": act.at_s,
                    "side": "live" if act.live else "simulated",
                    "kind": act.kind,
                    "model": act.model,
                    "reason": act.reason,
                }
                for act in self.acts
            ],
            "operators_acts": dict(self.operators),
        }


def beside(
    requests: Sequence[RecordedRequest],
    replayed: Sequence[RecordedRequest],
    result: SimResult,
    cluster: LiveCluster | None,
    zero: float,
) -> Beside:
    """Compares.

    Args:
        requests: all that were recorded.
        replayed: those that were simulated, in the order of the workload.
        result: of the simulation.
        cluster: as it was meanwhile; None: nobody knows.
        zero: wall-clock time of the simulation's zero, in seconds since 1970.
    """
    ends = [one.arrived + one.took_s for one in requests if one.took_s == one.took_s]
    span_s = max(max(ends, default=zero) - zero, requests[-1].arrived - zero, 1e-3)
    live_fleet = None if cluster is None else _live_fleet(cluster, zero, span_s)
    return Beside(
        requests=len(requests),
        left_out=len(requests) - len(replayed),
        span_s=span_s,
        live=_live_service(requests),
        simulated=_simulated_service(replayed, result, zero),
        live_fleet=live_fleet,
        fleet=_simulated_fleet(result, span_s),
        samples=() if cluster is None else _samples(cluster, result.timeline, zero, span_s),
        acts=_acts(cluster, result.actions, zero, span_s),
        operators={} if cluster is None else _operators(cluster, zero, span_s),
    )


def _live_service(requests: Sequence[RecordedRequest]) -> Service:
    whole = [one for one in requests if one.end == "ok" and not one.batch]
    return Service(
        interactive=_share([one.kept for one in requests if one.has_slo and not one.batch]),
        batch=_share([one.kept for one in requests if one.has_slo and one.batch]),
        ttft_ms=Percentiles.of(_array([one.ttft_ms for one in whole])),
        itl_ms=Percentiles.of(_array([one.itl_mean_ms for one in whole if one.output_tokens > 1])),
        preemptions=sum(one.preemptions for one in requests),
    )


def _simulated_service(replayed: Sequence[RecordedRequest], result: SimResult, zero: float) -> Service:
    outcomes = result.outcomes
    kept: dict[bool, list[bool]] = {False: [], True: []}
    ttfts, itls = [], []
    for index, one in enumerate(replayed):
        arrival_s = max(0.0, one.arrived - zero)
        first_s, finish_s = float(outcomes.first_token_s[index]), float(outcomes.finish_s[index])
        finished = finish_s == finish_s
        ttft_ms = 1e3 * (first_s - arrival_s)
        itl_ms = 1e3 * (finish_s - first_s) / (one.output_tokens - 1) if one.output_tokens > 1 else 0.0
        if one.has_slo:
            # A batch that came before the recording has its deadline from then on.
            took_s = finish_s - (one.arrived - zero)
            kept[one.batch].append(finished and one.would_keep(ttft_ms, itl_ms, took_s))
        if finished and not one.batch:
            ttfts.append(ttft_ms)
            if one.output_tokens > 1:
                itls.append(itl_ms)
    return Service(
        interactive=_share(kept[False]),
        batch=_share(kept[True]),
        ttft_ms=Percentiles.of(_array(ttfts)),
        itl_ms=Percentiles.of(_array(itls)),
        preemptions=result.preemptions,
    )


def _live_fleet(cluster: LiveCluster, zero: float, span_s: float) -> Fleet:
    held = cluster.gpu_seconds(zero, zero + span_s)
    within = [moment.gpus for moment in cluster.moments if zero <= moment.at <= zero + span_s]
    acts: Counter[str] = Counter()
    for _, kind, _, _, instances in _live_acts(cluster, zero, span_s):
        acts[kind] += instances
    return Fleet(
        dict(zip(PHASE_NAMES, held, strict=True)),
        max(within, default=cluster.at(zero).gpus),
        {kind: acts[kind] for kind in _ACTS},
    )


def _simulated_fleet(result: SimResult, span_s: float) -> Fleet:
    """By the state at each tick, which holds until the next one; the last one until the end of the span."""
    held = dict.fromkeys(PHASE_NAMES, 0.0)
    points = result.timeline
    times = [*(point.at_s for point in points), span_s]
    begun_s = 0.0
    for point, until_s in zip(points, times[1:], strict=True):
        for phase, name in zip(PHASES, PHASE_NAMES, strict=True):
            held[name] += point.held.get(phase, 0.0) * max(0.0, min(until_s, span_s) - begun_s)
        begun_s = min(until_s, span_s)
    acts = Counter(action.kind for action in result.actions if action.at_s <= span_s)
    return Fleet(held, result.gpus_peak, {kind: acts[kind] for kind in _ACTS})


def _samples(
    cluster: LiveCluster, timeline: Sequence[TimelinePoint], zero: float, span_s: float
) -> tuple[Sample, ...]:
    samples = []
    for number in range(SAMPLES + 1):
        at_s = span_s * number / SAMPLES
        moment = cluster.at(zero + at_s)
        earlier = [point for point in timeline if point.at_s <= at_s] or timeline[:1]
        ready, loading = (earlier[-1].ready, earlier[-1].loading) if earlier else (0, 0)
        samples.append(Sample(at_s, moment.ready, moment.loading, ready, loading))
    return tuple(samples)


def _acts(
    cluster: LiveCluster | None, actions: Sequence[ActionRecord], zero: float, span_s: float
) -> tuple[Act, ...]:
    acts = [Act(one.at_s, False, one.kind, one.model, one.reason) for one in actions if one.at_s <= span_s]
    if cluster is not None:
        acts += [
            Act(at_s, True, kind, model, reason)
            for at_s, kind, model, reason, _ in _live_acts(cluster, zero, span_s)
        ]
    return tuple(sorted(acts, key=lambda act: act.at_s))


def _operators(cluster: LiveCluster, zero: float, span_s: float) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for one in cluster.decisions:
        if one.action in _OPERATORS and 0 <= one.time.ToNanoseconds() / 1e9 - zero <= span_s:
            found[_OPERATORS[one.action]] += 1
    return dict(sorted(found.items()))


def _live_acts(cluster: LiveCluster, zero: float, span_s: float) -> list[tuple[float, str, str, str, int]]:
    """When, what, of which model, why, and how many instances: one decision may start several."""
    found = []
    for one in cluster.decisions:
        at_s = one.time.ToNanoseconds() / 1e9 - zero
        kind = _KIND.get(one.action, one.action)
        if kind in _ACTS and 0 <= at_s <= span_s:
            found.append((at_s, kind, one.model, one.reason, int(one.numbers.get("started", 1))))
    return found


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _share(kept: Sequence[bool]) -> float | None:
    return sum(kept) / len(kept) if kept else None


def _difference(live: float | None, simulated: float | None) -> float | None:
    return None if live is None or simulated is None else simulated - live


def _service(service: Service) -> dict[str, Any]:
    return {
        "interactive_attainment": service.interactive,
        "batch_deadlines_met": service.batch,
        "ttft_ms": {name: getattr(service.ttft_ms, name) for name in ("p50", "p90", "p99")},
        "itl_ms": {name: getattr(service.itl_ms, name) for name in ("p50", "p90", "p99")},
        "preemptions": service.preemptions,
    }


def _fleet(fleet: Fleet | None) -> dict[str, Any]:
    if fleet is None:
        return {"gpu_seconds": None}
    return {
        "gpu_seconds": {"total": fleet.total, **fleet.gpu_seconds},
        "gpus_peak": fleet.gpus_peak,
        "acts": dict(fleet.acts),
    }
