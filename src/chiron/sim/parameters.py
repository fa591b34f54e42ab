"""Named numbers that policies are set to, from a scenario's [policy.parameters] or `--set NAME=VALUE`."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from chiron.config import ConfigError

T = TypeVar("T")


class ParameterError(ConfigError):
    """A parameter that the policy does not have or does not take.

    Attributes:
        name: of the parameter; of a setting that does not go with it, if that is what is wrong.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


class Parameters(Mapping[str, float]):
    """Numbers by name. Frozen and hashable; the order in which they were given does not matter."""

    __slots__ = ("_pairs",)

    def __init__(self, given: Mapping[str, float] | Iterable[tuple[str, float]] = ()) -> None:
        """Raises ParameterError for a value that is no number."""
        pairs = dict(given)
        for name, number in pairs.items():
            if not isinstance(number, int | float) or math.isnan(number):
                raise ParameterError(name, f"{name!r} must be a number, not {number!r}")
        self._pairs = tuple(sorted((name, float(number)) for name, number in pairs.items()))

    def __getitem__(self, name: str) -> float:
        for known, number in self._pairs:
            if known == name:
                return number
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._pairs])

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"Parameters({dict(self._pairs)})"

    def __str__(self) -> str:
        """NAME=VALUE, separated by commas."""
        return ",".join(f"{name}={number:.12g}" for name, number in self._pairs)

    def over(self, others: Mapping[str, float]) -> Parameters:
        """These, and of the others those that these do not name."""
        return Parameters({**others, **self})


NO_PARAMETERS = Parameters()


def parsed(assignments: Iterable[str]) -> Parameters:
    """NAME=VALUE each. Raises ParameterError."""
    found: dict[str, float] = {}
    for text in assignments:
        name, equals, number = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise ParameterError(name, f"must be NAME=VALUE, not {text!r}")
        if name in found:
            raise ParameterError(name, f"{name!r} is there twice")
        try:
            found[name] = float(number)
        except ValueError:
            raise ParameterError(name, f"{name!r} must be a number, not {number!r}") from None
    return Parameters(found)


def settable(settings: object) -> Mapping[str, type]:
    """The fields of a settings dataclass, or of an object of it, that a number can set, and their types."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind)
    found = {field.name: _number(hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in found.items() if hint is not None}


def _number(hint: Any) -> type | None:
    if isinstance(hint, types.UnionType):
        hints = [part for part in typing.get_args(hint) if part is not types.NoneType]
        return _number(hints[0]) if len(hints) == 1 else None
    return hint if hint in (float, int, bool) else None


def adjusted(settings: T, parameters: Mapping[str, float]) -> T:
    """The settings with these fields changed, all of which are settable.

    Raises ParameterError for a value that is of the wrong kind, or that the settings' own class refuses.
    """
    kinds = settable(settings)
    changes = {name: _as(kinds[name], name, number) for name, number in parameters.items()}
    try:
        return dataclasses.replace(settings, **changes) if changes else settings  # type: ignore[type-var]
    except ValueError as error:
        # A message of a settings class begins with the name of the field that is wrong.
        raise ParameterError(str(error).partition(" ")[0].rstrip(":"), str(error)) from error


def _as(kind: type, name: str, number: float) -> float:
    if kind is float:
        return number
    if kind is bool and number in (0.0, 1.0):
        return bool(number)
    if kind is int and number.is_integer():
        return int(number)
    asked = "0 or 1" if kind is bool else "a whole number"
    raise ParameterError(name, f"{name!r} must be {asked}, not {number:g}")
