"""How long a request will wait: work ahead × output-length distribution ÷ measured token throughput.

After QLM (arXiv 2407.00047): the output tokens of n requests ahead are approximately normal with n times the
mean and n times the variance of one request's length, so that a chosen quantile of the wait follows. Ours
(reconstructed): the uncertainty of the learned mean, the discount of old data, and a scale learned from the
estimates that have come true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from chiron.policy.words import RequestClass

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class WaitEstimate:
    """A wait, as a normal distribution cut off at zero, in seconds; inf where no throughput is known."""

    mean_s: float
    sd_s: float
    quantile_s: float
    """The wait that is not exceeded with the probability `quantile`."""
    quantile: float


class LengthModel:
    """Mean and variance of output lengths, in tokens; an observation's weight halves after `half_life` more.

    Starts from a prior that counts as `prior_weight` observations.
    """

    __slots__ = ("_decay", "_sum", "_sum_sq", "_weight")

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
        self._sum = self._sum * keep + output_tokens
        self._sum_sq = self._sum_sq * keep + squares

    @property
    def weight(self) -> float:
        """Observations that the figures rest on, discounted."""
        return self._weight

    @property
    def mean(self) -> float:
        """Mean output length, in tokens."""
        return self._sum / self._weight

    @property
    def variance(self) -> float:
        """Variance of output lengths, in tokens²."""
        return max(0.0, self._sum_sq / self._weight - self.mean**2)

    @property
    def cv(self) -> float:
        """Standard deviation over mean."""
        return math.sqrt(self.variance) / self.mean

    def tail(self, exceeded_by: float) -> float:
        """The length that this share of requests (0 to 1) exceeds: a lognormal with these two moments."""
        sigma_sq = math.log1p(self.variance / self.mean**2)
        z = _NORMAL.inv_cdf(1 - min(max(exceeded_by, 1e-12), 1 - 1e-12))
        return math.exp(math.log(self.mean) - sigma_sq / 2 + z * math.sqrt(sigma_sq))


class WaitingTimeEstimator:
    """The waits in one model's queue. Learns lengths per class, throughput and its own errors online."""

    def __init__(self, quantile: float = 0.95, throughput_half_life_s: float = 15.0) -> None:
        """quantile: of the estimates, 0.5 to below 1. Raises ValueError naming what is out of range."""
        if not 0.5 <= quantile < 1:
            raise ValueError(f"quantile must be at least 0.5 and below 1, got {quantile}")
        if not throughput_half_life_s > 0:
            raise ValueError(f"throughput_half_life_s must be positive, got {throughput_half_life_s}")
        self.quantile = quantile
        self.lengths: Mapping[RequestClass, LengthModel] = {kind: LengthModel() for kind in RequestClass}
        self._z = _NORMAL.inv_cdf(quantile)
        self._half_life_s = throughput_half_life_s
        self._tokens = 0.0
        self._weight = 0.0
        # Squared relative errors of past estimates and those that the normal approximation expected.
        self._errors = 1.0
        self._ratio = 1.0
        self._excess = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Measured throughput, discounted; 0 until something was measured."""
        return self._tokens / self._weight if self._weight else 0.0

    def observe_throughput(self, tokens_per_s: float, interval_s: float) -> None:
        """Learn the output tokens per second that serve this queue, while it was not empty."""
        keep = 0.5 ** (interval_s / self._half_life_s)
        self._tokens = self._tokens * keep + tokens_per_s * (1 - keep)
        self._weight = self._weight * keep + (1 - keep)

    def estimate(self, ahead: Mapping[RequestClass, int], known_tokens: float = 0.0) -> WaitEstimate:
        """The wait behind these requests.

        ahead: requests that are served before, by class. known_tokens: further work ahead, in output tokens
        (the expected rest of running requests). Monotone in both.
        """
        return self.at_rate(ahead, self.tokens_per_s, known_tokens)

    def at_rate(
        self, ahead: Mapping[RequestClass, int], tokens_per_s: float, known_tokens: float = 0.0
    ) -> WaitEstimate:
        """The same, at another throughput than the measured one, in tokens per second."""
        mean, sd, _ = self.work(ahead, known_tokens)
        if mean <= 0:
            return WaitEstimate(0.0, 0.0, 0.0, self.quantile)
        if tokens_per_s <= 0:
            return WaitEstimate(math.inf, math.inf, math.inf, self.quantile)
        mean_s = mean / tokens_per_s * self._ratio
        sd_s = math.hypot(sd / tokens_per_s, mean_s * math.sqrt(self._excess))
        return WaitEstimate(mean_s, sd_s, max(0.0, mean_s + self._z * sd_s), self.quantile)

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

    def observe_wait(self, estimate: WaitEstimate, actual_s: float) -> None:
        """Learn from an estimate that has come true: how far estimates are off, and in which direction."""
        if not 0 < estimate.mean_s < math.inf or actual_s < 0:
            return
        share = 1 / (1 + min(self._errors, 200.0))
        self._errors += 1
        relative = actual_s / estimate.mean_s
        expected = (estimate.sd_s / estimate.mean_s) ** 2 - self._excess
        # A bounded step: one wait that spans a failure must not double every estimate.
        self._ratio *= 1 + share * (min(max(relative, 0.5), 2.0) - 1)
        surplus = min((relative - 1) ** 2, 1.0) - max(0.0, expected)
        self._excess = max(0.0, self._excess + share * (surplus - self._excess))
