"""Where a scenario's requests come from: traffic, backlogs and traces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chiron.engine import Profile
from chiron.policy.words import RequestClass
from chiron.sim.arrivals import arrival_times
from chiron.sim.demand import Demand
from chiron.sim.lengths import LENGTH_MODELS, LengthModel, Lognormal
from chiron.sim.rates import Constant, Diurnal, RateCurve, Steps, spikes
from chiron.sim.settings import LONGEST_S, not_negative
from chiron.sim.traces import (
    Trace,
    arrivals_of,
    compressed,
    days,
    first_requests,
    multiplied,
    prefix_hashes,
    read_trace,
)

MOST_REQUESTS = 100_000_000
"""That one source may bring: more do not fit into memory."""
MOST_PREFIXES = 10_000
"""Different beginnings of prompts: their hashes are held in memory."""
SHAPE_KEYS = {
    "diurnal": ("swing", "period_s", "peak_s"),
    "step": ("step_at_s", "step_rate_per_s"),
    "spike": ("spike_factor", "spike_at_s", "spike_length_s", "spike_every_s"),
}
"""The keys of traffic that mean something for one shape only."""


class InvalidSourceError(ValueError):
    """A source's figure is out of range; the text names its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthChoice:
    """Which lengths requests have. Raises InvalidSourceError naming the key."""

    lengths: Literal["sharegpt", "azure-conv", "azure-code", "lognormal"] = "sharegpt"
    prompt_mean: float | None = None
    """Of lengths = "lognormal", in tokens."""
    output_mean: float | None = None
    """Of lengths = "lognormal", in tokens."""
    sigma: float | None = None
    """Of lengths = "lognormal": standard deviation of the logarithm; none: 1."""
    shared_prefixes: int = 0
    """Different beginnings that prompts have, each as likely; the engines' prefix caches keep them. 0: no two
    prompts begin alike."""
    prefix_share: float = 0.5
    """Of shared_prefixes: share of each prompt's tokens that is such a beginning."""

    def __post_init__(self) -> None:
        for key in ("prompt_mean", "output_mean", "sigma"):
            if self.lengths != "lognormal" and getattr(self, key) is not None:
                raise InvalidSourceError(f"{key}: goes with lengths = 'lognormal' only")
            if self.lengths == "lognormal" and getattr(self, key) is None and key != "sigma":
                raise InvalidSourceError(f"{key}: lengths = 'lognormal' needs it")
        self.length_model()
        if not 0 <= self.shared_prefixes <= MOST_PREFIXES:
            raise InvalidSourceError(
                f"shared_prefixes: must be from 0 to {MOST_PREFIXES:,}, not {self.shared_prefixes}"
            )
        if not 0 <= self.prefix_share <= 1:
            raise InvalidSourceError(f"prefix_share: must be from 0 to 1, not {self.prefix_share:g}")

    def length_model(self) -> LengthModel:
        """The model that was chosen."""
        if self.lengths != "lognormal":
            return LENGTH_MODELS[self.lengths]
        sigma = 1.0 if self.sigma is None else self.sigma
        return Lognormal(self.prompt_mean or 0.0, self.output_mean or 0.0, sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic(LengthChoice):
    """Requests that arrive over time. Raises InvalidSourceError naming the key."""

    model: str
    request_class: Literal["interactive", "batch"] = "interactive"
    rate_per_s: float
    """Requests per second: constant, the mean of a day, or the base of the spikes."""
    cv: float = 1.0
    """Coefficient of variation of the gaps between arrivals; 1: Poisson."""
    shape: Literal["constant", "diurnal", "step", "spike"] = "constant"
    start_s: float = 0.0
    """Nothing arrives earlier."""
    swing: float = 0.5
    """Of a diurnal shape: share of the mean by which the rate rises and falls."""
    period_s: float = 86_400.0
    """Of a diurnal shape."""
    peak_s: float = 43_200.0
    """Of a diurnal shape: time of a peak after start_s."""
    step_at_s: float = 0.0
    """Of a step: when, after start_s."""
    step_rate_per_s: float = 0.0
    """Of a step: the rate from then on."""
    spike_factor: float = 3.0
    """Of spikes: height, times the base rate."""
    spike_at_s: float = 0.0
    """Of spikes: when the first begins, after start_s."""
    spike_length_s: float = 60.0
    spike_every_s: float = 0.0
    """Of spikes: from one's start to the next one's; 0: there is one."""
    deadline_in_s: float | None = None
    """From arrival to deadline; of batch requests only, which need it."""
    refuse_late: bool = False
    """Callers ask to be refused at once when their SLO or deadline cannot be met."""
    tenant: str = ""
    """Who pays: tenants share what comes free while their interactive requests wait."""

    def __post_init__(self) -> None:
        LengthChoice.__post_init__(self)
        not_negative(self, "rate_per_s", "cv", "start_s", "step_at_s", "step_rate_per_s")
        _check_deadline(self.request_class, self.deadline_in_s)
        self.curve(1.0)

    def curve(self, until_s: float) -> RateCurve:
        """The rate over the time since `start_s`."""
        if self.shape == "diurnal":
            return Diurnal(self.rate_per_s, self.swing, self.period_s, self.peak_s)
        if self.shape == "step":
            if self.step_at_s <= 0:
                raise InvalidSourceError("step_at_s: shape = 'step' needs a time > 0")
            return Steps(((0.0, self.rate_per_s), (self.step_at_s, self.step_rate_per_s)))
        if self.shape == "spike":
            return spikes(
                self.rate_per_s,
                factor=self.spike_factor,
                start_s=self.spike_at_s,
                length_s=self.spike_length_s,
                every_s=self.spike_every_s,
                until_s=until_s,
            )
        return Constant(self.rate_per_s)

    def demand(
        self, model: int, duration_s: float, arrivals: np.random.Generator, lengths: np.random.Generator
    ) -> Demand:
        """The requests that arrive before `duration_s`. Raises InvalidSourceError for too many."""
        span = max(0.0, duration_s - self.start_s)
        curve = self.curve(span)
        if curve.expected(span) > MOST_REQUESTS:
            raise InvalidSourceError(
                f"rate_per_s: {curve.expected(span):.3g} requests in {span:g} s, more than {MOST_REQUESTS:,}"
            )
        times = self.start_s + arrival_times(curve, arrivals, until_s=span, cv=self.cv)
        prompt, output = self.length_model().sample(lengths, len(times))
        kind = RequestClass[self.request_class.upper()]
        return Demand(model, kind, times, prompt, output, _deadline(self.deadline_in_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog(LengthChoice):
    """Batch requests that arrive at once. Raises InvalidSourceError naming the key."""

    model: str
    requests: int
    arrive_s: float = 0.0
    deadline_in_s: float = 3600.0
    """From arrival to the earliest deadline."""
    deadline_spread_s: float = 0.0
    """Deadlines are uniform over so much time after the earliest."""
    refuse_late: bool = False
    """Callers ask to be refused at once when their SLO or deadline cannot be met."""

    def __post_init__(self) -> None:
        LengthChoice.__post_init__(self)
        not_negative(self, "arrive_s", "deadline_spread_s", most=LONGEST_S)
        if not 1 <= self.requests <= MOST_REQUESTS:
            raise InvalidSourceError(
                f"requests: must be at least 1 and at most {MOST_REQUESTS:,}, not {self.requests}"
            )
        _check_deadline("batch", self.deadline_in_s)

    def demand(self, model: int, arrivals: np.random.Generator, lengths: np.random.Generator) -> Demand:
        """The requests."""
        prompt, output = self.length_model().sample(lengths, self.requests)
        deadlines = self.deadline_in_s + self.deadline_spread_s * arrivals.random(self.requests)
        times = np.full(self.requests, self.arrive_s)
        return Demand(model, RequestClass.BATCH, times, prompt, output, deadlines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Requests of a recorded trace. Raises InvalidSourceError naming the key."""

    model: str
    file: str
    """Relative to the scenario's folder."""
    format: Literal["azure", "burstgpt", "mooncake", "sharegpt"]
    request_class: Literal["interactive", "batch"] = "interactive"
    rate_per_s: float | None = None
    """Mean rate to scale to; none: as recorded. A format without times needs it: its arrivals are Poisson."""
    scaling: Literal["multiply", "compress"] = "multiply"
    """How: more or fewer requests over the same time, or the same ones in less or more time."""
    limit: int = 0
    """Use the first so many requests; 0: all."""
    strict: bool = False
    """A malformed row is an error; otherwise it is reported and left out."""
    deadline_in_s: float | None = None
    """From arrival to deadline; of batch requests only, which need it."""
    refuse_late: bool = False
    """Callers ask to be refused at once when their SLO or deadline cannot be met."""
    tenant: str = ""
    """Who pays: tenants share what comes free while their interactive requests wait."""

    def __post_init__(self) -> None:
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise InvalidSourceError(f"rate_per_s: must be a number > 0, not {self.rate_per_s:g}")
        if "\0" in self.file:
            raise InvalidSourceError(f"file: no file has a name with a NUL: {self.file!r}")
        if self.limit < 0:
            raise InvalidSourceError(f"limit: must not be negative, got {self.limit}")
        _check_deadline(self.request_class, self.deadline_in_s)
        if self.format == "sharegpt" and self.rate_per_s is None:
            raise InvalidSourceError("rate_per_s: format sharegpt records no times, so that it needs a rate")

    def read(self, folder: Path) -> Trace:
        """The trace, before scaling. Raises TraceError."""
        trace = read_trace(folder / self.file, self.format, strict=self.strict)
        return first_requests(trace, self.limit) if self.limit else trace

    def demand(self, model: int, profile: Profile, trace: Trace, arrivals: np.random.Generator) -> Demand:
        """The trace's requests at the rate that is asked for. Raises TraceError."""
        if trace.arrival_s is None:
            times = np.cumsum(arrivals.exponential(1 / (self.rate_per_s or math.nan), len(trace)))
        else:
            if self.rate_per_s is not None and self.scaling == "compress":
                trace = compressed(trace, self.rate_per_s)
            elif self.rate_per_s is not None:
                recorded_s = arrivals_of(trace)
                span_s = float(recorded_s[-1] - recorded_s[0]) if len(trace) else 0.0
                if self.rate_per_s * span_s > MOST_REQUESTS:
                    raise InvalidSourceError(
                        f"rate_per_s: {self.rate_per_s:g} over the {span_s:g} s of {self.file} are more than "
                        f"{MOST_REQUESTS:,}"
                    )
                trace = multiplied(trace, self.rate_per_s, arrivals)
                if not len(trace):
                    raise InvalidSourceError(
                        f"rate_per_s: at {self.rate_per_s:g} per second no request of {self.file} is left"
                    )
            times = arrivals_of(trace)
        if len(times) and times[-1] > LONGEST_S:
            raise InvalidSourceError(
                f"rate_per_s: at {self.rate_per_s:g} per second {self.file} takes {days(times[-1])}, at most "
                f"{LONGEST_S / 86_400:g}"
            )
        kind = RequestClass[self.request_class.upper()]
        return Demand(
            model,
            kind,
            times,
            trace.prompt_tokens,
            trace.output_tokens,
            _deadline(self.deadline_in_s),
            prefix_hashes(trace, profile.block_size),
        )


def _check_deadline(request_class: str, deadline_in_s: float | None) -> None:
    if request_class == "batch" and deadline_in_s is None:
        raise InvalidSourceError("deadline_in_s: batch requests need it")
    if request_class == "interactive" and deadline_in_s is not None:
        raise InvalidSourceError("deadline_in_s: interactive requests have SLOs instead")
    if deadline_in_s is not None and not 0 < deadline_in_s <= LONGEST_S:
        raise InvalidSourceError(
            f"deadline_in_s: must be a number > 0 and at most {LONGEST_S:.0f}, not {deadline_in_s:g}"
        )


def _deadline(deadline_in_s: float | None) -> float:
    return math.inf if deadline_in_s is None else deadline_in_s
