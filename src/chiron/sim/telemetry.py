"""What reaches the policies: samples of instances, and reports that come late, noisy or not at all."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from chiron.policy.snapshots import HANDED_OVER, FleetInstance, InstanceSample, Traffic, decodes
from chiron.policy.words import Phase
from chiron.sim.instance import SimInstance
from chiron.sim.settings import SimSettings
from chiron.sim.step_history import Taken

Report = TypeVar("Report")


class Noise:
    """Relative noise on measured figures, from a stream of its own."""

    def __init__(self, settings: SimSettings) -> None:
        self.relative = settings.telemetry.noise
        """Standard deviation, as a share of the figure."""
        self._loss = settings.telemetry.loss
        self._rng = np.random.default_rng((settings.seed, 3))

    def measured(self, value: float) -> float:
        """The value as an instrument tells it."""
        if not self.relative:
            return value
        return max(0.0, value * (1.0 + self.relative * float(self._rng.standard_normal())))

    def lost(self) -> bool:
        """Whether the next report gets lost."""
        return self._loss > 0 and float(self._rng.random()) < self._loss


class Sampler:
    """One instance's figures over the interval since its last sample."""

    def __init__(self, instance: SimInstance, noise: Noise) -> None:
        self._instance = instance
        self._noise = noise
        self._tokens_per_step = 1.0
        speculation = instance.model.profile.speculation
        if speculation is not None:
            self._tokens_per_step = speculation.tokens_per_step
        self._before = instance.engine.totals
        self._since_s = 0.0
        self.tokens_per_s = 0.0
        self.step_tokens = 0.0
        self.kv_usage = 0.0
        self._counted = (0, 0, 0, 0)

    def as_counted(self, report: InstanceReport) -> InstanceReport:
        """The report with what the last sample has counted, which its token rate belongs to."""
        running_interactive, running_batch, waiting_interactive, waiting_batch = self._counted
        return replace(
            report,
            counted_s=self._since_s,
            instance=replace(
                report.instance,
                running_interactive=running_interactive,
                running_batch=running_batch,
                waiting_interactive=waiting_interactive,
                waiting_batch=waiting_batch,
            ),
        )

    def begin(self, now: float) -> None:
        """Begin the first interval."""
        self._since_s = now

    def sample(self, now: float, wanted: bool = True) -> InstanceSample | None:
        """Settle the engine, measure, and begin the next interval; None when no time has passed.

        wanted: somebody looks at the sample. If not, and there is no noise, only what reports and the router
        tell is measured, and None returned.
        """
        interval_s = now - self._since_s
        if interval_s <= 0:
            return None
        self._since_s = now
        instance = self._instance
        instance.settle(now)
        self._counted = (
            instance.running_interactive,
            instance.running_batch,
            instance.waiting_interactive,
            instance.waiting_batch,
        )
        engine = instance.engine
        totals, before = engine.totals, self._before
        self._before = totals
        steps = instance.history.take()
        output_tokens = totals.emitted_tokens - before.emitted_tokens
        accepted = totals.accepted_tokens - before.accepted_tokens
        drafted = totals.draft_tokens - before.draft_tokens
        prompt_tokens = totals.prefill_tokens - before.prefill_tokens
        taken = totals.steps - before.steps
        computed = decodes(output_tokens, accepted) + drafted + prompt_tokens
        step_tokens = computed / taken if taken else 0.0
        if not wanted and not self._noise.relative:
            instance.itl_s = self._mean(steps)
            self.tokens_per_s = instance.tokens_per_s = output_tokens / interval_s
            self.kv_usage = min(1.0, engine.kv_used_tokens / engine.kv_total_tokens)
            self.step_tokens = step_tokens
            return None
        mean_s, p95_s = self._mean(steps), self._p95(steps)
        instance.itl_s = mean_s
        self.tokens_per_s = instance.tokens_per_s = self._noise.measured(output_tokens / interval_s)
        self.kv_usage = min(1.0, self._noise.measured(engine.kv_used_tokens / engine.kv_total_tokens))
        self.step_tokens = self._noise.measured(step_tokens)
        full_s = sum(duration_s for _, duration_s, _, _, full, _ in steps if full)
        model = instance.model
        slo_s = model.batch_itl_slo_s if instance.running_batch else 0.0
        return InstanceSample(
            interval_s=interval_s,
            batch_size=engine.batch_size,
            max_batch_size=model.max_batch_size,
            step_token_budget=engine.step_token_budget,
            max_step_token_budget=max(model.max_step_token_budget, engine.step_token_budget),
            running_interactive=instance.running_interactive,
            running_batch=instance.running_batch,
            waiting_interactive=instance.waiting_interactive,
            waiting_batch=instance.waiting_batch,
            steps=taken,
            output_tokens=output_tokens,
            prompt_tokens=prompt_tokens,
            itl_mean_s=self._noise.measured(mean_s),
            itl_p95_s=self._noise.measured(p95_s),
            itl_slo_s=model.itl_slo_s if instance.running_interactive else slo_s,
            kv_usage=self.kv_usage,
            kv_capacity_tokens=engine.kv_total_tokens,
            preemptions=totals.preemptions - before.preemptions,
            saturated=full_s >= HANDED_OVER * interval_s,
            draft_tokens=drafted,
            accepted_tokens=accepted,
        )

    def _mean(self, steps: list[Taken]) -> float:
        """Mean of the times between tokens, each token counted once."""
        total = 0
        waited_s = 0.0
        for _, duration_s, count, positions, _, _ in steps:
            if positions:
                total += positions
                waited_s += duration_s / count * positions
        return waited_s / total / self._tokens_per_step if total else 0.0

    def _p95(self, steps: list[Taken]) -> float:
        """95th percentile of the times between tokens, each token counted once."""
        gaps = [
            (duration_s / count, positions) for _, duration_s, count, positions, _, _ in steps if positions
        ]
        if not gaps:
            return 0.0
        total = sum(positions for _, positions in gaps)
        gaps.sort(reverse=True)
        above = 0
        for gap_s, positions in gaps:
            above += positions
            if above >= 0.05 * total:
                return gap_s / self._tokens_per_step
        return gaps[-1][0] / self._tokens_per_step


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """One instance's report, as made; it arrives later."""

    made_s: float
    instance: FleetInstance
    phase_since_s: float
    waking: bool
    """It loads because it was asleep."""
    gone: bool
    counted_s: float | None = None
    """When its load was counted; None: when the report was made."""


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One model's report from its router, as made. Counts are since the simulation began."""

    made_s: float
    totals: Traffic
    backlog: tuple[tuple[float, int, int], ...]
    """(absolute deadline, requests, prompt tokens) of each request group."""


class Mail(Generic[Report]):
    """Reports under way: all take equally long, so they arrive in the order in which they were made."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._under_way: deque[tuple[float, Report]] = deque()

    def send(self, report: Report, now: float) -> None:
        """Send a report."""
        self._under_way.append((now + self._delay_s, report))

    def receive(self, now: float) -> list[Report]:
        """Take what has arrived by now."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            arrived.append(self._under_way.popleft()[1])
        return arrived


def report_of(instance: SimInstance, sampler: Sampler, now: float) -> InstanceReport:
    """What an instance's node reports of it now."""
    engine = instance.engine
    serves = instance.phase in (Phase.READY, Phase.DRAINING)
    fleet = FleetInstance(
        instance_id=instance.instance_id,
        node_id=instance.identity.node_id,
        role=instance.role,
        phase=instance.phase,
        batch_size=engine.batch_size,
        safe_batch_size=instance.safe_batch_size,
        running_interactive=instance.running_interactive,
        running_batch=instance.running_batch,
        waiting_interactive=instance.waiting_interactive,
        waiting_batch=instance.waiting_batch,
        tokens_per_s=sampler.tokens_per_s if serves else 0.0,
        step_token_budget=engine.step_token_budget,
        step_tokens=sampler.step_tokens if serves else 0.0,
        kv_usage=sampler.kv_usage,
        kv_capacity_tokens=engine.kv_total_tokens,
    )
    return InstanceReport(now, fleet, instance.phase_since_s, instance.waking, instance.dead)


def difference(later: Traffic, earlier: Traffic, interval_s: float) -> Traffic:
    """Traffic between two reports whose counts run since the start."""
    return replace(
        later,
        interval_s=interval_s,
        arrived_interactive=later.arrived_interactive - earlier.arrived_interactive,
        arrived_batch=later.arrived_batch - earlier.arrived_batch,
        finished_interactive=later.finished_interactive - earlier.finished_interactive,
        finished_batch=later.finished_batch - earlier.finished_batch,
        finished_output_tokens=later.finished_output_tokens - earlier.finished_output_tokens,
        finished_prompt_tokens=later.finished_prompt_tokens - earlier.finished_prompt_tokens,
        finished_service_s=later.finished_service_s - earlier.finished_service_s,
        finished_output_tokens_sq=later.finished_output_tokens_sq - earlier.finished_output_tokens_sq,
        finished_batch_output_tokens=later.finished_batch_output_tokens
        - earlier.finished_batch_output_tokens,
        finished_batch_prompt_tokens=later.finished_batch_prompt_tokens
        - earlier.finished_batch_prompt_tokens,
        finished_batch_service_s=later.finished_batch_service_s - earlier.finished_batch_service_s,
        finished_batch_output_tokens_sq=later.finished_batch_output_tokens_sq
        - earlier.finished_batch_output_tokens_sq,
    )
