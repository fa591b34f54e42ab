"""What an instance of a model can do: tokens per second, and requests that its KV cache and steps hold.

Learned from reports; reconstructed. Time between a request's tokens is taken as linear in the requests that
run, and fitted by discounted least squares. The line promises too much where the truth bends up, so what has
been measured (mean throughput of instances about equally full) bounds it. It promises too little once all
instances have been half empty for a while, so what full instances made the last time bounds it from below:
only those show what an engine makes for long, since one that computes no prompts decodes faster.

Each request takes a share of every step: its own token, drafts, and the prompts that its place in the batch
costs over time. Where these fill the step-token budget no further request can run for long, whatever slots
are free. The share is the ratio of the mean tokens in a step to the requests that run.
"""

from __future__ import annotations

import math

from chiron.policy.snapshots import FleetInstance

_HALF_LIFE_S = 180.0
_BINS_PER_DOUBLING = 4
_ENOUGH_S = 20.0
_KV_SHARE = 0.92
_FULL = 0.9
"""Share of the batch size from which an instance counts as full."""
_REMEMBERED_S = 3600.0
"""How long what full instances made is believed."""


class ThroughputCurve:
    """One model's instances; feed it each READY instance per tick, then close the tick with `learn`."""

    __slots__ = (
        "_bins",
        "_full",
        "_full_age_s",
        "_full_tick",
        "_kv",
        "_kv_tick",
        "_saturated_s",
        "_step",
        "_step_tick",
        "_sums",
        "_tick",
        "_tick_bins",
    )

    def __init__(self) -> None:
        self._sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
        # The last: reports of instances that were full.
        self._tick = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        self._saturated_s = 0.0
        self._kv = (0.0, 0.0)
        self._kv_tick = [0.0, 0.0]
        # Running requests, and tokens that a step computed.
        self._step = (0.0, 0.0)
        self._step_tick = [0.0, 0.0]
        # Of full instances: seconds, running, tokens per second. They fade as newer ones come, not with time.
        self._full = (0.0, 0.0, 0.0)
        self._full_age_s = 0.0
        self._full_tick = [0.0, 0.0, 0.0]
        # Bin → (seconds, tokens) and, within a tick, (instances, tokens per second).
        self._bins: dict[int, tuple[float, float]] = {}
        self._tick_bins: dict[int, tuple[int, float]] = {}

    def see(self, instance: FleetInstance) -> None:
        """Take one report into account."""
        running = instance.running_interactive + instance.running_batch
        if not running:
            return
        rate = instance.tokens_per_s
        if rate > 0:
            gap_s = running / rate
            tick = self._tick
            tick[0] += 1.0
            tick[1] += running
            tick[2] += running * running
            tick[3] += gap_s
            tick[4] += running * gap_s
            waiting = instance.waiting_interactive + instance.waiting_batch
            tick[5] += bool(waiting) or running >= instance.batch_size
            if waiting or running >= _FULL * instance.batch_size:
                full = self._full_tick
                full[0] += 1.0
                full[1] += running
                full[2] += rate
            index = int(math.log2(running) * _BINS_PER_DOUBLING)
            number, total = self._tick_bins.get(index, (0, 0.0))
            self._tick_bins[index] = (number + 1, total + rate)
        if instance.step_tokens > 0:
            self._step_tick[0] += running
            self._step_tick[1] += instance.step_tokens
        if instance.kv_capacity_tokens and instance.kv_usage > 0:
            self._kv_tick[0] += running
            self._kv_tick[1] += instance.kv_usage * instance.kv_capacity_tokens

    def learn(self, interval_s: float) -> None:
        """Close a tick of this length."""
        keep = 0.5 ** (interval_s / _HALF_LIFE_S)
        seen = self._tick[0]
        self._saturated_s *= keep
        if seen:
            # Each tick counts once, however many instances report in it.
            scale = interval_s / seen
            self._sums = tuple(
                old * keep + new * scale for old, new in zip(self._sums, self._tick[:5], strict=True)
            )
            self._saturated_s += self._tick[5] * scale
        for index, (seconds, tokens) in self._bins.items():
            self._bins[index] = (seconds * keep, tokens * keep)
        for index, (number, total) in self._tick_bins.items():
            seconds, tokens = self._bins.get(index, (0.0, 0.0))
            self._bins[index] = (seconds + interval_s, tokens + total / number * interval_s)
        if self._kv_tick[0]:
            scale = interval_s / self._kv_tick[0]
            self._kv = (self._kv[0] * keep + interval_s, self._kv[1] * keep + self._kv_tick[1] * scale)
        self._step = (
            self._step[0] * keep + self._step_tick[0] * interval_s,
            self._step[1] * keep + self._step_tick[1] * interval_s,
        )
        self._step_tick = [0.0, 0.0]
        full, running, rate = self._full_tick
        self._full_age_s += interval_s
        if full:
            seconds, full_running, full_rate = self._full
            # Some instances full for a second are less than all of them.
            share = interval_s * full / seen
            kept = 0.5 ** (share / _HALF_LIFE_S)
            scale = share / full
            self._full = (
                seconds * kept + share,
                full_running * kept + running * scale,
                full_rate * kept + rate * scale,
            )
            self._full_age_s = 0.0
        self._full_tick = [0.0, 0.0, 0.0]
        self._tick = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        self._tick_bins = {}
        self._kv_tick = [0.0, 0.0]

    def itl_s(self, running: float) -> float:
        """Expected time between a request's tokens with this many running, in seconds; 0: unknown."""
        weight, sum_n, sum_nn, sum_g, sum_ng = self._sums
        if not weight:
            return 0.0
        mean_n, mean_g = sum_n / weight, sum_g / weight
        # A prior slope (half of the time is fixed, half grows with the requests) of the weight of a 10 %
        # spread decides where all instances have been equally full.
        prior = mean_g / (2 * mean_n)
        strength = (0.1 * mean_n) ** 2
        spread = max(0.0, sum_nn / weight - mean_n**2)
        slope = (sum_ng / weight - mean_n * mean_g + strength * prior) / (spread + strength)
        slope = min(max(slope, 0.0), mean_g / mean_n)
        return mean_g + slope * (running - mean_n)

    def tokens_per_s(self, running: float, reach: float = math.inf) -> float:
        """Output tokens per second of an instance with this many running; 0: unknown.

        reach: at most this many times the best throughput measured, as long as no instance has been full of
        late (all slots taken, or requests waiting); no more than measured once one has.
        """
        gap_s = self.itl_s(running)
        if gap_s <= 0:
            return 0.0
        measured = {i: t / s for i, (s, t) in self._bins.items() if s >= _ENOUGH_S}
        if not measured:
            return running / gap_s
        factor = 1.0 if self._saturated_s >= _ENOUGH_S else reach
        return max(min(running / gap_s, factor * max(measured.values())), self._made_when_full(running))

    def _made_when_full(self, running: float) -> float:
        """Output tokens per second of instances that were as full as this, at most, and full; 0: unknown."""
        seconds, full_running, full_rate = self._full
        if (
            seconds < _ENOUGH_S
            or self._full_age_s > _REMEMBERED_S
            or running < _FULL * full_running / seconds
        ):
            return 0.0
        return full_rate / seconds

    def running_at(self, tokens_per_s: float) -> float:
        """Requests that run on an instance that makes so many tokens per second; inf: more than it can make.

        n requests at fixed + slope × n seconds between tokens make n / (fixed + slope × n) tokens per second.
        """
        # Where the whole of it grows with the requests, rounding may leave less than nothing fixed.
        fixed_s = max(0.0, self.itl_s(0.0))
        slope_s = self.itl_s(1.0) - fixed_s
        spared = 1 - slope_s * tokens_per_s
        return fixed_s * tokens_per_s / spared if spared > 0 else math.inf

    @property
    def kv_tokens_per_request(self) -> float:
        """KV tokens that a running request holds on average; 0: unknown."""
        return self._kv[1] / self._kv[0] if self._kv[0] else 0.0

    @property
    def step_tokens_per_request(self) -> float:
        """Tokens that a step computes for each request that runs, drafts and prompts included; 0: unknown."""
        return self._step[1] / self._step[0] if self._step[0] else 0.0

    def slots(self, batch_size: int, kv_capacity_tokens: int, step_tokens: float = 0.0) -> float:
        """Requests that an instance runs at once.

        Its batch size, or what its KV cache holds, or what fills its steps of at most `step_tokens` (0: any
        number), if less.
        """
        slots = float(batch_size)
        held, each = self.kv_tokens_per_request, self.step_tokens_per_request
        if held and kv_capacity_tokens:
            slots = min(slots, max(1.0, _KV_SHARE * kv_capacity_tokens / held))
        if each and step_tokens:
            slots = min(slots, max(1.0, step_tokens / each))
        return slots
