"""What came out of all experiments: sections for the report, and one JSON file with every case."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiron.sim.paper.cache import write_whole
from chiron.sim.paper.case import Figures
from chiron.sim.paper.commands import Commands
from chiron.sim.paper.experiment import Size
from chiron.sim.paper.fingerprint import code_digest
from chiron.sim.paper.plan import Job
from chiron.sim.paper.report import Part
from chiron.sim.paper.runner import Ended, Track, cause
from chiron.sim.paper.sections import Section

_MISSING_NAMED = 10
"""Cases without figures that a section names; the JSON names all."""
_ONLY_IN_CACHE = ("timeline", "actions")
"""Figures that are left out of the JSON, for there may be thousands of each in a run."""


@dataclass(frozen=True, slots=True)
class Told:
    """One experiment's section."""

    track: Track
    skipped: str
    """Why nothing was run; "": it was."""
    section: Section | None
    """None: it was skipped, or could not be told."""
    failure: str = ""
    """Why it could not be told, or made no further cases."""


def tell_all(tracks: Sequence[Track], skipped: Mapping[str, str], commands: Commands) -> list[Told]:
    """Every experiment's section, with a word on cases that are missing.

    Args:
        tracks: what ran.
        skipped: experiment's name → why nothing of it was run.
        commands: for the rows.
    """
    found = []
    for track in tracks:
        reason = skipped.get(track.experiment.name, "")
        if reason:
            found.append(Told(track, reason, None))
            continue
        try:
            section = track.experiment.tell(track.outcomes(commands))
        except Exception as error:
            found.append(Told(track, "", None, cause(error)))
            continue
        missing = tuple(_missing(track))
        found.append(
            Told(
                track,
                "",
                dataclasses.replace(section, paragraphs=(*section.paragraphs, *missing)),
                track.failure,
            )
        )
    return found


def unfinished(told: Sequence[Told]) -> str:
    """What an evaluation that was ended early has not run, by experiment; "": nothing is missing."""
    found = []
    for each in told:
        track = each.track
        count = sum(job.fingerprint not in track.ended for job in track.jobs)
        if count or not (track.complete or track.failure):
            some = f"{count} of {len(track.jobs)} runs" if count else "further runs"
            found.append(f"{track.experiment.name}: {some}")
    return ", ".join(found)


def _missing(track: Track) -> Iterator[str]:
    if not (track.complete or track.failure):
        yield "Ended early: what is told here rests on the runs that were finished."
    reasons: dict[str, list[str]] = {}
    for job in track.jobs:
        reason = _reason(track.ended.get(job.fingerprint))
        if reason:
            reasons.setdefault(reason, []).append(job.case.key)
    for reason, keys in reasons.items():
        more = f" and {len(keys) - _MISSING_NAMED} more" if len(keys) > _MISSING_NAMED else ""
        named = "; ".join(keys[:_MISSING_NAMED])
        yield f"Without figures: {named}{more}: {reason}."


def _reason(ended: Ended | None) -> str:
    if ended is None:
        return "was not run"
    return ended.failure if ended.entry is None else ended.entry.missing


def parts(told: Sequence[Told]) -> tuple[Part, ...]:
    """Every experiment's part of the report; of one that was not told, why."""
    found = []
    for each in told:
        experiment = each.track.experiment
        section = each.section
        if section is None:
            why = f"Not run: {each.skipped}." if each.skipped else f"Could not be told: {each.failure}."
            section = Section(experiment.title, (why,))
        found.append(Part(experiment.name, section, experiment.shows))
    return tuple(found)


def failures(told: Sequence[Told]) -> list[str]:
    """What failed, each with its cause, in one line."""
    found = []
    for each in told:
        name = each.track.experiment.name
        found += [
            f"{name} {job.case.key}: {ended.failure}"
            for job in each.track.jobs
            if (ended := each.track.ended.get(job.fingerprint)) is not None and ended.failure
        ]
        if each.failure:
            found.append(f"{name}: {each.failure}")
    return found


def results_json(told: Sequence[Told], size: Size, commands: Commands) -> dict[str, Any]:
    """Everything that was found, with every seed and parameter; no times, so that the same runs give the
    same bytes whatever ran them."""
    return {
        "size": size.name,
        "code": code_digest(),
        "experiments": [
            {
                "name": each.track.experiment.name,
                "title": each.track.experiment.title,
                "shows": each.track.experiment.shows,
                "skipped": each.skipped or None,
                "failure": each.failure or None,
                "cases": [_case(job, each.track, commands) for job in each.track.jobs],
            }
            for each in told
        ],
    }


def _case(job: Job, track: Track, commands: Commands) -> dict[str, Any]:
    case, ended = job.case, track.ended.get(job.fingerprint)
    file = commands.scenario_file(case.scenario)
    entry = None if ended is None else ended.entry
    return {
        "key": case.key,
        "labels": dict(case.labels),
        "policy": case.policy.label,
        "seed": case.seed,
        "scenario": None if file is None else str(file.relative_to(commands.out)),
        "command": commands.command(case),
        "cache": f"cache/{job.fingerprint}.json",
        "missing": _reason(ended) or None,
        "figures": None if entry is None or entry.figures is None else _short(entry.figures),
    }


def _short(figures: Figures) -> dict[str, Any]:
    short = {name: value for name, value in figures.items() if name not in _ONLY_IN_CACHE}
    estimator = short.get("estimator")
    if isinstance(estimator, dict):
        short["estimator"] = {name: value for name, value in estimator.items() if name != "waits"}
    return short


def write_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes results.json. Raises OSError."""
    file = folder / "results.json"
    write_whole(file, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return file
