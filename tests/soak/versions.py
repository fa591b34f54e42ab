"""What each model has been asked to be, one version after the other, and which of them may still answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SEED_STEP = 1000


class Versions:
    """Versions count from 0 for each model; one differs from another by the seed of its weights."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """`models`: name → the sim engine's arguments of version 0."""
        self._arguments = {name: [dict(arguments)] for name, arguments in models.items()}
        self._live = {name: {0} for name in models}

    @property
    def models(self) -> list[str]:
        """The models' names."""
        return list(self._arguments)

    def arguments(self, model: str, version: int) -> Mapping[str, Any]:
        """The engine's arguments."""
        return self._arguments[model][version]

    def newest(self, model: str) -> int:
        """The version made last."""
        return len(self._arguments[model]) - 1

    def live(self, model: str) -> frozenset[int]:
        """Versions that may answer now."""
        return frozenset(self._live[model])

    def make(self, model: str) -> int:
        """A new version, which may answer from now on."""
        first, number = self._arguments[model][0], len(self._arguments[model])
        self._arguments[model].append({**first, "seed": first["seed"] + _SEED_STEP * number})
        self._live[model].add(number)
        return number

    def settled(self, model: str, version: int) -> None:
        """No instance of another version is left."""
        self._live[model] = {version}

    def since(self, model: str, live: frozenset[int], newest: int) -> list[int]:
        """Versions that may have answered from a moment on.

        Args:
            model: its name.
            live: those that could at that moment.
            newest: the one made last by then.
        """
        return sorted({*live, *range(newest + 1, self.newest(model) + 1)})
