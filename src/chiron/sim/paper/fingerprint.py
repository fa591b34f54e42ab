"""Tells whether a run was made before: a digest of everything that its figures depend on."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import chiron.engine
import chiron.policy
import chiron.sim
from chiron.sim.paper.case import Case, simulated
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario

_PACKAGES = (chiron.policy, chiron.engine, chiron.sim)
_PAPER = Path(__file__).parent


def fingerprint(case: Case) -> str:
    """The digest of one case: scenario with its profiles and traces, policy, seed, and the code that runs it.

    Cases of different experiments that are the same run have the same one. Raises OSError for a trace that
    cannot be read.
    """
    plain = {
        "scenario": _scenario(case.scenario),
        "policy": canonical(case.policy),
        "seed": case.seed,
        "timeline": case.timeline,
        "measure": f"{case.measure.__module__}:{case.measure.__qualname__}",
        # A measure of its own may look at the labels.
        "labels": None if case.measure is simulated else dict(case.labels),
        "code": code_digest(),
        "measured_by": _digest_of_file(Path(inspect.getfile(case.measure))),
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


@cache
def code_digest() -> str:
    """Of the sources of the policies, the engine model and the simulator, and numpy's version.

    What only arranges runs and tells of them, in this package, is left out: the figures do not depend on it.
    """
    folders = {package.__name__: Path(inspect.getfile(package)).parent for package in _PACKAGES}
    return digest_of_sources(folders, _PAPER, np.__version__)


def digest_of_sources(folders: Mapping[str, Path], left_out: Path, more: str) -> str:
    """Of all Python files below the folders, by their names there, but for those below `left_out`."""
    digest = hashlib.sha256(more.encode())
    for name, folder in folders.items():
        for file in sorted(folder.rglob("*.py")):
            if not file.is_relative_to(left_out):
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"\n{name} {file.relative_to(folder)} {content}".encode())
    return digest.hexdigest()


def scenario_digest(scenario: Scenario) -> str:
    """Of what is served on what, whatever the seed."""
    return hashlib.sha256(json.dumps(_scenario(scenario), sort_keys=True).encode()).hexdigest()


def canonical(value: Any) -> Any:
    """The value as JSON has it: dataclasses as objects of all their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(canonical(key)): canonical(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [canonical(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} has no canonical form")


def _scenario(scenario: Scenario) -> Any:
    """Without its own policy and seed, which a case replaces; a trace is its content, not its name."""
    bare = dataclasses.replace(scenario.with_seed(0), file=Path(), policy=PolicyChoice(), replays=())
    plain = {field.name: getattr(bare, field.name) for field in dataclasses.fields(bare)}
    del plain["file"]
    found = canonical(plain)
    found["replays"] = [
        canonical(dataclasses.replace(replay, file=_digest_of_file(scenario.file.parent / replay.file)))
        for replay in scenario.replays
    ]
    return found


def _digest_of_file(file: Path) -> str:
    about = file.stat()
    return _digest_of_content(file, about.st_mtime_ns, about.st_size)


@cache
def _digest_of_content(file: Path, _modified_ns: int, _size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
