"""What the global autoscaler remembers of one model between ticks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from chiron.policy.fleet.arrivals import Arrivals
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.steady import SteadySlots
from chiron.policy.fleet.supply import Supply, supply_of
from chiron.policy.fleet.theta import DemandHistory
from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import ModelFleet
from chiron.policy.waiting import LengthModel, WaitingTimeEstimator
from chiron.policy.words import Phase, RequestClass

_ENOUGH_LENGTHS = 50.0


class ModelState:
    """Learned figures and the times of the last actions; bounded in size."""

    def __init__(self, settings: ChironSettings, now_s: float) -> None:
        self.curve = ThroughputCurve()
        self.steady = SteadySlots()
        self._step_share = settings.step_share
        self.history = DemandHistory(settings.theta_history_loads, settings.theta_warmup_loads)
        """Demand, in requests."""
        self.bursts = DemandHistory(settings.theta_history_loads, settings.theta_warmup_loads)
        """What arrived within a load time, in requests."""
        self.arrivals = Arrivals()
        self.waits = WaitingTimeEstimator(settings.wait_quantile)
        self.last_added_s = -float("inf")
        """When interactive capacity was last added."""
        self.last_removed_s = -float("inf")
        """When interactive capacity was last removed."""
        self.batch_waited_s = now_s
        """When a batch request last waited for an engine."""
        self.batch_began_s = now_s
        """When batch requests began to be seen, after a time without any."""
        self.batch_seen_s = now_s
        """When a batch request last waited or ran."""
        self.batch_finished = 0
        """Batch requests that have ended since `batch_began_s`."""
        self.asked_s = now_s
        """When an interactive request last arrived, waited or ran."""
        self.in_line_s = now_s
        """When every interactive request last had a slot."""
        self.arrived = 0
        """Interactive requests that have come within the last load time."""
        self._without_batch = False
        self._sent_away: tuple[str, ...] = ()
        self._removed_before_s = self.last_removed_s
        self._came: deque[tuple[float, int]] = deque()
        self._peaks: deque[tuple[float, int]] = deque()
        self._last_s = now_s

    @property
    def interactive_lengths(self) -> LengthModel:
        """Output lengths of interactive requests."""
        return self.waits.lengths[RequestClass.INTERACTIVE]

    @property
    def batch_lengths(self) -> LengthModel:
        """Output lengths of batch requests."""
        return self.waits.lengths[RequestClass.BATCH]

    @property
    def lengths_known(self) -> bool:
        """Whether enough interactive requests have ended to turn arrivals into work."""
        return self.interactive_lengths.weight >= _ENOUGH_LENGTHS

    def sent_away(self, instances: Sequence[str], now_s: float) -> None:
        """Interactive capacity is to go: whether it does is seen at the next tick."""
        self._sent_away = tuple(instances)
        self._removed_before_s, self.last_removed_s = self.last_removed_s, now_s

    def observe(self, model: ModelFleet, now_s: float) -> Supply:
        """Take a snapshot in; return what the model's instances add up to."""
        supply = supply_of(model, self.curve, self.steady, self._step_share)
        serving = {one.instance_id for one in model.instances if one.phase is Phase.READY}
        if self._sent_away and serving.issuperset(self._sent_away):
            # Whoever carries decisions out has kept them all: nothing went.
            self.last_removed_s = self._removed_before_s
        self._sent_away = ()
        traffic = model.traffic
        self.curve.learn(max(now_s - self._last_s, traffic.interval_s))
        self.arrivals.record(traffic.arrived_interactive, traffic.interval_s, model.load_time_s)
        self.history.record(now_s, supply.demand, model.load_time_s)
        self.bursts.record(now_s, self._arrived_lately(model, now_s), model.load_time_s)
        batch_tokens = traffic.finished_batch_output_tokens
        batch_sq = traffic.finished_batch_output_tokens_sq
        self.batch_lengths.observe(traffic.finished_batch, batch_tokens, batch_sq)
        self.interactive_lengths.observe(
            traffic.finished_interactive,
            traffic.finished_output_tokens - batch_tokens,
            traffic.finished_output_tokens_sq - batch_sq,
        )
        self.batch_lengths.made(_batch_tokens_per_s(model) * (now_s - self._last_s), supply.running_batch)
        if supply.demand or traffic.arrived_interactive:
            self.asked_s = now_s
        if supply.demand <= supply.slots:
            self.in_line_s = now_s
        if model.backlog:
            self.batch_waited_s = now_s
        if model.backlog or supply.running_batch:
            # An instance may load faster than two ticks follow each other.
            if self._without_batch and now_s - self.batch_seen_s > model.load_time_s:
                self.batch_began_s = now_s
                self.batch_finished = 0
            self.batch_seen_s = now_s
        self._without_batch = not (model.backlog or supply.running_batch)
        self.batch_finished += traffic.finished_batch
        while self._peaks and self._peaks[-1][1] <= supply.demand:
            self._peaks.pop()
        self._peaks.append((now_s, supply.demand))
        while self._peaks[0][0] < now_s - model.load_time_s:
            self._peaks.popleft()
        self._last_s = now_s
        return supply

    def _arrived_lately(self, model: ModelFleet, now_s: float) -> int:
        came = model.traffic.arrived_interactive
        if came:
            self._came.append((now_s, came))
            self.arrived += came
        # One tick more or less would be growth that is none.
        while self._came and self._came[0][0] <= now_s - model.load_time_s * (1 + 1e-6):
            self.arrived -= self._came.popleft()[1]
        return self.arrived

    @property
    def peak_demand(self) -> int:
        """The largest interactive demand within the last load time, in requests."""
        return self._peaks[0][1]


def _batch_tokens_per_s(model: ModelFleet) -> float:
    """Output tokens that batch requests get, by their share of those that run."""
    return sum(
        each.tokens_per_s * each.running_batch / (each.running_batch + each.running_interactive)
        for each in model.instances
        if each.running_batch
    )
