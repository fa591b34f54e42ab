"""What a simulation is run with, apart from its workload and its policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from chiron.engine import Profile
from chiron.policy.words import Role
from chiron.sim.live_times import LiveTimes
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.queue_settings import InvalidSettingError as InvalidSettingError
from chiron.sim.queue_settings import QueueSettings

BATCH_CREDIT_S = 2.0
"""How long a worker's offer of slots for batch work stands."""
LARGEST = 1e12
"""What any number of a setting may be at most: beyond it is a slip of the pen."""
LONGEST_S = 366 * 86_400.0
"""Of any simulated time: a run ticks every second or so, and one over longer times would not end."""
SHORTEST_S = 0.001
"""Of what happens again and again."""
_WIDEST = 3.0
"""What a relative spread may be at most."""


def _positive(owner: object, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if not 0 < value <= LARGEST:
            raise InvalidSettingError(key, f"must be positive and at most {LARGEST:g}, got {value}")


def not_negative(owner: object, *keys: str, most: float = LARGEST) -> None:
    """Raises InvalidSettingError for a field of `owner` below 0 or above `most`."""
    for key in keys:
        value = getattr(owner, key)
        if not 0 <= value <= most:
            raise InvalidSettingError(key, f"must be at least 0 and at most {most:.15g}, got {value}")


def _recurring(owner: object, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if not SHORTEST_S <= value <= LARGEST:
            limits = f"must be positive, at least {SHORTEST_S:g} and at most {LARGEST:g}"
            raise InvalidSettingError(key, f"{limits}, got {value}")


def _spread(owner: object, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if not 0 <= value <= _WIDEST:
            raise InvalidSettingError(key, f"must be at least 0 and at most {_WIDEST:g}, got {value}")


def _share(owner: object, *keys: str) -> None:
    for key in keys:
        value = getattr(owner, key)
        if not 0 <= value < 1:
            raise InvalidSettingError(key, f"must be at least 0 and below 1, got {value}")


@dataclass(frozen=True, slots=True)
class SimModel:
    """One model: its engine, its limits and its promises. InvalidSettingError names a bad field."""

    name: str
    profile: Profile
    """What its engine costs per step and holds in KV cache."""
    min_instances: int = 0
    max_instances: int = 0
    """0: no limit."""
    initial: Mapping[Role, int] = field(default_factory=dict)
    """Instances that are ready when the simulation begins, by role."""
    ttft_slo_s: float = 10.0
    """TTFT SLO of its interactive requests, from arrival."""
    itl_slo_s: float = 0.2
    """SLO on the mean ITL of its interactive requests."""
    batch_itl_slo_s: float = 2.0
    """ITL SLO under which batch-only work runs."""
    initial_batch_size: int = 256
    """Batch size of an instance that starts, in requests."""
    max_batch_size: int = 1024
    """Ceiling for local autoscalers, in requests."""
    initial_step_token_budget: int = 0
    """In tokens; 0: the profile's default."""
    max_step_token_budget: int = 8192
    """Ceiling for local autoscalers, in tokens."""
    load_time_s: float | None = None
    """Median time from placement to ready; None: the profile's."""
    presumed_load_time_s: float | None = None
    """What policies are told of it until a load has been measured; None: the truth."""
    load_time_spread: float = 0.0
    """Standard deviation of the logarithm of load times (lognormal); 0: they are all the same."""
    wake_time_s: float | None = None
    """Time from asleep to ready; None: the profile's for the sleep level."""
    sleep_level: Literal[0, 1, 2] = 0
    """What its instances do with their weights when asleep, as vLLM's sleep levels: 1 keeps them in host
    memory, 2 drops them; 0: they never sleep."""
    sleep_time_s: float | None = None
    """Time from drained to asleep; None: at level 1 the weights take as long to host memory as back, at level
    2 none."""
    sleep_residual_share: float = 0.02
    """Share of each GPU's memory that a sleeping instance keeps (its context and buffers; assumed)."""
    sleep_host_gb: float = 0.0
    """Host memory that an instance asleep at level 1 takes: its weights, in GB."""
    gpu_memory_share: float = 0.9
    """Share of each GPU's memory that an awake instance takes: vLLM's default."""
    priority: int = 0
    """Who gets GPUs first under contention: a lower value is more urgent."""
    gpu_type: str = ""
    """Name of the GPU type that its instances run on; "": the first."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidSettingError("name", "must not be empty")
        not_negative(self, "min_instances", "max_instances", "initial_step_token_budget")
        _spread(self, "load_time_spread")
        _positive(self, "ttft_slo_s", "itl_slo_s", "batch_itl_slo_s", "initial_batch_size", "max_batch_size")
        _positive(self, "max_step_token_budget")
        if self.max_instances and self.max_instances < self.min_instances:
            raise InvalidSettingError(
                "max_instances",
                f"must not be below min_instances = {self.min_instances}, got {self.max_instances}",
            )
        if self.initial_batch_size > self.max_batch_size:
            raise InvalidSettingError(
                "initial_batch_size", f"must not exceed max_batch_size = {self.max_batch_size}"
            )
        for role, count in self.initial.items():
            if count < 0:
                raise InvalidSettingError(
                    "initial", f"{Role(role).name.lower()} must not be negative, got {count}"
                )
        if self.sleep_level not in (0, 1, 2):
            raise InvalidSettingError("sleep_level", f"must be 0, 1 or 2, got {self.sleep_level}")
        not_negative(self, "sleep_residual_share", "sleep_host_gb")
        if not 0 < self.gpu_memory_share <= 1:
            raise InvalidSettingError(
                "gpu_memory_share", f"must be above 0 and at most 1, got {self.gpu_memory_share}"
            )
        if self.sleep_residual_share > self.gpu_memory_share:
            most = f"must not exceed gpu_memory_share = {self.gpu_memory_share}"
            raise InvalidSettingError("sleep_residual_share", f"{most}, got {self.sleep_residual_share}")
        for key in ("load_time_s", "presumed_load_time_s", "wake_time_s", "sleep_time_s"):
            if getattr(self, key) is not None:
                not_negative(self, key)

    @property
    def load_s(self) -> float:
        """Median time from placement to ready."""
        return self.profile.load_s if self.load_time_s is None else self.load_time_s

    @property
    def presumed_load_s(self) -> float:
        """Time from placement to ready that is reckoned with until a load has been measured."""
        return self.load_s if self.presumed_load_time_s is None else self.presumed_load_time_s

    @property
    def wake_s(self) -> float:
        """Time from asleep to ready."""
        level = max(0, self.sleep_level - 1)
        return self.profile.wake_s[level] if self.wake_time_s is None else self.wake_time_s

    @property
    def fall_asleep_s(self) -> float:
        """Time from drained to asleep."""
        if self.sleep_time_s is not None:
            return self.sleep_time_s
        return self.profile.wake_s[0] if self.sleep_level == 1 else 0.0


@dataclass(frozen=True, slots=True)
class GpuType:
    """GPUs of one kind."""

    name: str
    nodes: int
    gpus_per_node: int
    price_per_gpu_hour: float | None = None
    """In any currency; `gpu_cost` is in the same. None: it has none."""
    host_memory_gb: float = 0.0
    """Host memory of a node for the weights of sleeping instances, in GB; 0: no limit."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidSettingError("gpu_types.name", "must not be empty")
        _positive(self, "nodes", "gpus_per_node")
        not_negative(self, "host_memory_gb")
        if self.price_per_gpu_hour is not None:
            not_negative(self, "price_per_gpu_hour")


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """How late, sampled and noisy is what policies see."""

    interval_s: float = 1.0
    """Between two reports of one node, and of the router."""
    delay_s: float = 0.05
    """From the making of a report until the controller has it."""
    noise: float = 0.0
    """Relative standard deviation of measured figures (token rates, KV use, times between tokens)."""
    loss: float = 0.0
    """Share of the periodic reports that never arrive."""
    view_delay_s: float = 0.02
    """From a change at a worker until the router sees it; further changes in between travel along. Below the
    life of a batch credit: a router that hears less often sends no batch work."""

    def __post_init__(self) -> None:
        _recurring(self, "interval_s")
        not_negative(self, "delay_s", "view_delay_s")
        _spread(self, "noise")
        _share(self, "loss")
        if self.view_delay_s >= BATCH_CREDIT_S:
            raise InvalidSettingError(
                "view_delay_s",
                f"must be below {BATCH_CREDIT_S:g}, the life of a batch credit, got {self.view_delay_s}",
            )


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure at a set time."""

    at_s: float
    kind: Literal["instance", "node"]
    target: int = 0
    """Which of those alive at the time, by start (instances) or number (nodes), modulo their count."""
    repair_s: float = inf
    """After which the node can be used again; an instance is not repaired, another one may be started."""

    def __post_init__(self) -> None:
        not_negative(self, "at_s", "target")
        if self.kind not in ("instance", "node"):
            raise InvalidSettingError("kind", f'must be "instance" or "node", got {self.kind!r}')
        if not self.repair_s > 0:
            raise InvalidSettingError("repair_s", f"must be positive, got {self.repair_s}")


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """Failures: set ones and random ones (exponential times between failures)."""

    planned: tuple[Fault, ...] = ()
    instance_mtbf_s: float = inf
    """Mean time between failures of one instance."""
    node_mtbf_s: float = inf
    """Mean time between failures of one node."""
    node_repair_s: float = 600.0
    """Time until a node that failed at random can be used again."""

    def __post_init__(self) -> None:
        for key in ("instance_mtbf_s", "node_mtbf_s", "node_repair_s"):
            if not getattr(self, key) > 0:
                raise InvalidSettingError(key, f"must be positive, got {getattr(self, key)}")
        for key in ("instance_mtbf_s", "node_mtbf_s"):
            if getattr(self, key) < 1:
                raise InvalidSettingError(key, f"must be at least 1, got {getattr(self, key)}")


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One simulation. InvalidSettingError names a bad field."""

    models: tuple[SimModel, ...]
    gpu_types: tuple[GpuType, ...]
    seed: int = 0
    gpu_budget: int = 0
    """Most GPUs that may be held at once, asleep or awake; 0: all there are."""
    tick_s: float = 1.0
    """Between two ticks of the global autoscaler."""
    local_interval_s: float = 1.0
    """Between two samples of one instance for its local autoscaler."""
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    step_noise: float = 0.0
    """Standard deviation of the logarithm of step times (lognormal, mean 1), redrawn when a batch changes."""
    step_time_factor: float = 1.0
    """Multiplies every step time."""
    faults: FaultSettings = field(default_factory=FaultSettings)
    warmup_s: float = 0.0
    """Requests that arrive earlier count in no figure of service, and GPUs held earlier in none of cost."""
    horizon_s: float | None = None
    """Simulated time at which a run ends at the latest; None: an hour after the last arrival and deadline.

    A run ends as soon as every interactive request has finished or was refused, and every batch request has
    finished, was refused or has missed its deadline. Whatever is unfinished at the end has missed its SLO.
    """
    resume_cost: Literal["recompute", "kv-reload"] = "recompute"
    """What a preempted batch request pays when it goes on: its tokens are computed again, or its KV cache is
    copied back from host memory if it resumes on the same instance."""
    kv_reload_bytes_per_s: float = 20e9
    """Rate at which one GPU copies KV cache back."""
    migration: MigrationSettings = field(default_factory=MigrationSettings)
    """What it costs to move a running request to another instance."""
    discipline: str = "edf"
    """Order of the router's queues: fcfs, edf (batch: request groups by deadline) or mlfq."""
    queues: QueueSettings = field(default_factory=QueueSettings)
    """How the router queues, admits and estimates."""
    queue_limit: int = 0
    """Interactive requests per model that may wait at the router; one more is refused. 0: no limit."""
    engine_queue: int = 2
    """Requests beyond its batch size that may wait at one engine."""
    live: LiveTimes = field(default_factory=LiveTimes)
    """What is taken over from a live cluster that was recorded."""
    single_steps: bool = False
    """Take every engine step by itself: the slow reference that fast-forwarding must equal."""

    def __post_init__(self) -> None:
        if not self.models:
            raise InvalidSettingError("models", "must not be empty")
        if not self.gpu_types:
            raise InvalidSettingError("gpu_types", "must not be empty: a cluster needs GPUs")
        for key, entries in (("models", self.models), ("gpu_types", self.gpu_types)):
            names = [entry.name for entry in entries]
            for name in names:
                if names.count(name) > 1:
                    raise InvalidSettingError(key, f"{name!r} is there twice")
        kinds = {kind.name: kind for kind in self.gpu_types}
        for model in self.models:
            if model.gpu_type and model.gpu_type not in kinds:
                raise InvalidSettingError(
                    "gpu_type",
                    f"{model.gpu_type!r} of model {model.name!r} is unknown; known: {', '.join(kinds)}",
                )
            kind = kinds[model.gpu_type] if model.gpu_type else self.gpu_types[0]
            if model.profile.gpus > kind.gpus_per_node:
                raise InvalidSettingError(
                    "gpus_per_node",
                    f"{model.name!r} needs {model.profile.gpus} GPUs on one node, "
                    f"{kind.name!r} has {kind.gpus_per_node}",
                )
        _recurring(self, "tick_s", "local_interval_s")
        _positive(self, "step_time_factor", "kv_reload_bytes_per_s")
        not_negative(self, "gpu_budget", "warmup_s", "queue_limit", "engine_queue")
        _spread(self, "step_noise")
        if self.seed < 0:
            raise InvalidSettingError("seed", f"must not be negative, got {self.seed}")
        if self.horizon_s is not None:
            _positive(self, "horizon_s")
            if not self.warmup_s < self.horizon_s <= LONGEST_S:
                limits = f"must be above warmup_s = {self.warmup_s:g} and at most {LONGEST_S:.0f}"
                raise InvalidSettingError("horizon_s", f"{limits}, got {self.horizon_s:g}")
        if self.resume_cost not in ("recompute", "kv-reload"):
            raise InvalidSettingError(
                "resume_cost", f'must be "recompute" or "kv-reload", got {self.resume_cost!r}'
            )
