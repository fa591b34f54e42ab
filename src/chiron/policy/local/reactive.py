"""The paper's rule: grow the batch size while local backpressure is below 1, shrink it while above."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.decisions import Limits
from chiron.policy.local.base import check, clamp, is_evidence, untried_safe
from chiron.policy.snapshots import InstanceSample

LOOSER = 1.5
"""An ITL SLO so many times the one before is another regime."""


@dataclass(frozen=True, slots=True)
class ReactiveGains:
    """How strongly backpressure moves the batch size: reconstructed, the paper names no values."""

    smoothing: float = 0.5
    """Weight of the newest backpressure in its moving average, over 0 and at most 1."""
    throughput_smoothing: float = 0.3
    """Weight of the newest throughput in its moving average; 1: none."""
    gain: float = 0.5
    """Relative change of the batch size per unit of 1 - LBP."""
    most_change: float = 0.3
    """Largest relative change in one decision, up or down."""


class ReactiveAutoscaler:
    """Local backpressure against 1 (arXiv 2501.08090, local autoscaler).

    LBP = max(ITL / ITL SLO, previous throughput / current throughput): grow while below 1, shrink while
    above. That rule is the paper's. Reconstructed are the moving average, the proportional change and its
    bound, and which throughputs are compared: those of consecutive saturated intervals only. A shrink lowers
    throughput by itself, and to count that as backpressure would shrink without end, so the interval after
    one is not compared: after a shrink for throughput's sake its ratio is 1; after one for the ITL's sake,
    as in the very first interval, LBP is ITL / ITL SLO alone, or the batch size could not recover from having
    shrunk too far; nor is the first interval under a looser SLO compared, because a throughput that a tighter
    one held down is no reason to stay there. A batch size of which a share is less than a request grows by
    one. A batch size that demand does not fill is never raised. The step-token budget stays.
    """

    def __init__(self, gains: ReactiveGains | None = None) -> None:
        self._gains = gains or ReactiveGains()
        self._previous: tuple[float, int] | None = None
        self._lbp: float | None = None
        self._slo_s = 0.0

    def decide(self, sample: InstanceSample) -> Limits:
        """See `LocalAutoscaler.decide`."""
        check(sample)
        if sample.itl_slo_s <= 0 or sample.itl_mean_s <= 0:
            self._previous = None
            return _limits(sample, sample.batch_size, "no token to judge by: the batch size stays", {})
        if sample.itl_slo_s > LOOSER * self._slo_s > 0:
            self._previous = self._lbp = None
        self._slo_s = sample.itl_slo_s
        itl_share = sample.itl_mean_s / sample.itl_slo_s
        evidence = is_evidence(sample)
        lbp = max(itl_share, self._throughput_ratio(sample)) if evidence else itl_share
        numbers = {"itl_s": sample.itl_mean_s, "itl_slo_s": sample.itl_slo_s, "lbp": lbp}
        if not evidence:
            self._previous = None
            if itl_share <= 1:
                reason = "slots are spare: no evidence for a larger batch size"
                return _limits(sample, sample.batch_size, reason, numbers)
        gains = self._gains
        self._lbp = lbp if self._lbp is None else self._lbp + gains.smoothing * (lbp - self._lbp)
        change = max(-gains.most_change, min(gains.most_change, gains.gain * (1 - self._lbp)))
        target = clamp(sample.batch_size * (1 + change), sample.max_batch_size)
        if change >= gains.most_change / 2:
            target = min(sample.max_batch_size, max(target, sample.batch_size + 1))
        if not evidence:
            target = min(target, sample.batch_size)
        numbers["lbp_smoothed"] = self._lbp
        if target > sample.batch_size:
            reason = "LBP is below 1: grow"
        elif target < sample.batch_size:
            reason = "LBP is above 1: shrink"
            if itl_share > 1:
                self._previous = None
        else:
            reason = "LBP is near 1, or the batch size is at its bound: it stays"
        return _limits(sample, target, reason, numbers)

    def _throughput_ratio(self, sample: InstanceSample) -> float:
        """Previous over current throughput; 0 without a predecessor."""
        tokens_per_s = sample.output_tokens / sample.interval_s
        if self._previous is None:
            self._previous = (tokens_per_s, sample.batch_size)
            return 0.0
        previous_tokens_per_s, previous_batch_size = self._previous
        if sample.batch_size < previous_batch_size:
            self._previous = (tokens_per_s, sample.batch_size)
            return 1.0
        tokens_per_s = previous_tokens_per_s + self._gains.throughput_smoothing * (
            tokens_per_s - previous_tokens_per_s
        )
        self._previous = (tokens_per_s, sample.batch_size)
        return previous_tokens_per_s / tokens_per_s


def _limits(sample: InstanceSample, batch_size: int, reason: str, numbers: dict[str, float]) -> Limits:
    return Limits(batch_size, sample.step_token_budget, untried_safe(sample), reason, numbers)
