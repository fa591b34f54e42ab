"""Waiting times at one simulated router: estimated when requests are queued, compared with what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chiron.policy.serving import ServingInstance, ServingRates
from chiron.policy.waiting import WaitEstimate, WaitingTimeEstimator
from chiron.policy.words import Phase, RequestClass
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.settings import SimModel

_SMOOTHING = 0.02


@dataclass(frozen=True, slots=True)
class WaitPair:
    """One estimate and what came of it."""

    at_s: float
    """When the request was queued and the estimate made."""
    ahead: int
    """Requests that were to be served before."""
    estimate: WaitEstimate
    actual_s: float
    """Until the request was sent to an instance."""


class RouterWaits:
    """What one model's router measures, estimates and learns of waits. It sees what a real router sees:
    load messages, the routing table, its own queue, and the lengths of requests that have ended.
    """

    def __init__(self, model: SimModel, ledger: Ledger, quantile: float, every: int) -> None:
        self.estimator = WaitingTimeEstimator(quantile)
        self.rates = ServingRates()
        self.pairs: list[WaitPair] = []
        self.start_s = 0.0
        """From being sent to an instance until the first token, in seconds; smoothed."""
        self.service_s = 0.0
        """From being sent to an instance until the last token, in seconds; smoothed."""
        self._ledger = ledger
        self._model = model
        self._every = every
        self._queued = 0
        self._open: dict[int, tuple[float, int, WaitEstimate]] = {}
        self._instances: dict[str, SimInstance] = {}
        self._loading_since: dict[str, float] = {}
        self._loads = (model.profile.load_s if model.load_time_s is None else model.load_time_s, 0)
        self._learned_s: dict[RequestClass, float] = {}
        self._arrived_before = 0
        self._sampled_s = 0.0

    def instance_changed(self, instance: SimInstance, now: float) -> None:
        """Take a change of phase or role from the routing table."""
        key = instance.instance_id
        since = self._loading_since.pop(key, None)
        if instance.dead or instance.phase in (Phase.DRAINING, Phase.SLEEPING):
            self._instances.pop(key, None)
            return
        self._instances[key] = instance
        if instance.phase is Phase.LOADING:
            self._loading_since[key] = now
        elif since is not None and not instance.waking:
            mean_s, loads = self._loads
            self._loads = ((mean_s * loads + now - since) / (loads + 1), loads + 1)

    def sample(self, arrived_interactive: int, now: float) -> None:
        """Measure, once per report interval."""
        interval_s = now - self._sampled_s
        if interval_s <= 0:
            return
        arrived = arrived_interactive - self._arrived_before
        serving = [each for each in self._serving(now) if each.ready_in_s <= 0]
        for instance in self._instances.values():
            seen = instance.seen
            running = seen.running_interactive + seen.running_batch
            if running:
                # Whose tokens they are is taken to go by who runs.
                each = instance.tokens_per_s * interval_s / running
                lengths = self.estimator.lengths
                lengths[RequestClass.INTERACTIVE].made(each * seen.running_interactive)
                lengths[RequestClass.BATCH].made(each * seen.running_batch)
        self.rates.observe(serving, arrived, interval_s)
        self._arrived_before, self._sampled_s = arrived_interactive, now

    def finished(self, requests: list[int]) -> None:
        """Learn from requests that have ended: their lengths, and their time in the engine."""
        ledger = self._ledger
        for each in requests:
            submitted_s = ledger.submitted_s[each]
            # One that came back to a router had its first token elsewhere.
            if ledger.first_token_s[each] >= submitted_s:
                self.start_s += (ledger.first_token_s[each] - submitted_s - self.start_s) * _SMOOTHING
            self.service_s += (ledger.finish_s[each] - submitted_s - self.service_s) * _SMOOTHING
        for kind in RequestClass:
            batch = kind is RequestClass.BATCH
            lengths = [ledger.output_tokens[each] for each in requests if ledger.is_batch[each] == batch]
            squares = float(sum(length * length for length in lengths))
            self.estimator.lengths[kind].observe(len(lengths), float(sum(lengths)), squares)

    def estimate(
        self, request_class: RequestClass, ahead: Mapping[RequestClass, int], now: float
    ) -> WaitEstimate:
        """The wait of a request of this class behind these."""
        tokens = self.estimator.lengths[RequestClass.INTERACTIVE].mean
        capacity = self.rates.capacity(self._serving(now), request_class, tokens)
        return self.estimator.at_rate(
            ahead,
            capacity.tokens_per_s,
            later=capacity.later,
            noise=capacity.noise,
            drift=capacity.drift,
            request_class=request_class,
        )

    def queued(
        self, request_id: int, request_class: RequestClass, ahead: Mapping[RequestClass, int], now: float
    ) -> None:
        """Note that a new request waits behind these; each `every`-th gets an estimate."""
        self._queued += 1
        if not self._every or self._queued % self._every:
            return
        estimate = self.estimate(request_class, ahead, now)
        self._open[request_id] = (now, sum(ahead.values()), estimate)

    def sent(self, request_id: int, now: float) -> None:
        """Note that a request leaves the queue."""
        waited = self._open.pop(request_id, None)
        if waited is None:
            return
        at_s, ahead, estimate = waited
        wait_s = now - at_s
        self.pairs.append(WaitPair(at_s, ahead, estimate, wait_s))
        if wait_s > 0:
            # Together, the waits that end within one wait's time count as one.
            kind = estimate.request_class
            weight = min(1.0, max(1e-6, (now - self._learned_s.get(kind, -wait_s)) / wait_s))
            self._learned_s[kind] = now
            self.estimator.observe_wait(estimate, wait_s, weight)

    @property
    def unanswered(self) -> int:
        """Estimates whose requests wait still."""
        return len(self._open)

    def _serving(self, now: float) -> list[ServingInstance]:
        found = []
        for key, instance in self._instances.items():
            seen = instance.seen
            ready_in_s = 0.0
            since = self._loading_since.get(key)
            if since is not None:
                expected_s = self._loads[0]
                if instance.waking:
                    wake_s = self._model.wake_time_s
                    expected_s = self._model.profile.wake_s[0] if wake_s is None else wake_s
                # One that is late is taken to be ready at any moment.
                ready_in_s = max(expected_s - (now - since), 0.1)
            running = seen.running_interactive + seen.running_batch
            found.append(
                ServingInstance(key, seen.role, seen.batch_size, running, instance.tokens_per_s, ready_in_s)
            )
        return found
