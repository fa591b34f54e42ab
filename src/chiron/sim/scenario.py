"""Scenarios: a TOML file that says what is served, on what, and with which promises.

Tables: [cluster] with [[cluster.gpus]], [models.NAME], [[traffic]], [[backlog]], [[replay]], and, when their
defaults do not do, [simulation], [queues], [telemetry], [migration], [faults] with [[faults.planned]], and
[policy]. Keys are the fields of the classes named in docs/simulator.md; any error names the key, the table
and the file.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chiron.config import ConfigError
from chiron.engine import InvalidLimitError, Profile, Speculation, UnknownProfileError
from chiron.policy.disciplines import UnknownDisciplineError, load_discipline
from chiron.policy.words import Role
from chiron.sim import scenario_checks as checks
from chiron.sim.drawing import Reading as Reading
from chiron.sim.drawing import draw
from chiron.sim.drawing import longest as longest
from chiron.sim.live_times import LiveTimes
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.parameters import ParameterError, Parameters
from chiron.sim.policies import POLICIES, PolicyChoice
from chiron.sim.profile_files import load_profile
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.settings import (
    LONGEST_S,
    Fault,
    FaultSettings,
    GpuType,
    SimModel,
    SimSettings,
    TelemetrySettings,
)
from chiron.sim.sources import Backlog, Replay, Traffic
from chiron.sim.tables import fill, only, table_of, tables_of, whole

_KEYS = (
    "name",
    "description",
    "seed",
    "duration_s",
    "output_drift",
    "cluster",
    "models",
    "traffic",
    "backlog",
    "replay",
    "simulation",
    "queues",
    "telemetry",
    "migration",
    "faults",
    "policy",
)
_HEAD = ("name", "description", "duration_s", "output_drift")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario, checked."""

    file: Path
    name: str
    description: str
    duration_s: float
    """Traffic arrives until then; traces and backlogs bring their own times."""
    settings: SimSettings
    traffic: tuple[Traffic, ...] = ()
    backlogs: tuple[Backlog, ...] = ()
    replays: tuple[Replay, ...] = ()
    policy: PolicyChoice = field(default_factory=PolicyChoice)
    output_drift: float = 0.0
    """Share by which output lengths have grown, evenly from 0 to the last arrival; below 0: shrunk."""

    def with_seed(self, seed: int) -> Scenario:
        """The same scenario with another seed, for workload and simulation. Raises ValueError below 0."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, seed=seed))

    def reading(self) -> Reading:
        """Draws the workload of the scenario's seed: see `chiron.sim.drawing.draw`.

        Raises ConfigError for a trace that cannot be used, or a workload without any request.
        """
        settings = self.settings
        sources: tuple[Traffic | Backlog | Replay, ...] = (*self.traffic, *self.backlogs, *self.replays)
        reading = draw(sources, settings.models, settings.seed, self.duration_s, self.output_drift, self.file)
        workload = reading.workload
        if not len(workload):
            raise ConfigError(f"{self.file}: no request arrives in {self.duration_s:g} s")
        if workload.arrival_s[-1] < settings.warmup_s:
            raise ConfigError(
                f"{self.file} [simulation]: 'warmup_s': no request arrives after {settings.warmup_s:g} s"
            )
        return reading


def read_scenario(file: Path) -> Scenario:
    """Reads and checks a scenario. Raises ConfigError naming the key, the table and the file."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    return scenario_from(document, file)


def scenario_from(document: Mapping[str, Any], file: Path) -> Scenario:
    """Checks a scenario that was read already; `file` is for errors and relative paths.

    Raises ConfigError naming the key, the table and the file.
    """
    where = str(file)
    if "gpus" in document:
        raise ConfigError(f"{where}: 'gpus' belongs to the cluster: [[cluster.gpus]]")
    only(document, _KEYS, where)
    settings = _settings(document, where)
    head = fill(_Head, {key: document[key] for key in _HEAD if key in document}, where)
    scenario = Scenario(
        file=file,
        name=head.name,
        description=head.description,
        duration_s=head.duration_s,
        settings=settings,
        traffic=_sources(Traffic, document, "traffic", settings, where),
        backlogs=_sources(Backlog, document, "backlog", settings, where),
        replays=_sources(Replay, document, "replay", settings, where),
        policy=_policy(table_of(document, "policy", where), f"{where} [policy]"),
        output_drift=head.output_drift,
    )
    if not (scenario.traffic or scenario.backlogs or scenario.replays):
        raise ConfigError(f"{where}: no requests: needs [[traffic]], [[backlog]] or [[replay]]")
    checks.check_traffic(scenario.traffic, head.duration_s if "duration_s" in document else None, where)
    return scenario


@dataclass(frozen=True, slots=True)
class _Head:
    name: str
    description: str = ""
    duration_s: float = 0.0
    output_drift: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: must not be empty")
        if not 0 <= self.duration_s <= LONGEST_S:
            raise ValueError(
                f"duration_s: must be a number from 0 to {LONGEST_S:.0f}, not {self.duration_s:g}"
            )
        if not -1 < self.output_drift <= 99:
            raise ValueError(f"output_drift: must be above -1 and at most 99, not {self.output_drift:g}")


def _settings(document: Mapping[str, Any], where: str) -> SimSettings:
    cluster_where = f"{where} [cluster]"
    cluster = table_of(document, "cluster", where)
    only(cluster, ("gpu_budget", "gpus"), cluster_where)
    gpu_types = tuple(
        fill(GpuType, table, f"{where} [[cluster.gpus]] #{number}")
        for number, table in enumerate(tables_of(cluster, "gpus", cluster_where, "cluster.gpus"), start=1)
    )
    tables, folder = table_of(document, "models", where), Path(where).parent
    models = tuple(
        _model(name, table_of(tables, name, where), f"{where} [models.{name}]", folder) for name in tables
    )
    given: dict[str, Any] = {
        "models": models,
        "gpu_types": gpu_types,
        "gpu_budget": whole(cluster, "gpu_budget", 1, cluster_where),
        "seed": whole(document, "seed", 0, where),
        "telemetry": fill(TelemetrySettings, table_of(document, "telemetry", where), f"{where} [telemetry]"),
        "faults": _faults(document, where),
        "live": LiveTimes(),
        "queues": _queues(table_of(document, "queues", where), f"{where} [queues]"),
        "migration": fill(MigrationSettings, table_of(document, "migration", where), f"{where} [migration]"),
    }
    for key, entries in (("models", models), ("cluster.gpus", gpu_types)):
        if not entries:
            raise ConfigError(f"{where}: {key}: needs at least one")
    checks.check_gpu_types(models, gpu_types, where)
    settings = fill(SimSettings, table_of(document, "simulation", where), f"{where} [simulation]", **given)
    try:
        load_discipline(settings.discipline)
    except UnknownDisciplineError as error:
        raise ConfigError(f"{where} [simulation]: 'discipline': {error}") from error
    checks.check_room(settings, where)
    checks.check_slos(settings, where)
    return settings


def _queues(table: Mapping[str, Any], where: str) -> QueueSettings:
    rest = {key: value for key, value in table.items() if key != "tenant_weights"}
    weights = table_of(table, "tenant_weights", where)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"{where} tenant_weights: {name!r} must be a number, not {weight!r}")
    given = {name: float(weight) for name, weight in weights.items()}
    return fill(QueueSettings, rest, where, tenant_weights=given)


def _model(name: str, table: Mapping[str, Any], where: str, folder: Path) -> SimModel:
    rest = {key: found for key, found in table.items() if key not in ("profile", "engine", "initial")}
    if "profile" not in table:
        raise ConfigError(f"{where}: key 'profile' is required")
    profile = _profile(table, where, folder)
    roles = {role.name.lower(): role for role in Role}
    initial: dict[Role, int] = {}
    given = table_of(table, "initial", where)
    only(given, roles, f"{where} initial")
    for role, count in given.items():
        if type(count) is not int:
            raise ConfigError(f"{where} initial: {role!r} must be a whole number, not {count!r}")
        initial[roles[role]] = count
    model = fill(SimModel, rest, where, name=name, profile=profile, initial=initial)
    checks.check_model(model, longest(profile), where)
    return model


@dataclass(frozen=True, slots=True)
class _Engine:
    """What of a profile a scenario may change."""

    max_context_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    block_size: int | None = None
    default_step_token_budget: int | None = None
    draft_tokens: int | None = None
    acceptance_rate: float | None = None


def _profile(table: Mapping[str, Any], where: str, folder: Path) -> Profile:
    where_engine = f"{where} engine"
    engine = fill(_Engine, table_of(table, "engine", where), where_engine)
    changed = {
        field.name: getattr(engine, field.name)
        for field in dataclasses.fields(engine)
        if getattr(engine, field.name) is not None
    }
    drafts, rate = changed.pop("draft_tokens", None), changed.pop("acceptance_rate", None)
    if (drafts is None) != (rate is None):
        raise ConfigError(f"{where_engine}: 'draft_tokens' and 'acceptance_rate' go together")
    try:
        if drafts is not None:
            changed["speculation"] = Speculation(drafts, rate)
        return load_profile(str(table["profile"]), folder).replace(**changed)
    except UnknownProfileError as error:
        raise ConfigError(f"{where}: 'profile': {error}; or a file of your own, *.toml") from error
    except InvalidLimitError as error:
        raise ConfigError(f"{where_engine}: {error}") from error


def _faults(document: Mapping[str, Any], where: str) -> FaultSettings:
    table = table_of(document, "faults", where)
    planned = tuple(
        fill(Fault, entry, f"{where} [[faults.planned]] #{number}")
        for number, entry in enumerate(
            tables_of(table, "planned", f"{where} [faults]", "faults.planned"), start=1
        )
    )
    rest = {key: found for key, found in table.items() if key != "planned"}
    return fill(FaultSettings, rest, f"{where} [faults]", planned=planned)


def _sources(
    kind: type[Any], document: Mapping[str, Any], key: str, settings: SimSettings, where: str
) -> tuple[Any, ...]:
    names = [model.name for model in settings.models]
    found = []
    for number, table in enumerate(tables_of(document, key, where), start=1):
        at = f"{where} [[{key}]] #{number}"
        # With one model there is nothing to choose.
        source = fill(kind, {"model": names[0], **table} if len(names) == 1 else table, at)
        if isinstance(source, Traffic):
            checks.check_shape_keys(table, source.shape, at)
        if source.model not in names:
            raise ConfigError(f"{at}: 'model': unknown name {source.model!r}; known are {', '.join(names)}")
        checks.check_deadline(source, settings.models[names.index(source.model)], settings, at)
        found.append(source)
    return tuple(found)


def _policy(table: Mapping[str, Any], where: str) -> PolicyChoice:
    rest = {key: found for key, found in table.items() if key != "parameters"}
    choice = fill(PolicyChoice, rest, where, settings=None, parameters=_parameters(table, where))
    if choice.name not in POLICIES:
        raise ConfigError(
            f"{where}: 'name': unknown {choice.name!r}; known are {', '.join(sorted(POLICIES))}"
        )
    for key in ("autoscaler", "dispatcher", "local"):
        name = getattr(choice, key)
        # A class of one's own is looked for when it is used, where the modules are.
        if name is not None and ":" not in name:
            try:
                PolicyChoice(choice.name, **{key: name}).make()
            except ConfigError as error:
                raise ConfigError(f"{where}: {key!r}: {error}") from error
    if choice.parameters and ":" not in choice.parts.autoscaler:
        try:
            PolicyChoice(choice.name, choice.autoscaler, parameters=choice.parameters).make()
        except ParameterError as error:
            raise ConfigError(f"{_parameters_of(where)}: {error}") from error
    return choice


def _parameters(table: Mapping[str, Any], where: str) -> Parameters:
    try:
        return Parameters(table_of(table, "parameters", where))
    except ParameterError as error:
        raise ConfigError(f"{_parameters_of(where)}: {error}") from error


def _parameters_of(where: str) -> str:
    """The sub-table of a policy's parameters, for errors."""
    return where.replace("[policy]", "[policy.parameters]")
