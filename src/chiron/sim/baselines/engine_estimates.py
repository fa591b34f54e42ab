"""Estimates of one engine's TTFT and ITL from what runs and waits there, for `dynamo-like`."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.snapshots import FleetInstance
from chiron.sim.baselines.engine_profile import EngineProfile
from chiron.sim.baselines.replicas import waiting_in


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one engine has."""

    running: float
    waiting: float
    """For its slots, wherever they wait."""
    kv_tokens: float
    batch_size: int

    @classmethod
    def of(cls, instance: FleetInstance, outside: float, batch_weight: float) -> EngineLoad:
        """Its own, and `outside` more that wait for it elsewhere."""
        return cls(
            instance.running_interactive + instance.running_batch,
            waiting_in(instance, batch_weight) + outside,
            instance.kv_usage * instance.kv_capacity_tokens,
            instance.batch_size,
        )

    def times(self, factor: float) -> EngineLoad:
        """With so many times the requests."""
        return EngineLoad(
            factor * self.running, factor * self.waiting, factor * self.kv_tokens, self.batch_size
        )


@dataclass(frozen=True, slots=True)
class Estimates:
    """Of engines with this profile, for requests of these mean lengths."""

    profile: EngineProfile
    slower: float
    """Observed times over profiled ones."""
    prompt: float
    output: float
    """Mean lengths, in tokens."""

    def ttft_s(self, load: EngineLoad) -> float:
        """Of the next request that comes."""
        tokens = (load.waiting + 1) * self.prompt
        prefill_s = self.slower * self.profile.prefill_s(tokens, load.running, load.kv_tokens)
        # What goes ahead is computed while slots come free.
        return max(prefill_s, self._slot_s(load))

    def _slot_s(self, load: EngineLoad) -> float:
        """Until a slot is free behind those that wait."""
        ahead = load.running + load.waiting + 1 - load.batch_size
        return max(0.0, ahead) * self.output * self.itl_s(load) / load.batch_size

    def itl_s(self, load: EngineLoad) -> float:
        """With what waits admitted as far as there are slots."""
        profile = self.profile
        running = min(load.batch_size, load.running + load.waiting)
        admitted = running * self.prompt * profile.tokens_per_step / self.output
        kv_tokens = load.kv_tokens + (running - load.running) * self.prompt
        return self.slower * profile.step_s(running, admitted, kv_tokens) / profile.tokens_per_step

    def keeps(self, load: EngineLoad, ttft_slo_s: float, itl_slo_s: float, sensitivity: float) -> bool:
        """Whether an engine with this load has room for it, and keeps the margin of the SLOs.

        Of a TTFT only what queueing adds is held against the margin: a request's own prefill takes as long on
        any number of engines.
        """
        if load.kv_tokens + load.waiting * self.prompt >= self.profile.kv_capacity_tokens:
            return False
        if load.running + load.waiting > load.batch_size:
            return False
        if self.itl_s(load) >= sensitivity * itl_slo_s:
            return False
        own_s = self.slower * self.profile.prefill_s(self.prompt, load.running, load.kv_tokens)
        return self.ttft_s(load) - own_s < sensitivity * (ttft_slo_s - own_s)
