"""How long requests of one model wait in this router: measured, estimated and learned. Pure.

The live counterpart of the simulator's router waits, on the same estimator and rates: throughput and lengths
come with the load messages of the workers, and so do instances that load; arrivals and ends of waits are the
router's own. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import worker_pb2
from chiron.policy.serving import QueueCapacity, ServingInstance, ServingRates
from chiron.policy.waiting import WaitEstimate, WaitingTimeEstimator
from chiron.policy.words import RequestClass
from chiron.v1 import cluster_pb2, types_pb2
from services.router.instance import TrackedInstance
from services.router.request import PendingRequest

SAMPLE_S = 1.0
"""How often is measured."""
_ESTIMATE_S = 0.1
"""How often, at most, the estimate of a request that is let in is kept to learn from."""
_CAPACITY_S = 0.05
"""How long what serves a queue counts before it is looked up anew."""
_PRESUMED_LOAD_S = 30.0
_PRESUMED_WAKE_S = 5.0
_PRESUMED_SLOTS = 256
"""Of an instance that loads while none has told its batch size: as many as of a spec that names none."""
_LEAST_LEFT_S = 0.1
_SMOOTHING = 0.02

Ahead = Mapping[RequestClass, int]


@dataclass(frozen=True, slots=True)
class Wait:
    """The estimated wait of one request, and what it rests on."""

    estimate: WaitEstimate
    ahead: int
    """Requests that go before it."""
    tokens_per_s: float
    """What serves the queue now, in output tokens per second."""


@dataclass(frozen=True, slots=True)
class EndedWait:
    """A wait that is over, and what was expected of it."""

    estimate: WaitEstimate
    ahead: int
    actual_s: float


@dataclass(slots=True)
class _Done:
    """What an instance had done at its last word of it, and how fast it was until then."""

    incarnation: int
    clock_ms: float
    told: worker_pb2.WorkDone
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Coming:
    """An instance on its way: it loads, or wakes from its sleep."""

    since: float
    wakes: bool


@dataclass(slots=True)
class _Mean:
    """A smoothed mean that takes its first observation as it is."""

    value: float = 0.0
    _known: bool = field(default=False)

    def observe(self, total: float, count: int) -> None:
        if count > 0:
            share = 1 - (1 - _SMOOTHING) ** count if self._known else 1.0
            self.value += share * (total / count - self.value)
            self._known = True


class ModelWaits:
    """One model's. Bounded by its instances and by the estimates that are kept."""

    def __init__(self, quantile: float = 0.95) -> None:
        """quantile: of the estimates, 0.5 to below 1."""
        self.estimator = WaitingTimeEstimator(quantile)
        self.rates = ServingRates()
        self.arrived = 0
        """Interactive requests that came for the first time."""
        self.sent = 0
        """Interactive requests given an instance since the last sample, less those that came back."""
        self.ended: list[EndedWait] | None = None
        """Where a list, the waits that are over are put into it: for whoever measures the estimates."""
        self._start, self._service = _Mean(), _Mean()
        self._done: dict[str, _Done] = {}
        self._coming: dict[str, _Coming] = {}
        self._load, self._wake = _Mean(_PRESUMED_LOAD_S), _Mean(_PRESUMED_WAKE_S)
        self._batch_size = 0
        self._open: dict[PendingRequest, tuple[float, Wait]] = {}
        self._taken: dict[PendingRequest, float] = {}
        self._learned: dict[RequestClass, float] = {}
        self._capacity: dict[RequestClass, tuple[float, QueueCapacity]] = {}
        self._kept_at = float("-inf")
        self._arrived_before = 0
        self._sampled_at: float | None = None
        self._stood = False

    # What is measured.

    def heard(self, instance: TrackedInstance, load: worker_pb2.WatchLoadResponse, now: float) -> None:
        """An instance has told its load."""
        key = instance.instance_id
        if load.state == types_pb2.INSTANCE_STATE_SLEEPING and not instance.leaving:
            # Sleepers that are to sleep on are in no table.
            self._coming.setdefault(key, _Coming(now, wakes=True))
        elif load.state == types_pb2.INSTANCE_STATE_LOADING:
            self._coming.setdefault(key, _Coming(now, wakes=False))
        elif (coming := self._coming.pop(key, None)) and load.state == types_pb2.INSTANCE_STATE_READY:
            self._taking(coming).observe(now - coming.since, 1)
        self._batch_size = load.batch_size or self._batch_size
        if not load.HasField("done"):
            return
        known = self._done.get(key)
        told = _Done(load.incarnation, load.clock_ms, load.done)
        self._done[key] = told
        if known is None or known.incarnation != load.incarnation:
            return
        passed_s = (told.clock_ms - known.clock_ms) / 1e3
        made = told.told.output_tokens - known.told.output_tokens
        told.tokens_per_s = made / passed_s if passed_s > 0 else known.tokens_per_s
        before, after = known.told, told.told
        self._learn(RequestClass.INTERACTIVE, before.finished_interactive, after.finished_interactive)
        self._learn(RequestClass.BATCH, before.finished_batch, after.finished_batch)

    def _learn(
        self, kind: RequestClass, before: cluster_pb2.FinishedRequests, after: cluster_pb2.FinishedRequests
    ) -> None:
        count = after.requests - before.requests
        if count <= 0:
            return
        tokens = float(after.output_tokens - before.output_tokens)
        self.estimator.lengths[kind].observe(count, tokens, after.output_tokens_sq - before.output_tokens_sq)
        self._start.observe((after.start_ms - before.start_ms) / 1e3, count)
        self._service.observe((after.service_ms - before.service_ms) / 1e3, count)

    def sample(self, instances: Mapping[str, TrackedInstance], queued_interactive: int, now: float) -> None:
        """Measures, when it is time to; `queued_interactive` interactive requests wait."""
        if self._sampled_at is None:
            self._sampled_at = now
        interval_s = now - self._sampled_at
        if interval_s < SAMPLE_S:
            return
        for gone in self._done.keys() - instances.keys():
            del self._done[gone]
        for gone in self._coming.keys() - instances.keys():
            del self._coming[gone]
        serving = [each for each in self._serving(instances.values(), now) if each.ready_in_s <= 0]
        self._count_made(instances.values(), interval_s)
        self.rates.observe(serving, self.arrived - self._arrived_before, interval_s)
        if self._stood and queued_interactive:
            expected = self.sent * self.estimator.lengths[RequestClass.INTERACTIVE].mean
            self.rates.admitted(serving, expected, interval_s)
        self._stood, self.sent = queued_interactive > 0, 0
        self._arrived_before, self._sampled_at = self.arrived, now
        self._confirm(now - SAMPLE_S)

    def _count_made(self, instances: Iterable[TrackedInstance], interval_s: float) -> None:
        """Whose tokens they are is taken to go by who runs."""
        tokens, under_way = [0.0, 0.0], [0, 0]
        for one in instances:
            done, load = self._done.get(one.instance_id), one.load
            if done is None or load is None:
                continue
            counts = (load.running.interactive, load.running.batch)
            running = sum(counts)
            for index, count in enumerate(counts):
                tokens[index] += done.tokens_per_s * interval_s * count / running if running else 0.0
                under_way[index] += count
        for index, kind in enumerate((RequestClass.INTERACTIVE, RequestClass.BATCH)):
            self.estimator.lengths[kind].made(tokens[index], under_way[index])

    def _serving(self, instances: Iterable[TrackedInstance], now: float) -> list[ServingInstance]:
        found = []
        for one in instances:
            load = one.load
            if load is None or one.leaving:
                continue
            done = self._done.get(one.instance_id)
            if one.serving and one.health.trusted:
                found.append(
                    ServingInstance(
                        one.instance_id,
                        one.role,
                        max(1, load.batch_size),
                        load.running.interactive + load.running.batch,
                        done.tokens_per_s if done is not None else 0.0,
                    )
                )
            elif coming := self._coming.get(one.instance_id):
                # One that is late is taken to be ready at any moment.
                left_s = self._taking(coming).value - (now - coming.since)
                size = load.batch_size or self._batch_size or _PRESUMED_SLOTS
                found.append(
                    ServingInstance(one.instance_id, one.role, size, 0, 0.0, max(left_s, _LEAST_LEFT_S))
                )
        return found

    def _taking(self, coming: _Coming) -> _Mean:
        """How long it takes to come."""
        return self._wake if coming.wakes else self._load

    # What is estimated.

    def wait(
        self, kind: RequestClass, ahead: Ahead, instances: Mapping[str, TrackedInstance], now: float
    ) -> Wait:
        """The wait of a request of this class behind these; it finds no place now."""
        known = self._capacity.get(kind)
        if known is None or not 0 <= now - known[0] < _CAPACITY_S:
            tokens = self.estimator.lengths[RequestClass.INTERACTIVE].mean
            known = now, self.rates.capacity(self._serving(instances.values(), now), kind, tokens)
            self._capacity[kind] = known
        capacity = known[1]
        estimate = self.estimator.estimate(
            ahead,
            capacity.tokens_per_s,
            self.estimator.until_a_slot(ahead, capacity.tokens_per_s, kind),
            later=capacity.later,
            noise=capacity.noise,
            drift=capacity.drift,
            request_class=kind,
        )
        return Wait(estimate, sum(ahead.values()), max(0.0, capacity.tokens_per_s))

    def budget_s(self, request: PendingRequest, now: float) -> float:
        """Time that a request may wait and still keep its SLO, in seconds; inf: it has none."""
        takes_s = self._service.value if request.request_class is RequestClass.BATCH else self._start.value
        return request.due - now - takes_s

    # What became of it.

    def wants(self, now: float) -> bool:
        """Whether the estimate of a request that is let in now is to be kept."""
        return now - self._kept_at >= _ESTIMATE_S

    def queued(self, request: PendingRequest, wait: Wait, now: float) -> None:
        """A request begins to wait, with this estimate."""
        self._kept_at = now
        self._open[request] = now, wait

    def placed(self, request: PendingRequest, now: float) -> None:
        """A request was given an instance."""
        self.sent += request.request_class is RequestClass.INTERACTIVE
        if self._open and request in self._open:
            self._taken[request] = now

    def returned(self, request: PendingRequest) -> None:
        """A request comes back from an instance: it waits still."""
        self.sent -= request.request_class is RequestClass.INTERACTIVE
        self._taken.pop(request, None)

    def left(self, request: PendingRequest) -> None:
        """A request waits no longer and got nothing."""
        self._open.pop(request, None)
        self._taken.pop(request, None)

    def _confirm(self, before: float) -> None:
        """Learns from waits that had ended by then and whose requests have not come back."""
        for request in [each for each, at in self._taken.items() if at <= before]:
            ended = self._taken.pop(request)
            began, wait = self._open.pop(request)
            waited_s, kind = ended - began, request.request_class
            if self.ended is not None:
                self.ended.append(EndedWait(wait.estimate, wait.ahead, waited_s))
            if waited_s > 0:
                # Together, the waits that end within one wait's time count as one.
                weight = min(1.0, max(1e-6, (ended - self._learned.get(kind, began)) / waited_s))
                self._learned[kind] = max(ended, self._learned.get(kind, ended))
                self.estimator.observe_wait(wait.estimate, waited_s, weight)
