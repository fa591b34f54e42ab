"""Waiting times at one simulated router: estimated when requests are queued, compared with what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from chiron.policy.serving import QueueCapacity, ServingInstance, ServingRates
from chiron.policy.waiting import WaitEstimate, WaitingTimeEstimator
from chiron.policy.words import Phase, RequestClass, Role
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
    """Until the request was sent to the instance where it began."""
    capacity: QueueCapacity
    """On which the estimate rests."""


@dataclass(frozen=True, slots=True)
class FleetChange:
    """An instance that begins to serve, changes its role or serves no longer."""

    at_s: float
    instance_id: str
    role: Role | None
    """None: it serves no longer."""
    batch_size: int


class RouterWaits:
    """What one model's router measures, estimates and learns of waits: from load messages, the routing table,
    its own queue, and the lengths of requests that have ended. Of these, phases, throughput and the ended
    requests reach it without delay.
    """

    def __init__(self, model: SimModel, ledger: Ledger, quantile: float, every: int) -> None:
        self.estimator = WaitingTimeEstimator(quantile)
        self.rates = ServingRates()
        self.pairs: list[WaitPair] = []
        self.changes: list[FleetChange] = []
        """Of the fleet, in the order of time. Estimates know nothing of those to come."""
        self.start_s = 0.0
        """From being sent to an instance until the first token, in seconds; smoothed."""
        self.service_s = 0.0
        """From being sent to an instance until the last token, in seconds; smoothed."""
        self._ledger = ledger
        self._model = model
        self._every = every
        self._queued = 0
        self._open: dict[int, tuple[float, int, WaitEstimate, QueueCapacity]] = {}
        # Sent, and when: whether the request began there is seen later.
        self._taken: dict[int, float] = {}
        self._instances: dict[str, SimInstance] = {}
        # Instance → since when it loads, and whether it wakes.
        self._loading: dict[str, tuple[float, bool]] = {}
        self._loads = (model.presumed_load_s, 0)
        self._learned_s: dict[RequestClass, float] = {}
        self._arrived_before = 0
        self._sampled_s = 0.0
        # Interactive requests sent since the last report, less those that came back; whether any waited then.
        self._sent = 0
        self._stood = False

    def instance_changed(self, instance: SimInstance, now: float) -> None:
        """Take a change of phase or role from the routing table."""
        key = instance.instance_id
        if instance.dead or instance.phase in (Phase.DRAINING, Phase.SLEEPING):
            self._instances.pop(key, None)
            self._loading.pop(key, None)
            self.changes.append(FleetChange(now, key, None, 0))
            return
        self._instances[key] = instance
        if instance.phase is Phase.LOADING:
            # Another role does not begin the load anew.
            self._loading.setdefault(key, (now, instance.waking))
            return
        self.changes.append(FleetChange(now, key, instance.role, instance.seen.batch_size))
        since_s, waking = self._loading.pop(key, (now, True))
        if not waking:
            mean_s, loads = self._loads
            self._loads = ((mean_s * loads + now - since_s) / (loads + 1), loads + 1)

    def sample(self, arrived_interactive: int, queued_interactive: int, now: float) -> None:
        """Measure, once per report interval. queued_interactive: interactive requests that wait."""
        interval_s = now - self._sampled_s
        if interval_s <= 0:
            return
        arrived = arrived_interactive - self._arrived_before
        serving = [each for each in self.serving(now) if each.ready_in_s <= 0]
        tokens, under_way = [0.0, 0.0], [0, 0]
        for instance in self._instances.values():
            seen = instance.seen
            running = seen.running_interactive + seen.running_batch
            if running:
                # Whose tokens they are is taken to go by who runs.
                each = instance.tokens_per_s * interval_s / running
                for kind, count in enumerate((seen.running_interactive, seen.running_batch)):
                    tokens[kind] += each * count
                    under_way[kind] += count
        for kind, of_kind in enumerate((RequestClass.INTERACTIVE, RequestClass.BATCH)):
            self.estimator.lengths[of_kind].made(tokens[kind], under_way[kind])
        self.rates.observe(serving, arrived, interval_s)
        if self._stood and queued_interactive:
            expected = self._sent * self.estimator.lengths[RequestClass.INTERACTIVE].mean
            self.rates.admitted(serving, expected, interval_s)
        self._stood, self._sent = queued_interactive > 0, 0
        self._arrived_before, self._sampled_s = arrived_interactive, now
        self._confirm()

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
        """The wait of a request of this class behind these, all slots being taken."""
        capacity = self._capacity(request_class, now)
        first = self.estimator.until_a_slot(ahead, capacity.tokens_per_s, request_class)
        return self._estimate(request_class, ahead, capacity, first)

    def _capacity(self, request_class: RequestClass, now: float) -> QueueCapacity:
        tokens = self.estimator.lengths[RequestClass.INTERACTIVE].mean
        return self.rates.capacity(self.serving(now), request_class, tokens)

    def _estimate(
        self,
        request_class: RequestClass,
        ahead: Mapping[RequestClass, int],
        capacity: QueueCapacity,
        known_tokens: float = 0.0,
    ) -> WaitEstimate:
        return self.estimator.estimate(
            ahead,
            capacity.tokens_per_s,
            known_tokens,
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
        capacity = self._capacity(request_class, now)
        estimate = self._estimate(request_class, ahead, capacity)
        self._open[request_id] = (now, sum(ahead.values()), estimate, capacity)

    def returned(self, request_id: int) -> None:
        """Note that a request comes back from an instance: one that had not begun waits still."""
        self._sent -= not self._ledger.is_batch[request_id]
        if isnan(self._ledger.first_token_s[request_id]):
            self._taken.pop(request_id, None)

    def sent(self, request_id: int, now: float) -> None:
        """Note that a request is sent to an instance."""
        self._sent += not self._ledger.is_batch[request_id]
        if request_id in self._open:
            self._taken[request_id] = now

    def _confirm(self) -> None:
        """Take note of the waits that are over: their requests have begun."""
        first_token_s = self._ledger.first_token_s
        # The ledger knows a first token from the beginning of its step on, and none is NaN.
        begun = [each for each in self._taken if first_token_s[each] <= self._sampled_s]
        for request_id in begun:
            ended_s = self._taken.pop(request_id)
            at_s, ahead, estimate, capacity = self._open.pop(request_id)
            wait_s = ended_s - at_s
            self.pairs.append(WaitPair(at_s, ahead, estimate, wait_s, capacity))
            if wait_s > 0:
                # Together, the waits that end within one wait's time count as one.
                kind = estimate.request_class
                weight = min(1.0, max(1e-6, (ended_s - self._learned_s.get(kind, at_s)) / wait_s))
                self._learned_s[kind] = max(ended_s, self._learned_s.get(kind, ended_s))
                self.estimator.observe_wait(estimate, wait_s, weight)

    @property
    def unanswered(self) -> int:
        """Estimates whose requests wait still."""
        return len(self._open)

    def serving(self, now: float) -> list[ServingInstance]:
        """The instances that serve or load, as the router knows them."""
        found = []
        for key, instance in self._instances.items():
            seen = instance.seen
            ready_in_s = 0.0
            if key in self._loading:
                since_s, waking = self._loading[key]
                expected_s = self._model.wake_s if waking else self._loads[0]
                # One that is late is taken to be ready at any moment.
                ready_in_s = max(expected_s - (now - since_s), 0.1)
            running = seen.running_interactive + seen.running_batch
            found.append(
                ServingInstance(key, seen.role, seen.batch_size, running, instance.tokens_per_s, ready_in_s)
            )
        return found
