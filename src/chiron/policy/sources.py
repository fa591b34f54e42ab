"""Where each field of a snapshot comes from in a live cluster: which message, who fills it, how fresh it is.

docs/snapshots.md is written from this table. A field that is not in it, or whose message does not exist,
fails a test; a converter asks it for the value of a field that has no live source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from chiron.policy.snapshots import (
    BatchBacklog,
    FleetInstance,
    FleetSnapshot,
    InstanceSample,
    ModelFleet,
    Traffic,
)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Live:
    """A field that a live cluster fills."""

    wire: tuple[str, ...]
    """Message.field of the protocol that carries it; empty: the controller knows it by itself."""
    by: str
    """Who fills it, and from what where that is not plain."""
    fresh: str


@dataclass(frozen=True, slots=True)
class NoLiveSource:
    """A field that nothing in a live cluster can fill; the snapshot's docstring says why."""

    value: object
    """What it always is."""
    reason: str


Source = Live | NoLiveSource

_END = "end of the interval, milliseconds old"
_OVER = "the interval, milliseconds old"
_REPORT = "`report_age_s`"
_RECORD = "now"
_SPEC = "now; as last applied"
_ROUTER = "routers' last reports, 1 Hz"
_AGENT = "agents' last reports, 1 Hz"
_ARRIVALS = "router; of what it tells late, the interval's part"
_ANSWERS = "worker, as each answer ends; the controller takes differences"
_WORKER = "worker"
_MEASURED = "controller, from when it recorded an instance and when its agent reported it ready"


def _load(field: str, by: str = _WORKER) -> Live:
    return Live((f"InstanceLoad.{field}",), by, _REPORT)


def _sampled(*wire: str, by: str = _WORKER) -> Live:
    return Live(wire, by, _OVER)


def _now(*wire: str, by: str = _WORKER) -> Live:
    return Live(wire, by, _END)


def _answers(classes: tuple[str, ...], field: str) -> Live:
    wire = tuple(f"InstanceLoad.finished_{each}" for each in classes)
    return Live((*wire, f"FinishedRequests.{field}"), _ANSWERS, _AGENT)


def _spec(field: str, by: str = "operator") -> Live:
    return Live((f"ModelSpec.{field}",), by, _SPEC)


_BOTH, _BATCH, _INTERACTIVE = ("interactive", "batch"), ("batch",), ("interactive",)

SOURCES: Mapping[type, Mapping[str, Source]] = MappingProxyType(
    {
        InstanceSample: {
            "interval_s": _sampled("WatchStatisticsResponse.interval_ms"),
            "batch_size": _now("InstanceLoad.batch_size"),
            "max_batch_size": Live(("WatchStatisticsResponse.max_batch_size",), "engine", "fixed"),
            "step_token_budget": _now("InstanceLoad.step_token_budget"),
            "max_step_token_budget": Live(
                ("WatchStatisticsResponse.max_step_token_budget",), "engine", "fixed"
            ),
            "running_interactive": _now("InstanceLoad.running"),
            "running_batch": _now("InstanceLoad.running"),
            "waiting_interactive": _now("InstanceLoad.waiting"),
            "waiting_batch": _now("InstanceLoad.waiting"),
            "steps": _sampled("WatchStatisticsResponse.steps", by="engine"),
            "output_tokens": _sampled("WatchStatisticsResponse.output_tokens", by="engine"),
            "prompt_tokens": _sampled(
                "WatchStatisticsResponse.prompt_tokens",
                "WatchStatisticsResponse.cached_prompt_tokens",
                by="engine, when a prefill is complete",
            ),
            "itl_mean_s": _sampled("InstanceLoad.itl_mean_ms"),
            "itl_p95_s": _sampled("InstanceLoad.itl_p95_ms", by="worker, to 3 %"),
            "itl_slo_s": _now("WatchStatisticsResponse.tightest_itl_slo_ms"),
            "kv_usage": _now("InstanceLoad.kv_usage", by="engine"),
            "kv_capacity_tokens": Live(("InstanceLoad.kv_capacity_tokens",), "engine", "fixed"),
            "preemptions": _sampled(
                "WatchStatisticsResponse.preemptions",
                by="worker: the engine's less those it was told to make",
            ),
            "saturated": _sampled("WatchStatisticsResponse.saturated", by="worker, at every change"),
            "draft_tokens": _sampled("WatchStatisticsResponse.draft_tokens", by="engine"),
            "accepted_tokens": _sampled("WatchStatisticsResponse.accepted_tokens", by="engine"),
        },
        FleetInstance: {
            "instance_id": Live((), "controller", _RECORD),
            "node_id": Live((), "controller", _RECORD),
            "role": Live(("InstanceStatus.role",), "worker; the controller until it has reported", _REPORT),
            "phase": Live(
                ("InstanceStatus.state",), "agent; a command of the controller counts at once", _REPORT
            ),
            "batch_size": _load("batch_size", "engine; before it has loaded, what it will start with"),
            "safe_batch_size": _load(
                "safe_batch_size", "local autoscaler; the batch size while none judges it"
            ),
            "running_interactive": _load("running"),
            "running_batch": _load("running"),
            "waiting_interactive": _load("waiting"),
            "waiting_batch": _load("waiting"),
            "tokens_per_s": _load("tokens_per_s"),
            "step_token_budget": _load("step_token_budget", "engine"),
            "step_tokens": _load(
                "step_tokens", "worker, from the engine's steps and tokens; prompts once they are complete"
            ),
            "kv_usage": _load("kv_usage", "engine"),
            "kv_capacity_tokens": _load("kv_capacity_tokens", "engine"),
            "ready_in_s": Live((), "controller: load or wake time less the phase's age", _RECORD),
            "phase_age_s": Live(
                ("InstanceStatus.state_age_ms",), "agent, then the controller's clock", _RECORD
            ),
            "can_wake": Live((), "controller, from who holds which GPUs", _RECORD),
            "can_sleep": Live(
                ("AutoscalingSpec.sleep_level", "AgentReport.sleep_host_bytes", "Kept.host_bytes"),
                "operator and agents; the controller adds up",
                _REPORT,
            ),
            "report_age_s": Live(
                ("InstanceStatus.load_age_ms",), "agent, then the controller's clock", _RECORD
            ),
            "role_fixed": Live((), "operator, as the controller has it on record", _RECORD),
        },
        BatchBacklog: {
            "deadline_in_s": Live(("RequestGroup.deadline_in_ms",), "router, less its report's age", _ROUTER),
            "requests": Live(("RequestGroup.requests",), "router", _ROUTER),
            "prompt_tokens": Live(
                ("RequestGroup.prompt_tokens",), "router: estimated where the prompt is text", _ROUTER
            ),
        },
        Traffic: {
            "interval_s": Live(
                ("RouterReport.interval_ms",), "controller: from newest report to newest", _ROUTER
            ),
            "arrived_interactive": Live(
                ("ModelDemand.arrived", "RouterReport.interval_ms"), _ARRIVALS, _ROUTER
            ),
            "arrived_batch": Live(("ModelDemand.arrived", "RouterReport.interval_ms"), _ARRIVALS, _ROUTER),
            "queued_interactive": Live(("ModelDemand.queued",), "router", _ROUTER),
            "finished_interactive": _answers(_INTERACTIVE, "requests"),
            "finished_batch": _answers(_BATCH, "requests"),
            "finished_output_tokens": _answers(_BOTH, "output_tokens"),
            "finished_prompt_tokens": _answers(_BOTH, "prompt_tokens"),
            "finished_service_s": _answers(_BOTH, "service_ms"),
            "finished_output_tokens_sq": _answers(_BOTH, "output_tokens_sq"),
            "finished_batch_output_tokens": _answers(_BATCH, "output_tokens"),
            "finished_batch_prompt_tokens": _answers(_BATCH, "prompt_tokens"),
            "finished_batch_service_s": _answers(_BATCH, "service_ms"),
            "finished_batch_output_tokens_sq": _answers(_BATCH, "output_tokens_sq"),
        },
        ModelFleet: {
            "name": _spec("name"),
            "gpus_per_instance": _spec("gpus_per_instance"),
            "min_instances": _spec("min_instances"),
            "max_instances": _spec("max_instances"),
            "ttft_slo_s": Live(
                ("SloDefaults.interactive", "Slo.ttft_ms"), "operator; unset: `NEVER_S`", _SPEC
            ),
            "itl_slo_s": Live(("SloDefaults.interactive", "Slo.itl_ms"), "operator; unset: `NEVER_S`", _SPEC),
            "batch_itl_slo_s": Live(("SloDefaults.batch", "Slo.itl_ms"), "operator; unset: `NEVER_S`", _SPEC),
            "instances": Live(("AgentReport.instances",), "controller; see FleetInstance", _REPORT),
            "traffic": Live((), "controller; see Traffic", _RECORD),
            "backlog": Live(
                ("ModelDemand.batch_groups", "QueuedModel.groups"),
                "router; a durable queue as the router tells it that has read it last; see BatchBacklog",
                _ROUTER,
            ),
            "load_time_s": Live(("InstanceLoad.load_ms",), _MEASURED, "the last 200 loads"),
            "wake_time_s": Live((), _MEASURED, "the last 200 wakes"),
            "initial_batch_size": _spec("initial_batch_size", "operator; unset: the ceiling"),
            "max_context_tokens": _load("max_context_tokens", "engine; the largest reported"),
            "gpu_type": NoLiveSource("", "a spec names no GPU type, and placement takes any"),
            "priority": _spec("priority"),
        },
        FleetSnapshot: {
            "now_s": Live((), "controller", _RECORD),
            "models": Live((), "controller; see ModelFleet", _RECORD),
            "free_gpus": Live(
                ("AgentReport.gpus", "InstanceStatus.gpu_indexes"),
                "agent and controller; nodes that take no instance are left out",
                "nodes' last reports",
            ),
            "gpu_types": Live(
                ("Gpu.name",), "agent; the name that all GPUs of a node bear", "nodes' last reports"
            ),
            "gpu_budget": Live((), "operator, in the controller's configuration", "fixed"),
        },
    }
)


def no_live_source(snapshot: type, field: str, kind: type[Value]) -> Value:
    """The value of a field that nothing fills. Raises TypeError where the table says otherwise."""
    source = SOURCES[snapshot][field]
    if not isinstance(source, NoLiveSource) or not isinstance(source.value, kind):
        raise TypeError(
            f"{snapshot.__name__}.{field} is not recorded as a {kind.__name__} without a live source"
        )
    return source.value
