"""What profiling an idle engine before a deployment would tell: step times on a grid, interpolated.

NVIDIA Dynamo's profiler measures an engine's prefill at some prompt lengths and its decode at some batch
sizes and context lengths, and its planner interpolates between them. Here the grid is filled from the
engine's profile: without the noise of a run, and without whatever makes a run's engines faster or slower than
the profile says, which nobody could have measured beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chiron.engine import Profile
from chiron.engine.step_time import step_time_table
from chiron.sim.settings import SimModel

_POINTS = 16
"""Token counts at which a step is measured, in equal ratios; Dynamo's profiler takes as many for prefill."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one engine can do under SLOs."""

    requests_per_s: float
    batch_size: int
    """At which it does so."""
    itl_s: float
    ttft_s: float


class EngineProfile:
    """One model's engine, as measured."""

    def __init__(self, model: SimModel) -> None:
        profile: Profile = model.profile
        self.step_token_budget = model.initial_step_token_budget or profile.default_step_token_budget
        self.kv_capacity_tokens = profile.kv_blocks * profile.block_size
        speculation = profile.speculation
        self._positions = 1 if speculation is None else 1 + speculation.draft_tokens
        self.tokens_per_step = 1.0 if speculation is None else speculation.tokens_per_step
        table = step_time_table(profile.step_time_ms)
        self._sizes = np.unique(np.geomspace(1, self.step_token_budget, _POINTS).round().astype(int))
        self._step_s = np.array([table.seconds(int(size)) for size in self._sizes])
        self._read_s = profile.kv_read_s_per_token

    def step_s(self, decoding: float, prefill_tokens: float, kv_tokens: float) -> float:
        """A step in which so many requests decode over so much cache, and so much of prompts is computed."""
        tokens = decoding * self._positions + prefill_tokens
        return float(np.interp(tokens, self._sizes, self._step_s)) + kv_tokens * self._read_s

    def prefill_s(self, tokens: float, decoding: float, kv_tokens: float) -> float:
        """Until so many prompt tokens are computed beside requests that decode."""
        room = max(1.0, self.step_token_budget - decoding * self._positions)
        steps = math.ceil(tokens / room)
        if not steps:
            return 0.0
        last = tokens - (steps - 1) * room
        full_s = self.step_s(decoding, room, kv_tokens)
        return (steps - 1) * full_s + self.step_s(decoding, last, kv_tokens)

    def capacity(
        self,
        prompt: float,
        output: float,
        batch_size: int,
        ttft_slo_s: float,
        itl_slo_s: float,
        slower: float,
    ) -> Capacity:
        """The most requests per second of these mean lengths under both SLOs, by Little's law.

        The largest batch counts whose steps, prefill of what is admitted included, keep both SLOs, up to the
        limits of slots and KV cache; a single request if none does. `slower`: observed times over these.
        """
        context = prompt + output / 2
        most = max(1, min(batch_size, int(self.kv_capacity_tokens / max(1.0, context))))
        found = self._at(1, prompt, output, slower)
        for size in range(2, most + 1):
            larger = self._at(size, prompt, output, slower)
            if larger.itl_s > itl_slo_s or larger.ttft_s > ttft_slo_s or self._starved(size, prompt, output):
                break
            found = larger
        return found

    def _at(self, size: int, prompt: float, output: float, slower: float) -> Capacity:
        kv_tokens = size * (prompt + output / 2)
        steps = max(1.0, output / self.tokens_per_step)
        prefill = min(size * prompt / steps, self.step_token_budget)
        step_s = slower * self.step_s(size, prefill, kv_tokens)
        ttft_s = slower * self.prefill_s(prefill + prompt, size, kv_tokens)
        return Capacity(size / (steps * step_s), size, step_s / self.tokens_per_step, ttft_s)

    def _starved(self, size: int, prompt: float, output: float) -> bool:
        """Whether requests end faster than the rest of the budget can admit others."""
        room = self.step_token_budget - size * self._positions
        return room <= 0 or prompt * size / max(1.0, output / self.tokens_per_step) > room
