"""Profiles of one's own: a TOML file with what a model costs on GPUs that no profile is shipped for."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiron.config import ConfigError
from chiron.engine import InvalidLimitError, Profile, UnknownProfileError, get_profile
from chiron.sim.tables import only, value

_SUFFIX = ".toml"
_PLAIN: Mapping[str, type] = {
    "name": str,
    "gpus": int,
    "kv_bytes_per_token": int,
    "kv_read_bytes_per_s": float,
    "kv_capacity_tokens": int,
    "block_size": int,
    "max_context_tokens": int,
    "default_step_token_budget": int,
    "load_s": float,
}
_KEYS = (*_PLAIN, "step_time_ms", "wake_s", "like", "step_time_factor")


def load_profile(name: str, folder: Path) -> Profile:
    """The profile of this name, or of the file of this path, which ends in .toml.

    Args:
        name: of a shipped profile, or a path.
        folder: from which a relative path goes.

    Raises:
        UnknownProfileError: there is none of this name.
        ConfigError: the file cannot be used; the text names it and the key.
    """
    return read_profile(folder / name) if name.endswith(_SUFFIX) else get_profile(name)


def read_profile(file: Path) -> Profile:
    """Reads a profile whose keys are the fields of `Profile`, all of them or those that differ from `like`.

    `like` names a shipped profile that gives what the file leaves out; `step_time_factor` multiplies every
    step time. Raises ConfigError naming the file and the key.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    where = str(file)
    only(table, _KEYS, where)
    given = {key: value(table[key], kind, key, where) for key, kind in _PLAIN.items() if key in table}
    if "step_time_ms" in table:
        given["step_time_ms"] = _points(table["step_time_ms"], where)
    if "wake_s" in table:
        given["wake_s"] = _numbers(table["wake_s"], "wake_s", where)
    if "name" not in given:
        raise ConfigError(f"{where}: key 'name' is required")
    try:
        profile = _whole(given, table, where)
        factor = value(table.get("step_time_factor", 1.0), float, "step_time_factor", where)
        if not 0 < factor < float("inf"):
            raise ConfigError(f"{where}: 'step_time_factor' must be above 0, not {factor:g}")
        points = tuple((tokens, factor * milliseconds) for tokens, milliseconds in profile.step_time_ms)
        return profile.replace(step_time_ms=points)
    except InvalidLimitError as error:
        raise ConfigError(f"{where}: {error}") from error


def gpu_type_of(profile: Profile) -> str:
    """The GPU type that a profile's name tells: what follows the @, less the number of GPUs. "": none."""
    _, at, gpus = profile.name.rpartition("@")
    return re.sub(r"^\d+x", "", gpus) if at else ""


def _whole(given: dict[str, Any], table: Mapping[str, Any], where: str) -> Profile:
    if "like" in table:
        like = value(table["like"], str, "like", where)
        try:
            return get_profile(like).replace(**given)
        except UnknownProfileError as error:
            raise ConfigError(f"{where}: 'like': {error}") from error
    for field in dataclasses.fields(Profile):
        if field.name not in given and field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}: key {field.name!r} is required without 'like'")
    return Profile(**given)


def _points(given: Any, where: str) -> tuple[tuple[int, float], ...]:
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 2 for point in given):
        raise ConfigError(f"{where}: 'step_time_ms' must be an array of [tokens, milliseconds]")
    return tuple(
        (
            value(tokens, int, "step_time_ms", where),
            value(milliseconds, float, "step_time_ms", where),
        )
        for tokens, milliseconds in given
    )


def _numbers(given: Any, key: str, where: str) -> tuple[float, ...]:
    if not isinstance(given, list):
        raise ConfigError(f"{where}: {key!r} must be an array of numbers")
    return tuple(value(each, float, key, where) for each in given)
