"""Finds stop strings in streamed text, wherever tokens happen to split it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Releases text as soon as it cannot be part of a stop string."""

    __slots__ = ("_held", "_include", "_longest", "_stops", "match")

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.match = ""
        """The stop string that was found; empty: none yet."""

    def add(self, text: str) -> str:
        """The text that may go out now; once `match` is set, all that will ever go out has gone."""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.match = min(found)
            self._held = ""
            return text[: end if self._include else start]
        keep = next(
            (
                length
                for length in range(min(self._longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-length:]) for stop in self._stops)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text that was held for a match that never came."""
        held, self._held = self._held, ""
        return held
