"""One engine model under a local autoscaler, with requests always waiting: samples, throughput, ITL.

The driver knows what the policy may not: it draws the lengths and the noise, and sees every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from chiron.engine import EngineModel, EngineRequest, Profile, StepOutcome
from chiron.policy.decisions import Limits
from chiron.policy.snapshots import InstanceSample

MEAN_PROMPT_TOKENS = 161
MEAN_OUTPUT_TOKENS = 338
"""ShareGPT in the tokenizer of OPT, as the vLLM paper (SOSP '23) gives it."""
SIGMA = 1.0
STEP_NOISE = 0.02
QUEUE = 64
"""Requests kept waiting: more than end in any step."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lognormal prompt and output lengths, in tokens."""

    mean_prompt: float = MEAN_PROMPT_TOKENS
    mean_output: float = MEAN_OUTPUT_TOKENS
    sigma: float = SIGMA

    def draw(self, rng: np.random.Generator, count: int, longest: int) -> list[tuple[int, int]]:
        """Draw prompt and output lengths, each from 1 to `longest` tokens."""
        shift = self.sigma**2 / 2
        prompts = rng.lognormal(math.log(self.mean_prompt) - shift, self.sigma, count)
        outputs = rng.lognormal(math.log(self.mean_output) - shift, self.sigma, count)
        return [
            (max(1, min(longest, round(prompt))), max(1, min(longest, round(output))))
            for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True)
        ]


@dataclass(slots=True)
class Tally:
    """What one stretch of the run did."""

    seconds: float = 0.0
    steps: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    """(time between tokens in seconds, tokens)."""
    request_itl_s: list[float] = field(default_factory=list)
    """Mean ITL of each request that finished with more than one token."""

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds

    @property
    def itl_mean_s(self) -> float:
        """Mean over tokens; 0 when there is none."""
        tokens = sum(count for _, count in self.gaps)
        return sum(gap * count for gap, count in self.gaps) / tokens if tokens else 0.0

    def itl_quantile_s(self, share: float) -> float:
        """The gap that this share of tokens does not exceed; 0 when there is none."""
        left = share * sum(count for _, count in self.gaps)
        for gap, count in sorted(self.gaps):
            left -= count
            if left <= 0:
                return gap
        return 0.0

    def attained(self, slo_s: float) -> float:
        """Share of the finished requests whose mean ITL is within the SLO."""
        return sum(itl <= slo_s for itl in self.request_itl_s) / max(1, len(self.request_itl_s))

    def add(self, other: Tally) -> None:
        """Append a later stretch."""
        self.seconds += other.seconds
        self.steps += other.steps
        self.output_tokens += other.output_tokens
        self.prompt_tokens += other.prompt_tokens
        self.draft_tokens += other.draft_tokens
        self.accepted_tokens += other.accepted_tokens
        self.preemptions += other.preemptions
        self.gaps += other.gaps
        self.request_itl_s += other.request_itl_s


class SaturatedEngine:
    """An engine whose queue never empties, run interval by interval."""

    def __init__(
        self,
        profile: Profile,
        *,
        batch_size: int,
        step_token_budget: int,
        seed: int,
        lengths: Lengths | None = None,
        step_noise: float = STEP_NOISE,
        max_batch_size: int = 1024,
        max_step_token_budget: int = 8192,
    ) -> None:
        self.engine = EngineModel(
            profile, batch_size=batch_size, step_token_budget=step_token_budget, report_emissions=False
        )
        self.now_s = 0.0
        self.lengths = lengths or Lengths()
        self.max_batch_size = max_batch_size
        self.max_step_token_budget = max_step_token_budget
        self._noise = step_noise
        self._tokens_per_step = 1.0 if profile.speculation is None else profile.speculation.tokens_per_step
        streams = np.random.SeedSequence(seed).spawn(2)
        self._length_rng, self._noise_rng = (np.random.default_rng(stream) for stream in streams)
        self._drawn: list[tuple[int, int]] = []
        self._factors: list[float] = []
        self._next_id = 0
        self._output: dict[int, int] = {}
        self._first_token_s: dict[int, float] = {}

    def apply(self, limits: Limits) -> None:
        """Put a decision in force."""
        self.engine.set_batch_size(limits.batch_size)
        self.engine.set_step_token_budget(limits.step_token_budget)

    def run(self, seconds: float) -> Tally:
        """Run until the first step boundary at or after so many seconds, the queue kept full."""
        tally = Tally()
        engine = self.engine
        before = engine.totals
        start_s = self.now_s
        end_s = start_s + seconds
        while self.now_s < end_s:
            self._fill()
            decoding = engine.decoding
            outcome = engine.advance(self.now_s, until=end_s, time_factor=self._factor())
            assert outcome is not None
            self.now_s += outcome.duration_s
            self._account(tally, outcome, decoding)
        tally.seconds = self.now_s - start_s
        tally.draft_tokens = engine.totals.draft_tokens - before.draft_tokens
        tally.accepted_tokens = engine.totals.accepted_tokens - before.accepted_tokens
        return tally

    def sample(self, tally: Tally, slo_s: float) -> InstanceSample:
        """What the worker would report of that stretch, under this SLO."""
        engine = self.engine
        return InstanceSample(
            interval_s=tally.seconds,
            batch_size=engine.batch_size,
            max_batch_size=self.max_batch_size,
            step_token_budget=engine.step_token_budget,
            max_step_token_budget=self.max_step_token_budget,
            running_interactive=engine.running,
            running_batch=0,
            waiting_interactive=engine.waiting,
            waiting_batch=0,
            steps=tally.steps,
            output_tokens=tally.output_tokens,
            prompt_tokens=tally.prompt_tokens,
            itl_mean_s=tally.itl_mean_s,
            itl_p95_s=tally.itl_quantile_s(0.95),
            itl_slo_s=slo_s,
            kv_usage=engine.kv_used_tokens / engine.kv_total_tokens,
            kv_capacity_tokens=engine.kv_total_tokens,
            preemptions=tally.preemptions,
            saturated=True,
            draft_tokens=tally.draft_tokens,
            accepted_tokens=tally.accepted_tokens,
        )

    def _fill(self) -> None:
        while self.engine.waiting < QUEUE:
            if not self._drawn:
                self._drawn = self.lengths.draw(self._length_rng, 1024, 4000)
            prompt, output = self._drawn.pop()
            self.engine.submit(EngineRequest(self._next_id, prompt, output))
            self._output[self._next_id] = output
            self._next_id += 1

    def _factor(self) -> float:
        if not self._noise:
            return 1.0
        if not self._factors:
            self._factors = (1 + self._noise * self._noise_rng.uniform(-1, 1, 4096)).tolist()
        return self._factors.pop()

    def _account(self, tally: Tally, outcome: StepOutcome, decoding: int) -> None:
        tally.steps += outcome.steps
        tally.output_tokens += outcome.emitted_tokens
        tally.prompt_tokens += outcome.prefill_tokens
        tally.preemptions += len(outcome.preempted)
        if decoding:
            gap_s = outcome.duration_s / outcome.steps / self._tokens_per_step
            tally.gaps.append((gap_s, decoding * outcome.steps))
        for request_id in outcome.first_tokens:
            self._first_token_s[request_id] = self.now_s
        for request_id in outcome.finished:
            output = self._output.pop(request_id)
            first_s = self._first_token_s.pop(request_id)
            if output > 1:
                tally.request_itl_s.append((self.now_s - first_s) / (output - 1))
