"""The paper's headlines beside what came out: the largest gains over a baseline, and what physics allows.

A gain is judged by the stricter reading: attainment in points, throughput as finished requests per GPU and
second, GPUs as GPU-hours where ours attains. The ceiling of a gain is what a policy would reach that served
the same requests at the best steady throughput per GPU (`chiron.sim.ceiling`) and missed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chiron.sim.paper.sections import Finding, Verdict

_AS_WELL = 1.02
"""GPU-hours of somebody who does as well, at most, over ours."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one policy did with one workload, on the mean of its seeds."""

    cell: str
    """The workload."""
    who: str
    """The policy, or a variant of it."""
    attained: float
    """Share of all requests."""
    attains: bool
    """With every seed: 99 % of the interactive requests, and every deadline."""
    gpu_hours: float
    per_gpu_s: float
    """Finished requests per GPU and second."""
    ceiling_per_gpu_s: float | None
    """Requests of this workload per GPU and second at the physical ceiling; None: it was not computed."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Ours over theirs on one workload."""

    cell: str
    ours: float
    theirs: float
    gain: float
    """As a share: of attainment in points / 100, of GPUs those saved."""
    ceiling: float | None
    """The most that it could be there."""

    @property
    def ratio(self) -> float | None:
        """Ours over theirs; None where theirs is nothing."""
        return self.ours / self.theirs if self.theirs else None


@dataclass(frozen=True, slots=True)
class Headline:
    """One claim of the paper."""

    claim: str
    published: float
    """As a share."""
    unit: str
    better: str
    """What a gain is called, after the unit."""
    worse: str
    """And a loss."""
    form: Callable[[float], str]
    """How one side's figure is shown."""
    gain: Callable[[Served, Served], Gain | None]
    """Of ours over theirs on the same workload; None: it says nothing there."""

    def told(self, gain: float, form: str = ".0f") -> str:
        """A gain, or a loss, in words."""
        return f"{100 * abs(gain):{form}} {self.unit} {self.worse if gain < 0 else self.better}"


def _attainment(ours: Served, theirs: Served) -> Gain:
    return Gain(
        ours.cell, ours.attained, theirs.attained, ours.attained - theirs.attained, 1.0 - theirs.attained
    )


def _throughput(ours: Served, theirs: Served) -> Gain | None:
    if not theirs.per_gpu_s:
        return None
    ceiling = None if theirs.ceiling_per_gpu_s is None else theirs.ceiling_per_gpu_s / theirs.per_gpu_s - 1
    return Gain(ours.cell, ours.per_gpu_s, theirs.per_gpu_s, ours.per_gpu_s / theirs.per_gpu_s - 1, ceiling)


def _gpus(ours: Served, theirs: Served) -> Gain | None:
    if not ours.attains or not theirs.gpu_hours:
        return None
    ceiling = theirs.ceiling_per_gpu_s and 1 - theirs.per_gpu_s / theirs.ceiling_per_gpu_s
    return Gain(ours.cell, ours.gpu_hours, theirs.gpu_hours, 1 - ours.gpu_hours / theirs.gpu_hours, ceiling)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _plain(value: float) -> str:
    return f"{value:.2f}"


HEADLINES = (
    Headline("SLO attainment", 0.90, "points", "higher", "lower", _percent, _attainment),
    Headline("request throughput per GPU", 3.00, "%", "higher", "lower", _plain, _throughput),
    Headline("GPU-hours", 0.70, "%", "fewer", "more", _plain, _gpus),
)
"""As published: up to 90 % higher, up to 300 % higher, up to 70 % fewer."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A headline against one baseline."""

    headline: Headline
    against: str
    gains: tuple[Gain, ...]
    """On every workload that tells, the largest first."""

    @property
    def largest(self) -> Gain | None:
        """None: no workload tells."""
        return self.gains[0] if self.gains else None

    @property
    def ceiling(self) -> float | None:
        """The most that any workload allows; None: it is not known of each."""
        known = [gain.ceiling for gain in self.gains if gain.ceiling is not None]
        return max(known) if known and len(known) == len(self.gains) else None

    @property
    def verdict(self) -> Verdict:
        """Met, not met though it might be, not reachable, or no figure."""
        if self.largest is None:
            return "no figure"
        if self.largest.gain >= self.headline.published:
            return "met"
        if self.ceiling is not None and self.ceiling < self.headline.published:
            return "not reachable"
        return "not met"

    @property
    def why(self) -> str:
        """The ceiling, in words."""
        if self.largest is None:
            return "no workload of which both have figures" + (
                " and which ours attains" if self.headline.gain is _gpus else ""
            )
        if self.ceiling is None:
            return ""
        most = self.headline.told(self.ceiling)
        if self.verdict == "not reachable":
            return (
                f"not reachable with this calibration, ceiling {most} over this baseline on these workloads"
            )
        return f"ceiling {most} over this baseline on these workloads"

    def finding(self) -> Finding:
        """The same as a line of the report's beginning."""
        headline, largest = self.headline, self.largest
        found = "nothing to compare"
        if largest is not None:
            found = f"{headline.told(largest.gain)} at the most ({largest.cell})"
        return Finding(
            f"{headline.claim} against {self.against}",
            f"up to {headline.told(headline.published)}",
            found,
            self.verdict,
            self.why,
        )


def judged(served: Sequence[Served], ours: str, against: str) -> tuple[Judged, ...]:
    """Every headline of one policy against one baseline, on the workloads that both have served."""
    mine = {each.cell: each for each in served if each.who == ours}
    theirs = [each for each in served if each.who == against and each.cell in mine]
    found = []
    for headline in HEADLINES:
        gains = [headline.gain(mine[each.cell], each) for each in theirs]
        ranked = sorted((gain for gain in gains if gain is not None), key=lambda gain: -gain.gain)
        found.append(Judged(headline, against, tuple(ranked)))
    return tuple(found)


def as_well(served: Sequence[Served], ours: str) -> tuple[str, ...]:
    """A sentence for each workload where somebody else attains with about as few GPU-hours, or fewer."""
    told = []
    for mine in served:
        if mine.who != ours:
            continue
        others = [
            each
            for each in served
            if each.cell == mine.cell
            and each.who != ours
            and each.attains
            and (not mine.attains or each.gpu_hours <= _AS_WELL * mine.gpu_hours)
        ]
        for each in sorted(others, key=lambda each: each.gpu_hours):
            beside = "" if mine.attains else ", and does not attain"
            told.append(
                f"{mine.cell}: {each.who} attains with {each.gpu_hours:.2f} GPU-hours, "
                f"{ours} takes {mine.gpu_hours:.2f}{beside}."
            )
    return tuple(told)
