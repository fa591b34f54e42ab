"""The one line that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

ERRORS = ("lost", "duplicated", "token_errors", "gpu_conflicts", "unresolved")
"""Columns that must be 0."""


@dataclass(slots=True)
class Report:
    """Counts of one run; docs/soak.md explains each column."""

    seed: int
    seconds: float
    """The schedule's length; the load goes on until the last fault is over."""
    faults: int = 0
    skipped: int = 0
    late: int = 0
    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    not_resumed: int = 0
    failed: int = 0
    retried: int = 0
    resumed: int = 0
    shed: int = 0
    tokens: int = 0
    lost: int = 0
    duplicated: int = 0
    token_errors: int = 0
    gpu_conflicts: int = 0
    unresolved: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Faults by act and target."""

    @property
    def clean(self) -> bool:
        """True when every error column is 0."""
        return not any(getattr(self, name) for name in ERRORS)

    def line(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(asdict(self))
