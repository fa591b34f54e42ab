"""Fills a frozen dataclass from a TOML file, CHIRON_* variables and explicit overrides, later ones winning.

A config class is a frozen dataclass whose fields have defaults or are required, with a docstring under each.
Types: bool, int, float, str, Path, tuple[str, ...], an Enum (by value), nested config dataclasses
(TOML tables).
`__post_init__` may raise ValueError("key: what is wrong").
"""

from __future__ import annotations

import dataclasses
import enum
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SECTIONS = ("controller", "router", "agent", "worker")
"""Tables that one file may hold, so that all services of a cluster can share it."""
SHARED = ("auth", "tls")
"""Tables that count for every service; `[router.tls]` counts over `[tls]` for a router."""
_NAMES: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a string", Path: "a path"}
_UNITS: Mapping[str, str] = {"_bytes": "bytes", "_ms": "milliseconds", "_s": "seconds"}
"""How keys end → what they count."""


class ConfigError(Exception):
    """A configuration that cannot be used; one line that names the key and where it came from."""


def override_variable(section: str, key: str) -> str:
    """The environment variable that sets `key`, e.g. CHIRON_ROUTER_LISTEN."""
    return f"CHIRON_{section}_{key}".upper().replace(".", "_").replace("-", "_")


def load_config(
    kind: type[T],
    section: str,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """Makes a `kind` from the TOML table `[section]`.

    Args:
        kind: the config dataclass.
        section: table of the file and part of the variables' names, e.g. `router`.
        file: TOML file; None: none. Other services' tables in it are left alone; any other table is an error.
        environ: variables; None: the process's own.
        overrides: dotted key → value (a string is parsed as in the environment); None values are ignored.

    Raises:
        ConfigError: unreadable file, unknown table or key, missing key, a value of the wrong type or range.
    """
    environ = os.environ if environ is None else environ
    origin: dict[str, str] = {}
    values: dict[str, Any] = {}
    keys = _flatten(kind)
    shared = [name for name in SHARED if any(key.startswith(f"{name}.") for key in keys)]
    if file is not None:
        document = _read_document(file)
        for name in shared:
            for key, value in _flat_table({name: document.get(name, {})}, keys).items():
                values[key], origin[key] = value, f"{file} [{name}]"
        for key, value in _flat_table(document.get(section, {}), keys).items():
            values[key], origin[key] = value, f"{file} [{section}]"
    for name in shared:
        named = {override_variable(*key.split(".", 1)): key for key in keys if key.startswith(f"{name}.")}
        for variable, text in environ.items():
            if variable in named:
                values[named[variable]], origin[named[variable]] = text, variable
            elif variable.startswith(override_variable(name, "")):
                known = ", ".join(sorted(key.removeprefix(f"{name}.") for key in named.values()))
                raise ConfigError(f"{variable}: unknown variable; [{name}] has {known}")
    variables = {override_variable(section, key): key for key in keys}
    prefix = override_variable(section, "")
    for name, text in environ.items():
        if name in variables:
            values[variables[name]], origin[variables[name]] = text, name
        elif name.startswith(prefix):
            raise ConfigError(f"{name}: unknown variable; [{section}] has {', '.join(sorted(keys))}")
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key], origin[key] = value, "command line"
    for key in values:
        if key not in keys:
            raise ConfigError(f"{origin[key]}: unknown key {key!r}; known are {', '.join(sorted(keys))}")
    parsed = {key: _convert(value, keys[key], key, origin[key]) for key, value in values.items()}
    return _build(kind, parsed, "", section)


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    for key, value in document.items():
        if key not in (*SECTIONS, *SHARED):
            what = f"table [{key}]" if isinstance(value, dict) else f"key {key!r} outside any table"
            raise ConfigError(f"{file}: unknown {what}; known tables are {', '.join((*SECTIONS, *SHARED))}")
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: [{key}] must be a table")
    return document


def _flatten(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            keys.update(_flatten(hint, f"{prefix}{field.name}."))
        else:
            keys[prefix + field.name] = hint
    return keys


def _flat_table(table: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and any(known.startswith(f"{prefix}{key}.") for known in keys):
            flat.update(_flat_table(value, keys, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _build(kind: type[T], parsed: Mapping[str, Any], prefix: str, section: str) -> T:
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[field.name] = _build(hint, parsed, f"{key}.", section)
        elif key in parsed:
            arguments[field.name] = parsed[key]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"[{section}]: key {key!r} is required (or {override_variable(section, key)})")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ConfigError(f"[{section}] {prefix}{error}") from error


def _convert(value: Any, hint: Any, key: str, origin: str) -> Any:
    try:
        return _parse(value, hint, _unit(key))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: {key!r}: {error}") from error


def _unit(key: str) -> str:
    """What a number under this key counts, as its name says; empty: it does not."""
    if "_per_" in key:
        return ""
    return next((f" of {unit}" for end, unit in _UNITS.items() if key.endswith(end)), "")


def _parse(value: Any, hint: Any, unit: str = "") -> Any:
    if isinstance(hint, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return None if value in (None, "") else _parse(value, inner[0], unit)
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise TypeError(f"expected a list, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_parse(part.strip() if isinstance(part, str) else part, item) for part in parts)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
            return value.lower() in ("true", "1")
        raise ValueError(f"expected true or false, not {value!r}")
    if isinstance(value, bool):
        raise ValueError(f"expected {_name(hint)}{unit}, not {value!r}")
    if (hint is float and isinstance(value, int | float | str)) or (
        hint is int and isinstance(value, int | str)
    ):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f"expected {_name(hint)}{unit}, not {value!r}") from None
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(
                f"expected one of {', '.join(str(m.value) for m in hint)}, not {value!r}"
            ) from None
    raise ValueError(f"expected {_name(hint)}{unit}, not {value!r}")


def _name(hint: Any) -> str:
    return _NAMES.get(hint) or str(getattr(hint, "__name__", hint))
