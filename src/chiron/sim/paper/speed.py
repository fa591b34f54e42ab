"""How long a run will take: from the runs of the cache, or from a short one made for the purpose."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from chiron.sim.compare import SEARCHED
from chiron.sim.paper.cache import Entry
from chiron.sim.paper.case import Case, simulated
from chiron.sim.paper.workloads import model, on_a100s
from chiron.sim.policies import POLICIES, PolicyChoice
from chiron.sim.runs import run
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Replay, Traffic
from chiron.sim.traces import arrivals_of

_SEARCH_RUNS = 4.0
"""Whole runs that the search for the smallest fixed fleet costs, about."""
_CALIBRATION_S = 120.0
_CALIBRATION_RATE = 60.0


def expected_requests(scenario: Scenario) -> float:
    """Requests that the scenario will bring, without drawing them. Raises OSError, TraceError for a trace."""
    traffic = sum(
        source.curve(span).expected(span)
        for source in scenario.traffic
        if (span := max(0.0, scenario.duration_s - source.start_s))
    )
    backlog = sum(source.requests for source in scenario.backlogs)
    return traffic + backlog + sum(_replayed(source, scenario.file.parent) for source in scenario.replays)


@cache
def _replayed(source: Replay, folder: Path) -> float:
    trace = source.read(folder)
    if source.rate_per_s is None or source.scaling == "compress" or trace.arrival_s is None:
        return float(len(trace))
    recorded_s = arrivals_of(trace)
    return source.rate_per_s * float(recorded_s[-1] - recorded_s[0]) if len(trace) else 0.0


def kind_of(case: Case) -> str:
    """What runs of a like speed have in common: the policy, or the measure where it is one of its own."""
    return case.policy.name if case.measure is simulated else case.measure.__name__


@cache
def calibrated() -> float:
    """Simulated requests per CPU-second on this machine, by one run of a few thousand: half a second."""
    scenario = on_a100s(
        "calibration",
        [model("8b", 4)],
        traffic=[Traffic(model="8b", rate_per_s=_CALIBRATION_RATE)],
        duration_s=_CALIBRATION_S,
        warmup_s=0.0,
    )
    began = time.process_time()
    done = run(scenario, PolicyChoice("chiron"))
    return done.result.requests / (time.process_time() - began)


class Speed:
    """Requests per CPU-second: of the experiment under the policy, else of the policy, else of them all."""

    def __init__(self, history: Iterable[Entry]) -> None:
        """Learns from finished runs; calibrates when there is none."""
        self._sums: dict[tuple[str, ...], tuple[float, float]] = {}
        for entry in history:
            places: list[tuple[str, ...]] = [(entry.experiment, entry.policy), ("", entry.policy)]
            # A search is many runs, a measure of its own anything: they tell nothing of others.
            for place in (
                [*places, ()] if entry.policy in POLICIES and entry.policy not in SEARCHED else places
            ):
                requests, cpu_s = self._sums.get(place, (0.0, 0.0))
                self._sums[place] = requests + entry.requests, cpu_s + entry.cpu_s
        self.calibrated_per_s = None if self._known(()) else calibrated()
        """What a short run showed; None: the cache knows better."""

    def _known(self, place: tuple[str, ...]) -> float | None:
        requests, cpu_s = self._sums.get(place, (0.0, 0.0))
        return requests / cpu_s if requests and cpu_s else None

    @property
    def requests_per_s(self) -> float:
        """Of one process, over all runs that are known."""
        return self._known(()) or self.calibrated_per_s or 1.0

    def cpu_s(self, case: Case, requests: float) -> float:
        """Processor time that the case will take."""
        name = kind_of(case)
        known = self._known((case.experiment, name)) or self._known(("", name))
        if known is not None:
            return requests / known
        return requests / self.requests_per_s * (_SEARCH_RUNS if name in SEARCHED else 1.0)
