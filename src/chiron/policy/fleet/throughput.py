"""What an instance of a model can do: tokens per second, and requests that its KV cache holds.

Learned from reports; reconstructed. Time between a request's tokens is taken as linear in the requests that
run, and fitted by discounted least squares; where too much would be lost on a wrong guess it is trusted a
little beyond the fullest instance seen, and no further.
"""

from __future__ import annotations

from chiron.policy.snapshots import FleetInstance

_HALF_LIFE_S = 120.0
_REACH = 1.25
_KV_SHARE = 0.95


class ThroughputCurve:
    """One model's instances; feed it each READY instance per tick, then close the tick with `learn`."""

    __slots__ = ("_fullest", "_kv", "_kv_tick", "_sums", "_tick", "_tick_fullest")

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._tick = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._kv = (0.0, 0.0)
        self._kv_tick = [0.0, 0.0]
        self._fullest = 0.0
        self._tick_fullest = 0.0

    def see(self, instance: FleetInstance) -> None:
        """Take one report into account."""
        running = instance.running_interactive + instance.running_batch
        if not running:
            return
        if instance.tokens_per_s > 0:
            gap_s = running / instance.tokens_per_s
            tick = self._tick
            tick[0] += 1.0
            tick[1] += running
            tick[2] += running * running
            tick[3] += gap_s
            tick[4] += running * gap_s
            self._tick_fullest = max(self._tick_fullest, running)
        if instance.kv_capacity_tokens and instance.kv_usage > 0:
            self._kv_tick[0] += running
            self._kv_tick[1] += instance.kv_usage * instance.kv_capacity_tokens

    def learn(self, interval_s: float) -> None:
        """Close a tick of this length."""
        keep = 0.5 ** (interval_s / _HALF_LIFE_S)
        seen = self._tick[0]
        if seen:
            # Each tick counts once, however many instances report in it.
            scale = interval_s / seen
            self._sums = tuple(
                old * keep + new * scale for old, new in zip(self._sums, self._tick, strict=True)
            )
            self._fullest = max(self._fullest * keep**0.2, self._tick_fullest)
        if self._kv_tick[0]:
            scale = interval_s / self._kv_tick[0]
            self._kv = (self._kv[0] * keep + interval_s, self._kv[1] * keep + self._kv_tick[1] * scale)
        self._tick = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._kv_tick = [0.0, 0.0]
        self._tick_fullest = 0.0

    @property
    def known(self) -> bool:
        """Whether any instance has been seen at work."""
        return self._sums[0] > 0

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

    def tokens_per_s(self, running: float, *, trusted: bool = False) -> float:
        """Output tokens per second of an instance with this many running; 0: unknown.

        trusted: with no more running than the curve has evidence for.
        """
        reach = min(running, _REACH * self._fullest) if trusted else running
        gap_s = self.itl_s(reach)
        return reach / gap_s if gap_s > 0 else 0.0

    @property
    def kv_tokens_per_request(self) -> float:
        """KV tokens that a running request holds on average; 0: unknown."""
        return self._kv[1] / self._kv[0] if self._kv[0] else 0.0

    def slots(self, batch_size: int, kv_capacity_tokens: int) -> float:
        """Requests that an instance runs at once: its batch size, or what its KV cache holds if less."""
        held = self.kv_tokens_per_request
        if not held or not kv_capacity_tokens:
            return float(batch_size)
        return min(float(batch_size), max(1.0, _KV_SHARE * kv_capacity_tokens / held))
