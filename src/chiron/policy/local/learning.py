"""What the model autoscaler has learned of one instance: from samples alone, never from its own plans."""

from __future__ import annotations

import math

from chiron.policy.local.base import is_evidence
from chiron.policy.local.fit import StepFit
from chiron.policy.local.mix import WorkMix
from chiron.policy.snapshots import InstanceSample

EVEN_WITHIN = 0.015
"""Steps are even when their mean is as near as this to the budget, or to the decode tokens alone."""
STEADY_WITHIN = 0.02
"""Running requests may change so much in an interval that still counts as steady."""
MOVING = 0.1
"""Running requests may change so much in an interval that is held against the prediction for its mean."""
BUSY_REQUESTS = 32
"""Requests running at both ends of an interval from which on the engine is taken to have run steps all along,
and its mix of young and old requests to be the usual one."""
TRUST_AFTER = 3
"""Samples before the fit may be trusted."""
TRUST_ERROR = 0.1
"""Mean relative error up to which it is."""
FORGET_AFTER = 20
"""Samples from which on a larger error means that the engine has changed, not that it is little known."""
FORGET_MISSES = 3
"""Samples in a row whose prediction is off by more than TRUST_ERROR that prove the change."""
STALL = 1 / 3
"""Relative error of a sample from which on it teaches nothing until FORGET_MISSES in a row prove the change:
the engine, its host or the clock stood still for a moment."""
SPREADS = 1.1
"""Margin under the SLO, in standard deviations of the ITL between intervals: 6 in 7 intervals keep it, and a
request, which averages over several, keeps it nearly always."""
FIRST_SPREAD = 0.02
"""Relative standard deviation of the ITL between intervals of even steps that is assumed at first."""
UNSEEN_BIAS = 1.02
"""Bias of a budget under which no uneven step has been seen: steps filled in part cost more on a staircase
than the line between the filled and the empty says."""
BIAS_WEIGHT = 0.2
"""Weight of the newest interval in the bias."""
LEAST_MARGIN = 0.01
MOST_MARGIN = 0.1
"""Bounds of the margin, as a share of the SLO. Where only some steps carry prompt it is the least one: the
ITL held against it allows for times heavy with prompts."""


class Learning:
    """The step fit, the mix of prompt and output, KV per request, and how far predictions can be believed."""

    def __init__(self) -> None:
        self.fit = StepFit()
        self.samples = 0
        self.error = 0.0
        self.forgotten = 0
        """Times that everything was forgotten because predictions had stopped coming true."""
        self.bias: dict[int, float] = {}
        """Budget → observed over predicted base where steps are uneven."""
        self.mix = WorkMix()
        self.kv_share = 1.0
        """Share of the KV headroom that preemptions have left."""
        self._spread = FIRST_SPREAD
        self._itl_per_step = 1.0
        self._misses = 0
        self._running: int | None = None
        self._kv_tokens = 0.0
        self._limits = (0, 0)
        self._itl_s = 0.0
        self._filled: dict[int, tuple[float, float]] = {}

    @property
    def trusted(self) -> bool:
        """Tell whether its predictions have come true lately."""
        return self.samples >= TRUST_AFTER and self.error <= TRUST_ERROR and self.mix.known

    def target_s(self, slo_s: float) -> float:
        """ITL to aim at with all steps filled: the SLO less a margin for its spread between intervals."""
        return slo_s * (1 - min(MOST_MARGIN, max(LEAST_MARGIN, SPREADS * self._spread)))

    def knee(self, budget: int) -> float:
        """Requests beyond which a larger batch no longer decodes more: every step is filled to the budget."""
        return budget / self.tokens_each

    @property
    def tokens_each(self) -> float:
        """Tokens that a step computes for each request that decodes: its own, its drafts', and prompts."""
        return self.mix.width + self.mix.prompt_share

    def step_s(
        self, decoding: float, budget: int, kv_tokens: float, prompt_tokens: float | None = None
    ) -> float:
        """Mean seconds of a step in which so many requests decode under this budget.

        A share of the steps carries prompt and is filled to the budget, the others carry decodes alone; the
        share follows from prompt tokens per decode. In between the base is linear, so smaller chunks
        more often come to the same. `prompt_tokens` per step replace what the lasting mix implies.
        """
        fit = self.fit
        tokens = decoding * self.mix.width
        room = budget - tokens
        owed = self.mix.prompt_share * decoding if prompt_tokens is None else prompt_tokens
        if owed >= room:
            base_s = fit.base_s(max(budget, tokens))
        else:
            low_s = fit.upper_s(tokens)
            high_s = max(low_s, fit.base_s(budget))
            base_s = (low_s + (high_s - low_s) * owed / room) * self.bias.get(budget, UNSEEN_BIAS)
        return base_s + fit.kv_s * kv_tokens

    def predict(self, batch_size: float, budget: int) -> tuple[float, float]:
        """Return the mean ITL in seconds and the output tokens a second of a full batch."""
        decoding = min(batch_size, self.knee(budget))
        step_s = self.step_s(decoding, budget, decoding * self.mix.kv_per_request)
        return step_s * self._itl_per_step, self.mix.gain * decoding / step_s

    def filled(self, budget: int) -> tuple[float, float]:
        """Return what `predict` does for a batch at the knee or beyond; kept until something is learned."""
        known = self._filled.get(budget)
        if known is None:
            known = self._filled[budget] = self._filled_at(budget, self.fit.base_s(budget))
        return known

    def promised(self, budget: int, base_factor: float) -> tuple[float, float]:
        """Return the same with the least base of a step, scaled: the optimism of a probe."""
        return self._filled_at(budget, base_factor * self.fit.least_s(budget))

    def _filled_at(self, budget: int, base_s: float) -> tuple[float, float]:
        decoding = self.knee(budget)
        step_s = base_s + self.fit.kv_s * self.mix.kv_per_request * decoding
        return step_s * self._itl_per_step, self.mix.gain * decoding / step_s

    def all_decoding_s(self, batch_size: int, budget: int) -> float:
        """Mean ITL in seconds of steps filled to the budget while the KV of so many requests is read."""
        kv_tokens = batch_size * self.mix.kv_per_request
        return self.step_s(batch_size, budget, kv_tokens, budget) * self._itl_per_step

    def largest_within(self, budget: int, target_s: float, most: int) -> int:
        """Return the largest batch, 1 to `most` and no larger than the knee, whose requests keep within.

        Prompts come in lumps. Where a share p of the steps carries prompt, the ITL of the requests that see
        the most of them is taken to be that of the share 1 - (1 - p)^2 (reconstructed). Below the knee it
        never falls as the batch grows.
        """
        fit, share, width = self.fit, self.mix.prompt_share, self.mix.width
        step_target_s = target_s / self._itl_per_step
        kv_s = fit.kv_s * self.mix.kv_per_request
        filled_s = fit.base_s(budget)
        bias = self.bias.get(budget, UNSEEN_BIAS)
        low, high = 1, max(1, min(most, math.floor(self.knee(budget))))
        low_off = high_off = 0.0
        bisect = False
        while low < high:
            middle = (low + high + 1) // 2
            if high_off > 0 > low_off and not bisect:
                # Nearly a line: interpolation soon gets there, bisection in between sees to the rest.
                middle = min(high, low + 1 + int((high - low) * low_off / (low_off - high_off)))
            bisect = not bisect
            room = budget - width * middle
            if share * middle >= room:
                step_s = filled_s
            else:
                low_s = fit.upper_s(width * middle)
                heavy = 1 - (1 - share * middle / room) ** 2
                step_s = bias * (low_s + max(0.0, filled_s - low_s) * heavy)
            off = step_s + kv_s * middle - step_target_s
            if off <= 0:
                low, low_off = middle, off
            else:
                high, high_off = middle - 1, off
        return low

    def observe(self, sample: InstanceSample) -> None:
        """Learn from a sample that is evidence, and from one with spare slots but no idle moment."""
        kv_tokens = sample.kv_usage * sample.kv_capacity_tokens
        if not self.samples:
            self.fit = StepFit(sample.kv_capacity_tokens)
        running = sample.running_interactive + sample.running_batch
        before, self._running = self._running, running
        kv_before, self._kv_tokens = self._kv_tokens, kv_tokens
        if sample.preemptions:
            self.kv_share *= 0.95
        else:
            self.kv_share = min(1.0, self.kv_share * 1.002)
        evidence = is_evidence(sample)
        busy = running >= BUSY_REQUESTS and sample.steps > 0 and sample.decodes > 0
        if not (evidence or busy) or sample.itl_mean_s <= 0:
            self._running = None
            return
        if before is None:
            return
        self._filled.clear()
        self.mix.observe(
            output=sample.output_tokens,
            prompt=sample.prompt_tokens,
            steps=sample.steps,
            running=running,
            grown=running - before,
            kv_tokens=kv_tokens,
            kv_grown=kv_tokens - kv_before,
            drafted=sample.draft_tokens,
            accepted=sample.accepted_tokens,
        )
        self._learn(sample, (kv_before + kv_tokens) / 2, running - before, evidence)

    def _learn(self, sample: InstanceSample, kv_tokens: float, changed: int, evidence: bool) -> None:
        tokens = sample.computed_tokens / sample.steps
        decoding = sample.decodes / sample.steps
        step_s = sample.interval_s / sample.steps
        budget = sample.step_token_budget
        filled = abs(tokens - budget) <= EVEN_WITHIN * budget
        alone = sample.prompt_tokens / sample.steps <= EVEN_WITHIN * tokens
        even = filled or (alone and abs(changed) <= max(1.0, EVEN_WITHIN * decoding))
        if filled:
            tokens = budget
        if (
            self.fit.points
            and abs(changed) <= MOVING * decoding
            and not self._compare(sample, step_s, tokens, kv_tokens, even)
        ):
            return
        self._itl_per_step = 0.8 * self._itl_per_step + 0.2 * sample.itl_mean_s / step_s
        if even and evidence and abs(changed) <= max(1.0, STEADY_WITHIN * decoding):
            self._measure_spread(sample)
        self.fit.observe(tokens, kv_tokens, step_s, even)
        self.samples += 1

    def _compare(
        self,
        sample: InstanceSample,
        step_s: float,
        tokens: float,
        kv_tokens: float,
        even: bool,
    ) -> bool:
        """Hold the prediction against what happened, where the curve is knowledge.

        Return whether the sample may teach anything: a stall does not, unless it turns out to last.
        """
        fit, budget = self.fit, sample.step_token_budget
        decoding, width = sample.decodes / sample.steps, self.mix.width
        kv_read_s = fit.kv_s * kv_tokens
        uneven = not even and fit.measured(budget)
        if not (fit.reaches(decoding * width) if uneven else fit.near(tokens)):
            return True
        if uneven:
            owed = tokens - decoding * width
            expected_s = self.step_s(decoding, budget, kv_tokens, prompt_tokens=owed)
        else:
            expected_s = fit.base_s(tokens) + kv_read_s
        miss = abs(step_s / expected_s - 1)
        self._misses = self._misses + 1 if miss > TRUST_ERROR else 0
        settled = self.samples >= FORGET_AFTER
        if settled and miss > STALL and self._misses < FORGET_MISSES:
            return False
        if uneven:
            bias = self.bias.get(budget, UNSEEN_BIAS)
            off = (step_s - kv_read_s) / (expected_s - kv_read_s)
            self.bias[budget] = min(1.2, max(0.8, bias * (1 + BIAS_WEIGHT * (off - 1))))
        if not uneven or fit.near(decoding * width):
            self.error += 0.3 * (min(1.0, miss) - self.error)
        if settled and self.error > TRUST_ERROR and self._misses >= FORGET_MISSES:
            self._forget(sample.kv_capacity_tokens)
        return True

    def _forget(self, kv_capacity_tokens: int) -> None:
        """Begin anew with the step times; the mix of work is the demand's, not the engine's, and stays."""
        self.fit = StepFit(kv_capacity_tokens)
        self.samples = 0
        self.error = 0.0
        self.bias = {}
        self.forgotten += 1
        self._misses = 0

    def _measure_spread(self, sample: InstanceSample) -> None:
        limits = (sample.batch_size, sample.step_token_budget)
        if limits != self._limits:
            self._limits, self._itl_s = limits, sample.itl_mean_s
            return
        off = sample.itl_mean_s / self._itl_s - 1
        self._itl_s *= 1 + 0.1 * off
        spread = self._spread
        self._spread = math.sqrt(spread**2 + 0.03 * (min(off**2, 4 * spread**2) - spread**2))
