"""Preemptions that the engine chose itself, apart from those that it was told to make. Pure."""

from __future__ import annotations


class OwnPreemptions:
    """The engine's own count holds both kinds, and may take up a commanded one late."""

    def __init__(self) -> None:
        self._commanded = 0
        self._most = 0

    def commanded(self, slots: int) -> None:
        """The engine has put back requests that ran in this many slots because it was told to."""
        self._commanded += slots

    def total(self, counted: int) -> int:
        """Its own preemptions since the start, from its count of all; never less than before."""
        self._most = max(self._most, counted - self._commanded)
        return self._most
