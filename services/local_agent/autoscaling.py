"""One worker's local autoscaler: from its statistics to the limits that are wanted, and what is told of it.

The policies are those that the simulator runs (`chiron.policy.local`), and like there one object decides for
one incarnation. What is in force reaches it by the samples alone, so that an agent that has just started, a
command that came late and an operator's word need nothing of their own.
"""

from __future__ import annotations

import logging
from itertools import islice

from chiron.internal.v1 import worker_pb2
from chiron.policy.checked import CheckedLocal
from chiron.policy.custom import PolicyError, one_line
from chiron.policy.decisions import Limits
from chiron.policy.local.base import SampleError, check
from chiron.policy.local.registry import UnknownLocalAutoscalerError, load_local
from chiron.policy.snapshots import InstanceSample
from chiron.v1 import cluster_pb2
from services.local_agent.desired import Want
from services.local_agent.limits import AS_IT_IS, LimitPair, OwnLimit
from services.local_agent.samples import Gatherer

OFF = "off"
"""Nobody decides: the limits stay as they are."""
_MOST_NUMBERS = 32
"""Figures of a decision that are reported, at most: a policy of one's own may give any number of them."""
_LOG = logging.getLogger(__name__)


def check_name(name: str) -> None:
    """Raises ValueError unless a local autoscaler of this name can be made, or it is `off`."""
    if name != OFF:
        load_local(name)


class Autoscaling:
    """Decides for one incarnation of an instance."""

    def __init__(self, instance_id: str, interval_s: float) -> None:
        """Wants nothing before `decided_by` and a sample. `interval_s`: the control interval."""
        self._instance_id = instance_id
        self._gatherer = Gatherer(interval_s)
        self._name = ""
        self._policy: CheckedLocal | None = None
        self._limits: Limits | None = None
        self._own = OwnLimit(), OwnLimit()
        self._wanted = AS_IT_IS
        self._sample: InstanceSample | None = None
        self._ceilings = (0, 0)
        self._error = ""
        self._flaw = ""
        """Why there is no policy, when there should be."""

    def decided_by(self, name: str) -> None:
        """From now on this autoscaler decides, or nobody (`off`); the same one again changes nothing."""
        if name == self._name:
            return
        self._name, self._policy, self._limits, self._flaw = name, None, None, ""
        self._wanted = AS_IT_IS
        if name != OFF:
            try:
                self._policy = CheckedLocal(load_local(name), self._instance_id)
            except (UnknownLocalAutoscalerError, PolicyError) as error:
                self._flaw = one_line(error, str)
        self._held_by(self._flaw)

    def hear(self, statistics: worker_pb2.WatchStatisticsResponse, by_hand: LimitPair = AS_IT_IS) -> None:
        """Takes up what the worker says; once a control interval is over, decides anew.

        by_hand: what an operator has set.
        """
        self._ceilings = (statistics.max_batch_size, statistics.max_step_token_budget)
        sample = self._gatherer.add(statistics)
        if sample is None:
            return
        self._sample = sample
        if self._policy is None:
            return
        try:
            check(sample)
            self._limits = self._policy.decide(sample)
        except Exception as error:  # Whatever it is, the worker is watched on.
            self._limits, self._wanted = None, AS_IT_IS
            known = isinstance(error, PolicyError | SampleError)
            self._held_by(one_line(error, str if known else repr))
        else:
            self._wanted = self._wants(self._limits, sample, by_hand)
            self._held_by("")

    @property
    def wanted(self) -> LimitPair:
        """What the last sample led to; zeros: the limits in force stay."""
        return self._wanted

    def _wants(self, limits: Limits, sample: InstanceSample, by_hand: LimitPair) -> LimitPair:
        size, budget = self._own
        safe = limits.safe_batch_size
        return LimitPair(
            size.wanted(by_hand.batch_size, sample.batch_size, limits.batch_size, safe),
            budget.wanted(by_hand.step_token_budget, sample.step_token_budget, limits.step_token_budget),
        )

    def fill(self, status: cluster_pb2.InstanceStatus, want: Want) -> None:
        """Writes into a status what is known of the worker's limits; `want` says what an operator has set."""
        local, limits, sample = status.local, self._limits, self._sample
        local.autoscaler, local.error = self._name, self._error
        local.changes = self._gatherer.changes
        local.set_batch_size, local.set_step_token_budget = want.batch_size, want.step_token_budget
        local.max_batch_size, local.max_step_token_budget = self._ceilings
        if sample is not None:
            local.itl_slo_ms = 1e3 * sample.itl_slo_s
        if limits is None or sample is None:
            return
        local.wanted_batch_size = self._wanted.batch_size
        local.wanted_step_token_budget = self._wanted.step_token_budget
        local.backpressure = _backpressure(limits, sample)
        local.reason = one_line(limits.reason, str)
        for name, number in islice(limits.numbers.items(), _MOST_NUMBERS):
            local.numbers[name] = number
        if status.HasField("load"):
            status.load.safe_batch_size = limits.safe_batch_size

    def _held_by(self, error: str) -> None:
        """Logs once why the limits stay as they are, and once that it is over."""
        if error and error != self._error:
            _LOG.error("%s: the limits stay as they are: %s", self._instance_id, error)
        elif self._error and not error:
            _LOG.info("%s: the local autoscaler %s decides again", self._instance_id, self._name)
        self._error = error


def _backpressure(limits: Limits, sample: InstanceSample) -> float:
    """The policy's own, where it names one; else ITL over the ITL SLO."""
    if "lbp" in limits.numbers:
        return limits.numbers["lbp"]
    return sample.itl_mean_s / sample.itl_slo_s if sample.itl_slo_s > 0 else 0.0
