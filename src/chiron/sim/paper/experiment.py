"""What an experiment is: cases to simulate, and a section that tells what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.sections import Section

REPORTED_SEEDS = (101, 102, 103, 104, 105)
"""Seeds that figures are reported on; nothing is chosen by what they show."""
TUNING_SEEDS = range(1, 61)
"""Seeds on which thresholds may be searched."""


class SkippedError(Exception):
    """An experiment that cannot be run with what was given; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    name: str
    seeds: int | None = None
    """Reported seeds of every experiment; None: as many as each thinks right."""
    every_goal: bool = False
    """Also the rows of the goals that take longer than all the rest."""

    QUICK: ClassVar[Size]
    """About five minutes on two cores, all experiments together."""
    FULL: ClassVar[Size]
    """About an hour on two cores."""

    @property
    def quick(self) -> bool:
        """Few points, one seed, short horizons."""
        return self.name == "quick"

    def reported(self, quick: int, full: int) -> tuple[int, ...]:
        """Reported seeds: so many of them at each size, or what was asked for."""
        count = self.seeds or (quick if self.quick else full)
        return tuple(range(REPORTED_SEEDS[0], REPORTED_SEEDS[0] + count))


Size.QUICK = Size("quick")
Size.FULL = Size("full")


def _no_more(_size: Size, _outcomes: Sequence[Outcome]) -> Sequence[Case]:
    return ()


@dataclass(frozen=True, slots=True)
class Later:
    """About what later stages will ask for."""

    runs: int
    requests: float | None = None
    """Simulated, in all of them; None: as many a run as the mean of the first ones."""


def _nothing(_size: Size, _traces: Path | None) -> str:
    return ""


def _none_later(_size: Size) -> Later:
    return Later(0)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment of the evaluation."""

    name: str
    """What `--only` calls it: lower-case letters, digits and hyphens."""
    title: str
    shows: str
    """What it shows, in a sentence."""
    cases: Callable[[Size, Path | None], Sequence[Case]]
    """The first runs, given the size and the folder of production traces. Raises SkippedError."""
    tell: Callable[[Sequence[Outcome]], Section]
    """The section. It gets the cases that ran, of all stages, in the order in which they were asked for: a
    case that failed, or for which no fixed fleet attains, is not among them, and there may be none."""
    next_cases: Callable[[Size, Sequence[Outcome]], Sequence[Case]] = _no_more
    """Further runs, made from the outcomes so far, once these are all there; () when there are none to make.
    A case that was asked for before is not run again."""
    later: Callable[[Size], Later] = _none_later
    """About what `next_cases` will ask for, for the plan."""
    left_out: Callable[[Size, Path | None], str] = _nothing
    """What of it is not run at this size, without these traces, and what would run it; "": nothing."""
