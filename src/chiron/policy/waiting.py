"""How long a request will wait: work ahead × output-length distribution ÷ measured token throughput.

After QLM (arXiv 2407.00047): the output tokens of n requests ahead are approximately normal with n times the
mean and n times the variance of one request's length, so that a chosen quantile of the wait follows. Ours
(reconstructed): the uncertainty of the learned mean, the discount of old data, and a scale learned from the
estimates that have come true.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from chiron.policy.words import RequestClass

_NORMAL = NormalDist()
_PRIOR_S = 3_600.0
"""Waiting, in seconds, that the starting values of the learned errors count as."""
_PRIOR_ERROR = 0.08
"""Relative error presumed at first; from the benchmark's runs on seeds that are not reported."""
_MOST_S = 36_000.0
_LEAST_TOKENS = 1e-3
_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_PRESUMED_SCORES = {
    RequestClass.INTERACTIVE: (-2.5, -1.6, -0.3, 0.25, 0.85, 1.75, 3.0, 5.5),
    RequestClass.BATCH: (-3.4, -2.8, -1.6, -0.35, 0.3, 1.2, 3.2, 5.0),
}
"""Quantiles, at these levels, of (wait - mean) / standard deviation: most waits come close, a few are far
off, where capacity changes; for a backlog more is added than is taken away. From the benchmark's runs on
seeds that are not reported."""
_SCORE_STEP = 0.05


@dataclass(frozen=True, slots=True)
class WaitEstimate:
    """A wait, as a distribution cut off at zero, in seconds; inf where no throughput is known."""

    mean_s: float
    sd_s: float
    quantile_s: float
    """The wait that is not exceeded with the probability `quantile`."""
    quantile: float
    request_class: RequestClass = RequestClass.BATCH
    """Of the request that waits."""
    ratio: float = 1.0
    """Learned factor that is in it: what earlier waits were of their estimates."""
    excess: float = 0.0
    """Learned squared relative error that is in it."""
    scores: tuple[float, ...] = _PRESUMED_SCORES[RequestClass.BATCH]
    """Learned quantiles of (wait - mean_s) / sd_s, at fixed levels from 0.05 to 0.99."""
    tokens: float = 0.0
    """Expected work ahead, in output tokens, before the learned factor."""

    def at(self, quantile: float) -> float:
        """The wait that is not exceeded with another probability, 0.05 to 0.99, in seconds."""
        if not self.mean_s < math.inf:
            return self.mean_s
        return max(0.0, self.mean_s + _score(self.scores, quantile) * self.sd_s)


@dataclass(frozen=True, slots=True)
class LaterCapacity:
    """Capacity that changes at a known moment: an instance that loads by then, or others that take less."""

    in_s: float
    """Time until then, in seconds, > 0."""
    tokens_per_s: float
    """Output tokens per second that it adds; below 0: that go."""
    slots: float = 0.0
    """Requests that an instance takes in at once, for they find it empty; 0: no instance comes."""


class LengthModel:
    """Mean and variance of output lengths, in tokens; an observation's weight halves after `half_life` more.

    Starts from a prior that counts as `prior_weight` observations.
    """

    __slots__ = ("_decay", "_ended", "_made", "_sum", "_sum_sq", "_under_way", "_weight")

    def __init__(
        self,
        prior_mean: float = 256.0,
        prior_cv: float = 1.3,
        prior_weight: float = 10.0,
        half_life: float = 20_000.0,
    ) -> None:
        """Raises ValueError naming an argument that is not positive."""
        for name, value in (
            ("prior_mean", prior_mean),
            ("prior_cv", prior_cv),
            ("prior_weight", prior_weight),
            ("half_life", half_life),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._decay = -math.log(2.0) / half_life
        self._weight = prior_weight
        self._sum = prior_mean * prior_weight
        # Tokens of all requests, ended or not; None: not told.
        self._made: float | None = None
        self._under_way = 0
        # As the weight, but without the prior.
        self._ended = 0.0
        self._sum_sq = prior_mean**2 * (1 + prior_cv**2) * prior_weight

    def observe(self, requests: int, output_tokens: float, output_tokens_sq: float) -> None:
        """Learn from requests that ended: their number, the sum of their lengths and of the squares.

        Nothing is learned from no tokens: a request that ended well has at least one.
        """
        if requests <= 0 or output_tokens <= 0:
            return
        keep = math.exp(self._decay * requests)
        # Where squares are not reported, lengths have the spread known so far.
        squares = output_tokens_sq if output_tokens_sq > 0 else output_tokens**2 / requests * (1 + self.cv**2)
        self._weight = self._weight * keep + requests
        self._ended = self._ended * keep + requests
        self._sum = self._sum * keep + output_tokens
        if self._made is not None:
            self._made *= keep
        self._sum_sq = self._sum_sq * keep + squares

    def made(self, tokens: float, under_way: int) -> None:
        """Learn of tokens made for requests that have ended or are under way, once this is known at all.

        Where load has just risen, long requests are under way still and those that ended are short: tokens
        made per request that ended is the mean without that bias (each renewal of a slot is worth one mean).
        under_way: requests that run now. Their tokens count and they do not, which overstates the mean until
        many more have ended.
        """
        self._made = (self._sum if self._made is None else self._made) + tokens
        self._under_way = under_way

    @property
    def weight(self) -> float:
        """Observations that the figures rest on, discounted."""
        return self._weight

    @property
    def mean(self) -> float:
        """Mean output length, in tokens; from the prior to what was made as requests end (reconstructed)."""
        ended_alone = self._sum / self._weight
        if self._made is None or not self._ended:
            return ended_alone
        share = self._ended / (self._ended + self._under_way)
        # What has ended was made: less can only have been told.
        return ended_alone + share * max(0.0, self._made / self._weight - ended_alone)

    @property
    def variance(self) -> float:
        """Variance of output lengths, in tokens²."""
        return max(0.0, self._sum_sq / self._weight - (self._sum / self._weight) ** 2)

    @property
    def cv(self) -> float:
        """Standard deviation over mean."""
        return math.sqrt(self.variance) / self.mean

    def tail(self, exceeded_by: float) -> float:
        """The length that this share of requests (0 to 1) exceeds: a lognormal with these two moments."""
        sigma_sq = math.log1p(self.variance / self.mean**2)
        z = _NORMAL.inv_cdf(1 - min(max(exceeded_by, 1e-12), 1 - 1e-12))
        return math.exp(math.log(self.mean) - sigma_sq / 2 + z * math.sqrt(sigma_sq))


class WaitErrors:
    """How far estimates for one class have been off: the ratio of the waits to them, and its scatter."""

    __slots__ = ("_seen_s", "excess", "ratio", "scores")

    def __init__(self, request_class: RequestClass) -> None:
        # Seconds of waiting that the figures rest on: long waits teach more than short ones.
        self._seen_s = _PRIOR_S
        self.ratio = 1.0
        """By which estimated work is multiplied."""
        self.excess = _PRIOR_ERROR**2
        """Squared relative error beyond what the spread of lengths explains."""
        self.scores: tuple[float, ...] = _PRESUMED_SCORES[request_class]
        """Quantiles of the standardised errors. Each moves up when a wait exceeds it and down when none does,
        by steps that balance at its level whatever the distribution (online conformal prediction, Gibbs and
        Candès, arXiv 2106.00170)."""

    def observe(self, estimate: WaitEstimate, actual_s: float, weight: float = 1.0) -> None:
        """Learn from an estimate that has come true; one without a finite positive mean says nothing."""
        if not 0 < estimate.mean_s < math.inf or actual_s < 0:
            return
        if estimate.sd_s > 0:
            score = (actual_s - estimate.mean_s) / estimate.sd_s
            step = _SCORE_STEP * weight
            # Sorted, for steps of different sizes could make neighbours cross.
            self.scores = tuple(
                sorted(
                    known + step * max(1.0, abs(known)) * (level - (score <= known))
                    for level, known in zip(_LEVELS, self.scores, strict=True)
                )
            )
        seen_s = weight * actual_s
        self._seen_s = min(self._seen_s + seen_s, _MOST_S)
        share = min(1.0, seen_s / self._seen_s)
        # Against the estimate as it would have been without the ratio: many waits are under way at once, and
        # what the first of them taught must not be learned again from the others.
        relative = actual_s / estimate.mean_s * estimate.ratio
        # A bounded step: one wait that spans a failure must not double every estimate.
        relative = min(max(relative, self.ratio / 2), self.ratio * 2)
        error = relative / self.ratio - 1
        self.ratio += share * (relative - self.ratio)
        expected = max(0.0, (estimate.sd_s / estimate.mean_s) ** 2 - estimate.excess)
        self.excess = max(0.0, self.excess + share * (error**2 - expected - self.excess))


class WaitingTimeEstimator:
    """The waits in one model's queues. Learns lengths per class and its own errors online."""

    def __init__(self, quantile: float = 0.95) -> None:
        """quantile: of the estimates, 0.5 to below 1. Raises ValueError naming what is out of range."""
        if not 0.5 <= quantile < 1:
            raise ValueError(f"quantile must be at least 0.5 and below 1, got {quantile}")
        self.quantile = quantile
        self.lengths: Mapping[RequestClass, LengthModel] = {kind: LengthModel() for kind in RequestClass}
        self.errors: Mapping[RequestClass, WaitErrors] = {kind: WaitErrors(kind) for kind in RequestClass}
        self._z = _NORMAL.inv_cdf(quantile)

    def estimate(
        self,
        ahead: Mapping[RequestClass, int],
        tokens_per_s: float,
        known_tokens: float = 0.0,
        *,
        later: Sequence[LaterCapacity] = (),
        noise: float = 0.0,
        drift: float = 0.0,
        request_class: RequestClass = RequestClass.BATCH,
    ) -> WaitEstimate:
        """The wait behind these requests; inf at no throughput. Its mean never falls with more work, and
        neither mean nor quantile rises with more throughput.

        ahead: requests that are served before, by class. tokens_per_s: what serves this queue
        (`chiron.policy.serving`). known_tokens: further work ahead, in output tokens (the expected rest of
        running requests). later: capacity that will change, in the order of its times. noise and drift: how
        uncertain the throughput is: variance per second of what others take of it, in tokens²/s, and the
        standard error of its mean, in tokens per second. request_class: of the one that waits.
        """
        mean, sd, _ = self.work(ahead, known_tokens)
        if mean <= 0:
            return WaitEstimate(0.0, 0.0, 0.0, self.quantile, request_class)
        errors = self.errors[request_class]
        each = (mean - max(0.0, known_tokens)) / max(1, sum(ahead.values()))
        mean_s = time_to_serve(mean * errors.ratio, max(0.0, tokens_per_s), each * errors.ratio, later)
        if not mean_s < math.inf:
            return WaitEstimate(math.inf, math.inf, math.inf, self.quantile, request_class)
        sd = math.sqrt(sd**2 + noise * mean_s + (drift * mean_s) ** 2)
        # At the mean throughput of the wait, so that capacity that comes at its end does not narrow it.
        sd_s = mean_s * math.hypot(sd / mean, math.sqrt(errors.excess))
        scores = errors.scores
        quantile_s = max(0.0, mean_s + _score(scores, self.quantile) * sd_s)
        return WaitEstimate(
            mean_s, sd_s, quantile_s, self.quantile, request_class, errors.ratio, errors.excess, scores, mean
        )

    def until_a_slot(
        self, ahead: Mapping[RequestClass, int], tokens_per_s: float, request_class: RequestClass
    ) -> float:
        """Known work, in output tokens, before a newcomer that finds no place: 0 behind others.

        Where nobody is ahead a slot must come free all the same, which it does each time that one request's
        tokens are made. Where nothing serves yet, what comes has free slots.
        """
        if any(ahead.values()):
            return 0.0
        return self.lengths[request_class].mean if tokens_per_s > 0 else _LEAST_TOKENS

    def work(
        self, ahead: Mapping[RequestClass, int], known_tokens: float = 0.0
    ) -> tuple[float, float, float]:
        """Output tokens of these requests: mean, standard deviation, and the chosen quantile."""
        mean, variance = max(0.0, known_tokens), 0.0
        for kind, requests in ahead.items():
            lengths = self.lengths[kind]
            mean += requests * lengths.mean
            # The second term is the error of the mean itself, which all of them share.
            variance += lengths.variance * (requests + requests**2 / lengths.weight)
        sd = math.sqrt(variance)
        return mean, sd, max(0.0, mean + self._z * sd)

    def observe_wait(self, estimate: WaitEstimate, actual_s: float, weight: float = 1.0) -> None:
        """Learn from an estimate that has come true: how far estimates are off, and in which direction.

        weight: above 0, at most 1; less where the wait overlaps with others, which the same events shape.
        """
        self.errors[estimate.request_class].observe(estimate, actual_s, weight)


def _score(scores: Sequence[float], quantile: float) -> float:
    """Between the levels by a line; beyond them the outermost."""
    above = bisect_left(_LEVELS, quantile)
    if above in (0, len(_LEVELS)):
        return scores[min(above, len(_LEVELS) - 1)]
    low, high = _LEVELS[above - 1], _LEVELS[above]
    return scores[above - 1] + (quantile - low) / (high - low) * (scores[above] - scores[above - 1])


def time_to_serve(tokens: float, tokens_per_s: float, each: float, later: Sequence[LaterCapacity]) -> float:
    """When so much work is done, in seconds.

    each: tokens of one request. later: in the order of its times. inf where the throughput comes to nothing.
    """
    at_s, rate = 0.0, tokens_per_s
    for step in later:
        done = max(0.0, rate) * (step.in_s - at_s)
        if rate > 0 and tokens <= done:
            break
        # What it takes in at once leaves the queue before a token of it is made.
        tokens = max(0.0, tokens - done - step.slots * each)
        at_s, rate = step.in_s, rate + step.tokens_per_s
        if tokens <= 0:
            break
    if tokens > 0:
        at_s += tokens / rate if rate > 0 else math.inf
    return at_s
