"""What a clairvoyant knows of one model's workload: when how much work comes, and by when it is due."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil

import numpy as np

from chiron.policy.words import RequestClass
from chiron.sim.clairvoyant.pace import Pace, pace_of, work_of
from chiron.sim.settings import SimSettings
from chiron.sim.workload import Workload

_NEAR_S = 60
"""Lengths are averaged over so much time before and after a moment."""


@dataclass(frozen=True, slots=True)
class Future:
    """One model's requests. Work is in seconds of one instance (`chiron.sim.clairvoyant.pace`)."""

    pace: Pace
    come: tuple[float, ...]
    """Interactive work that arrives before each whole second."""
    each: tuple[float, ...]
    """Mean work of an interactive request around each whole second."""
    batch_each: float
    """Mean work of a batch request; 0: there is none."""
    batch_tail_s: float
    """Time from its slot to the last token of the longest batch request, in a full batch."""
    batch_at_s: tuple[float, ...]
    """Arrivals of batch requests, ascending."""
    batch_due: tuple[tuple[float, float], ...]
    """(deadline, work) of each, in the same order."""
    load_s: float
    """Time from placement to ready, but for rare long ones."""

    def until(self, at_s: float) -> float:
        """Interactive work that arrives before this time."""
        place = int(at_s)
        return self.come[place] if place < len(self.come) else self.come[-1]

    def mean_work(self, at_s: float) -> float:
        """Mean work of an interactive request around this time."""
        place = int(at_s)
        return self.each[place] if place < len(self.each) else self.each[-1]

    def batch_before(self, now_s: float, until_s: float) -> tuple[tuple[float, float], ...]:
        """(deadline, work) of the batch requests that arrive between these times."""
        low = bisect_left(self.batch_at_s, now_s)
        return self.batch_due[low : bisect_left(self.batch_at_s, until_s)]


def future_of(settings: SimSettings, workload: Workload, index: int) -> Future | None:
    """What is to come for the model with this index; None: nothing."""
    model = settings.models[index]
    mine = workload.model == index
    if not mine.any():
        return None
    prompt, output = workload.prompt_tokens[mine], workload.output_tokens[mine]
    arrival, deadline = workload.arrival_s[mine], workload.deadline_s[mine]
    interactive = workload.request_class[mine] == RequestClass.INTERACTIVE
    pace = pace_of(model, prompt, output, settings.step_time_factor)
    work = work_of(model, prompt, output, settings.step_time_factor)
    seconds = ceil(float(arrival[-1])) + 2
    bins = np.minimum(arrival[interactive].astype(np.int64) + 1, seconds - 1)
    per_second = np.bincount(bins, work[interactive], seconds)
    counts = np.bincount(bins, minlength=seconds).astype(np.float64)
    window = np.ones(2 * _NEAR_S + 1)
    near = np.convolve(counts, window, "same")
    overall = float(work[interactive].mean()) if interactive.any() else 0.0
    each = np.where(near > 0, np.convolve(per_second, window, "same") / np.maximum(near, 1), overall)
    batch = ~interactive
    return Future(
        pace=pace,
        come=tuple(np.cumsum(per_second).tolist()),
        each=tuple(each.tolist()),
        batch_each=float(work[batch].mean()) if batch.any() else 0.0,
        batch_tail_s=float(output[batch].max()) * pace.full_itl_s if batch.any() else 0.0,
        batch_at_s=tuple(arrival[batch].tolist()),
        batch_due=tuple(zip(deadline[batch].tolist(), work[batch].tolist(), strict=True)),
        load_s=model.load_s * float(np.exp(1.3 * model.load_time_spread)),
    )
