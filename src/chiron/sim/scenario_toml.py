"""Writes a scenario as the TOML file that `chiron.sim.scenario.read_scenario` reads back as the same one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chiron.engine import Profile, get_profile
from chiron.policy.words import Role
from chiron.sim.live_times import LiveTimes
from chiron.sim.scenario import Scenario
from chiron.sim.settings import SimModel
from chiron.sim.sources import Replay

_ENGINE = ("max_context_tokens", "kv_capacity_tokens", "block_size", "default_step_token_budget")
"""What of a profile a scenario may change, beside speculation."""
_NOT_OF_HEAD = ("file", "settings", "traffic", "backlogs", "replays", "policy")
_TABLES = ("queues", "telemetry", "migration")
"""Settings that have a table of their own, by its name."""
_NOT_OF_SIMULATION = ("models", "gpu_types", "gpu_budget", "seed", "faults", "live", *_TABLES)


class UnwritableError(ValueError):
    """A scenario made in code has what no scenario file can say; the text names it."""


def scenario_toml(scenario: Scenario) -> str:
    """The text of the file, without what has its default; files of traces are absolute.

    Raises UnwritableError.
    """
    settings = scenario.settings
    if settings.live != LiveTimes():
        raise UnwritableError("live: times of a recorded cluster")
    lines = [*_fields(scenario, *_NOT_OF_HEAD), f"seed = {settings.seed}", "", "[cluster]"]
    if settings.gpu_budget:
        lines.append(f"gpu_budget = {settings.gpu_budget}")
    for kind in settings.gpu_types:
        lines += ["[[cluster.gpus]]", *_fields(kind)]
    for model in settings.models:
        lines += ["", f"[models.{_text(model.name)}]", *_model(model)]
    lines += _table("simulation", _fields(settings, *_NOT_OF_SIMULATION))
    for name in _TABLES:
        lines += _table(name, _fields(getattr(settings, name)))
    lines += _table("faults", _fields(settings.faults, "planned"))
    for fault in settings.faults.planned:
        lines += ["[[faults.planned]]", *_fields(fault)]
    for source in scenario.traffic:
        lines += ["", "[[traffic]]", *_fields(source)]
    for backlog in scenario.backlogs:
        lines += ["", "[[backlog]]", *_fields(backlog)]
    for replay in scenario.replays:
        lines += ["", "[[replay]]", *_fields(_absolute(replay, scenario.file.parent))]
    if scenario.policy.settings is not None:
        raise UnwritableError("policy: settings of Chiron's autoscaler")
    lines += _table("policy", _fields(scenario.policy, "settings"))
    return "\n".join(lines) + "\n"


def _table(name: str, fields: list[str]) -> list[str]:
    return ["", f"[{name}]", *fields] if fields else []


def _fields(owner: Any, *left_out: str) -> list[str]:
    """A line for each field that has not its default."""
    return [
        f"{_key(name)} = {_value(name, value)}" for name, value in _changed(owner) if name not in left_out
    ]


def _changed(owner: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or value != default:
            yield field.name, value


def _model(model: SimModel) -> list[str]:
    lines = [f"profile = {_value('profile', model.profile.name)}"]
    initial = ", ".join(f"{Role(role).name.lower()} = {count}" for role, count in model.initial.items())
    lines.append(f"initial = {{ {initial} }}")
    lines += _fields(model, "name", "profile", "initial")
    engine = _engine(model.profile)
    if engine:
        lines.append("engine = { " + ", ".join(f"{key} = {value}" for key, value in engine.items()) + " }")
    return lines


def _engine(profile: Profile) -> Mapping[str, str]:
    """How the profile differs from the registered one of its name."""
    registered = get_profile(profile.name)
    found: dict[str, str] = {}
    for field in dataclasses.fields(profile):
        value = getattr(profile, field.name)
        if value == getattr(registered, field.name):
            continue
        if field.name == "speculation" and profile.speculation is not None:
            found["draft_tokens"] = str(profile.speculation.draft_tokens)
            found["acceptance_rate"] = _value("acceptance_rate", profile.speculation.acceptance_rate)
        elif field.name in _ENGINE:
            found[field.name] = _value(field.name, value)
        else:
            raise UnwritableError(f"profile {profile.name}: {field.name} is not that of the registered one")
    return found


def _absolute(replay: Replay, folder: Path) -> Replay:
    return dataclasses.replace(replay, file=str((folder / replay.file).absolute()))


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else _text(name)


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return (
            "{ "
            + ", ".join(f"{_key(str(name))} = {_value(key, each)}" for name, each in value.items())
            + " }"
        )
    raise UnwritableError(f"{key}: {value!r}")


def _text(text: str) -> str:
    # JSON's escapes are those of a basic string, but that TOML wants DEL escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
