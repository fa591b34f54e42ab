"""`dynamo-like`: the SLA planner of NVIDIA Dynamo, for replicas that prefill and decode (its mode `agg`).

After Dynamo's planner documentation ("Planner Guide", "Planner Design") and sources
(components/src/dynamo/planner/core: throughput_scaling.py, load_scaling.py, perf_model/agg.py). It knows the
SLOs and has profiled the engine (`chiron.sim.baselines.engine_profile`), and scales in two ways:

- every 180 s, by throughput: forecast requests and lengths over what one engine can serve under both SLOs;
- every 5 s, by load: one replica more when every engine's estimated TTFT, or every engine's estimated ITL, is
  beyond its SLO; one fewer when with one engine less all estimates keep a margin. The forecast is the least.
  Nothing while a replica loads or drains.

Both together are what its guide recommends for bursts; `load_scaling` = 0 leaves the first alone. Profiled
times are corrected by the observed ITL over the expected one.

Reconstructed: forecasts are smoothed (`chiron.policy.forecast`) where Dynamo's default is ARIMA. Observed ITL
is running requests over tokens per second. Where an engine's slots are all taken, a request waits for one if
that takes longer than the prefill ahead of it, and fewer engines must have the slots for what runs: Dynamo's
estimates know KV cache and prefill queues alone. Nothing is removed before the first forecast. No report
tells how much of the prompts was cached, by which Dynamo would discount prefill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment
from chiron.policy.forecast import Forecaster, load_forecaster
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet
from chiron.policy.words import Phase
from chiron.sim.baselines.engine_estimates import EngineLoad, Estimates
from chiron.sim.baselines.engine_profile import EngineProfile
from chiron.sim.baselines.replicas import (
    check_not_negative,
    check_positive,
    most_replicas,
    replicas_of,
    toward,
    waiting_in_routers,
)
from chiron.sim.settings import SimModel


@dataclass(frozen=True, slots=True)
class DynamoSettings:
    """ValueError by field."""

    adjustment_s: float = 180.0
    """Between two decisions by throughput."""
    load_scaling: bool = True
    """Decide by load as well; the forecast is the lower bound then."""
    load_adjustment_s: float = 5.0
    """Between two decisions by load."""
    slo_share: float = 1.0
    """The planner is told so much of the SLOs, as an operator would who wants a margin."""
    sensitivity: float = 0.8
    """Share of an SLO that estimates must keep with one replica less."""
    holt_winters: bool = True
    """Forecast by smoothing; else the next interval is taken to be as the last."""
    season_s: float = 0.0
    """Length of a cycle that forecasts know, in whole intervals; 0: none."""
    correction: bool = True
    """Correct profiled times by observed ones."""
    batch_weight: float = 1.0
    """What a batch request that arrives or waits counts for, beside an interactive one."""

    def __post_init__(self) -> None:
        check_positive(self, "adjustment_s", "load_adjustment_s", "slo_share")
        check_not_negative(self, "season_s", "batch_weight")
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity: must be above 0 and at most 1, not {self.sensitivity:g}")
        if self.season_s and round(self.season_s / self.adjustment_s) < 2:
            raise ValueError(
                f"season_s: must be 0 or 2 intervals of {self.adjustment_s:g} s at least, "
                f"not {self.season_s:g}"
            )


class DynamoAutoscaler:
    """One planner for each model."""

    def __init__(self, settings: DynamoSettings, models: Sequence[SimModel]) -> None:
        """models: whose engines have been profiled; a snapshot with another one is a KeyError."""
        self._settings = settings
        self._profiles = {model.name: EngineProfile(model) for model in models}
        self._planners: dict[str, _Planner] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Decides on a model whenever one of its intervals has passed."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            planner = self._planners.get(model.name)
            if planner is None:
                planner = _Planner(self._settings, self._profiles[model.name], snapshot.now_s)
                self._planners[model.name] = planner
            found = planner.assess(model, snapshot)
            if found is not None:
                actions += found[0]
                assessments.append(found[1])
        return FleetDecision(tuple(actions), tuple(assessments))


@dataclass(slots=True)
class _Observed:
    """Sums over one interval."""

    arrived: float = 0.0
    finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    running_s: float = 0.0
    """Of requests on ready engines."""
    tokens: float = 0.0
    """That ready engines have put out."""
    kv_tokens_s: float = 0.0
    engines_s: float = 0.0

    def add(
        self, model: ModelFleet, ready: Sequence[FleetInstance], batch_weight: float, span_s: float
    ) -> None:
        """Count what came since the last snapshot."""
        traffic = model.traffic
        self.arrived += traffic.arrived_interactive + batch_weight * traffic.arrived_batch
        self.finished += traffic.finished_interactive + traffic.finished_batch
        self.prompt_tokens += traffic.finished_prompt_tokens
        self.output_tokens += traffic.finished_output_tokens
        for each in ready:
            self.running_s += span_s * (each.running_interactive + each.running_batch)
            self.tokens += span_s * each.tokens_per_s
            self.kv_tokens_s += span_s * each.kv_usage * each.kv_capacity_tokens
        self.engines_s += span_s * len(ready)


@dataclass(slots=True)
class _Load:
    """What is foretold of the next interval."""

    requests: Forecaster
    prompt: Forecaster
    output: Forecaster
    lengths: tuple[float, float] | None = field(default=None)
    """Mean prompt and output, in tokens; None: nothing has finished yet."""


class _Planner:
    """One model's planner."""

    def __init__(self, settings: DynamoSettings, profile: EngineProfile, now_s: float) -> None:
        self._settings = settings
        self._profile = profile
        name = "holt-winters" if settings.holt_winters else "constant"
        season = round(settings.season_s / settings.adjustment_s)
        requests, prompt, output = (load_forecaster(name, season) for _ in range(3))
        self._load = _Load(requests, prompt, output)
        self._observed = _Observed()
        self._seen_s = self._began_s = self._looked_s = now_s
        self._least = 1
        self._slower = 1.0
        self._planned = False

    def assess(
        self, model: ModelFleet, snapshot: FleetSnapshot
    ) -> tuple[tuple[Action, ...], ModelAssessment] | None:
        """What changes now; None: no interval has passed."""
        settings, now_s = self._settings, snapshot.now_s
        replicas = replicas_of(model)
        self._observed.add(model, replicas.ready, settings.batch_weight, now_s - self._seen_s)
        self._seen_s = now_s
        if self._load.lengths is None and self._observed.finished:
            self._load.lengths = self._mean_lengths()
        planned = now_s - self._began_s >= settings.adjustment_s
        if planned:
            self._plan(model, now_s - self._began_s)
            self._observed, self._began_s = _Observed(), now_s
        looks = settings.load_scaling and now_s - self._looked_s >= settings.load_adjustment_s
        least = max(1, model.min_instances)
        if not (planned or looks or replicas.count < least):
            return None
        wanted, reason = replicas.count, "nothing is estimated to change"
        numbers = {"replicas": float(replicas.count), "least": float(self._least), "slower": self._slower}
        if looks:
            self._looked_s = now_s
            wanted, reason = self._by_load(model, replicas.ready, numbers)
        elif planned and not settings.load_scaling:
            wanted = self._least
        if wanted < self._least:
            wanted, reason = self._least, f"the forecast asks for {self._least}"
        most = max(least, most_replicas(model, snapshot))
        wanted = max(least, min(most, wanted))
        numbers["wanted"] = float(wanted)
        return toward(model, wanted, reason, numbers), ModelAssessment(model.name, numbers, reason)

    def _mean_lengths(self) -> tuple[float, float]:
        seen = self._observed
        return seen.prompt_tokens / seen.finished, max(1.0, seen.output_tokens / seen.finished)

    def _plan(self, model: ModelFleet, span_s: float) -> None:
        """The replicas that the next interval's forecast asks for: the least from now on."""
        load = self._load
        load.requests.observe(self._observed.arrived / span_s)
        if self._observed.finished:
            for forecaster, mean in zip((load.prompt, load.output), self._mean_lengths(), strict=True):
                forecaster.observe(mean)
            if self._settings.correction:
                self._correct(*self._mean_lengths())
        rate, prompt, output = (each.ahead(1) for each in (load.requests, load.prompt, load.output))
        if rate is None or prompt is None or output is None:
            return
        load.lengths = prompt, max(1.0, output)
        capacity = self._profile.capacity(
            prompt,
            max(1.0, output),
            _batch_size(model),
            self._settings.slo_share * model.ttft_slo_s,
            self._settings.slo_share * model.itl_slo_s,
            self._slower,
        )
        self._least = max(1, math.ceil(rate / capacity.requests_per_s))
        self._planned = True

    def _correct(self, prompt: float, output: float) -> None:
        """Compare what was observed with what the profile lets expect of it."""
        seen, profile = self._observed, self._profile
        if not seen.tokens or not seen.running_s:
            # Tokens of requests that no report has seen running tell no time between tokens.
            return
        running, kv_tokens = seen.running_s / seen.engines_s, seen.kv_tokens_s / seen.engines_s
        itl_s = seen.running_s / seen.tokens
        admitted = running * prompt * profile.tokens_per_step / output
        expected_s = profile.step_s(running, admitted, kv_tokens) / profile.tokens_per_step
        self._slower = itl_s / expected_s

    def _by_load(
        self, model: ModelFleet, ready: Sequence[FleetInstance], numbers: dict[str, float]
    ) -> tuple[int, str]:
        """One more, one fewer, or as many."""
        count = replicas_of(model).count
        if count > len(ready) or any(each.phase is Phase.DRAINING for each in model.instances):
            return count, "a replica loads or drains"
        lengths = self._load.lengths
        if not ready or lengths is None:
            return count, "no request has finished yet"
        settings = self._settings
        outside = waiting_in_routers(model, settings.batch_weight) / len(ready)
        loads = [EngineLoad.of(each, outside, settings.batch_weight) for each in ready]
        estimates = Estimates(self._profile, self._slower, *lengths)
        ttft, itl = (min(map(of, loads)) for of in (estimates.ttft_s, estimates.itl_s))
        numbers |= {"ttft_s": ttft, "itl_s": itl}
        slos_s = settings.slo_share * model.ttft_slo_s, settings.slo_share * model.itl_slo_s
        if ttft > slos_s[0]:
            return count + 1, f"every engine's first token is estimated to take {ttft:.2f} s or more"
        if itl > slos_s[1]:
            return count + 1, f"every engine's tokens are estimated to be {1e3 * itl:.0f} ms apart or more"
        if self._planned and count > 1:
            left = [load.times(count / (count - 1)) for load in loads]
            if all(estimates.keeps(load, *slos_s, settings.sensitivity) for load in left):
                return count - 1, "one engine less would keep the SLOs"
        return count, "estimates are between the SLOs and what one engine less would keep"


def _batch_size(model: ModelFleet) -> int:
    sizes = [each.batch_size for each in model.instances if each.phase is Phase.READY]
    return min(sizes, default=model.initial_batch_size)
