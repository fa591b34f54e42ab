"""Reads what the agents put on record: neither terms nor what is wanted of an instance may go back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_INTERVAL_S = 0.5


class Journals:
    """Looks at the agents' journals again and again."""

    def __init__(self, files: Sequence[Path], log: Callable[[str], None]) -> None:
        self._files = files
        self._log = log
        self._newest: dict[tuple[Path, str], int] = {}
        self.breaches: dict[str, None] = {}
        """What went back, one line each, in the order of its finding."""

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_INTERVAL_S)

    def look(self) -> None:
        """Reads every journal once. Blocks while it reads."""
        for file in self._files:
            last: dict[str, int] = {}
            for name, number in _numbers(file):
                self._compare(file, name, last.get(name, 0), number)
                last[name] = number
            # A journal is written anew now and then, and then tells the newest alone.
            for name, number in last.items():
                self._compare(file, name, self._newest.get((file, name), 0), number)
                self._newest[file, name] = number

    def _compare(self, file: Path, name: str, before: int, number: int) -> None:
        text = f"{file.parent.name}: {name} went back from {before} to {number}"
        if number < before and text not in self.breaches:
            self.breaches[text] = None
            self._log(text)


def _numbers(file: Path) -> Iterator[tuple[str, int]]:
    """Each term and each instance's generation, in the order of their writing."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return
    for line in lines:
        for entry in json.loads(line.partition(" ")[2]):
            found = _number(entry)
            if found is not None:
                yield found


def _number(entry: Any) -> tuple[str, int] | None:
    if "term" in entry:
        return "term", int(entry["term"]["term"])
    if "wanted" in entry:
        level = entry["wanted"]["level"]
        return f"generation of {level['instance_id']}", int(level["generation"])
    return None
