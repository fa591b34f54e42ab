"""Fills dataclasses from TOML tables; every error names the key, the table and the file."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from chiron.config import ConfigError

T = TypeVar("T")


def only(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises ConfigError for a key that is not known."""
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")


def fill(kind: type[T], table: Mapping[str, Any], where: str, **given: Any) -> T:
    """Makes a `kind` from a table.

    Args:
        kind: a dataclass with fields of type bool, int, float, str, a Literal, or optional ones; fields of
            other types must be given.
        table: the keys and values.
        where: file and table, for errors.
        given: fields that the table must not have, with their values.

    Raises:
        ConfigError: unknown or missing key, wrong type, or a value that the class itself refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    hints = typing.get_type_hints(kind)
    only(table, [name for name in fields if name not in given], where)
    arguments: dict[str, Any] = dict(given)
    for name, field in fields.items():
        if name in table:
            arguments[name] = value(table[name], hints[name], name, where)
        elif (
            name not in given
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(f"{where}: key {name!r} is required")
    return build(kind, where, **arguments)


def build(kind: type[T], where: str, /, **arguments: Any) -> T:
    """Makes a `kind`; what it refuses becomes a ConfigError that says where."""
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def value(given: Any, hint: Any, key: str, where: str) -> Any:
    """The value as the type that the hint asks for. Raises ConfigError."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if given not in choices or type(given) is not type(choices[0]):
            raise ConfigError(
                f"{where}: {key!r} must be one of {', '.join(map(str, choices))}, not {given!r}"
            )
        return given
    if hint is float and isinstance(given, int | float) and not isinstance(given, bool):
        if math.isnan(given):
            raise ConfigError(f"{where}: {key!r} must be a number, not {given!r}")
        return float(given)
    if hint in (bool, int, str) and type(given) is hint:
        return given
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if hint not in names:
        raise TypeError(f"{key}: a field of type {hint} cannot be read from a table")
    raise ConfigError(f"{where}: {key!r} must be {names[hint]}, not {given!r}")


def whole(table: Mapping[str, Any], key: str, least: int, where: str) -> int:
    """The whole number of this key; 0 when it is absent. Raises ConfigError for another type, or less."""
    found = table.get(key)
    if found is None:
        return 0
    if type(found) is not int or found < least:
        raise ConfigError(f"{where}: {key!r} must be a whole number >= {least}, not {found!r}")
    return found


def table_of(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The table of this key; an empty one when it is absent. Raises ConfigError."""
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {key!r} must be a table")
    return found


def tables_of(document: Mapping[str, Any], key: str, where: str, header: str = "") -> list[Mapping[str, Any]]:
    """The tables of an array of tables; none when it is absent. Raises ConfigError.

    Args:
        document: what has the key.
        key: its name there.
        where: file and table, for errors.
        header: how a file writes it between [[ and ]]; "": as the key.
    """
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ConfigError(f"{where}: {key!r} must be an array of tables: [[{header or key}]]")
    return found
