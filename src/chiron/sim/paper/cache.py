"""Runs that are finished, each in a file of its own that appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chiron.sim.paper.case import Figures

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished run."""

    figures: Figures | None
    """None: there are none, for the reason that `missing` tells."""
    missing: str
    experiment: str
    """The one that first asked for it."""
    policy: str
    """Name of the policy that ran, or of the measure where that is one of its own."""
    requests: float
    """Simulated requests that the plan expected."""
    cpu_s: float
    """Processor time that it took."""


class RunCache:
    """A folder of finished runs by their fingerprints."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder. Raises OSError when it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, fingerprint: str) -> Entry | None:
        """The run; None: it is not there, or its file is not one of this version."""
        return _read(self._file(fingerprint))

    def put(self, fingerprint: str, entry: Entry) -> None:
        """Keeps a run. A reader, or whoever comes after a crash, sees all of it or nothing."""
        write_whole(self._file(fingerprint), json.dumps({"format": _FORMAT, **asdict(entry)}))

    def entries(self) -> Iterator[Entry]:
        """All that are there, those of other versions of the code included."""
        for file in sorted(self._folder.glob("*.json")):
            entry = _read(file)
            if entry is not None:
                yield entry

    def _file(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.json"


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that its name never stands for half of it. Raises OSError."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _read(file: Path) -> Entry | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("format") != _FORMAT:
            return None
        return Entry(**found)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        # A file that somebody else left there is as good as none: the run is made again.
        return None
