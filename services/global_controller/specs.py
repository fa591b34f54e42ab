"""What makes a model's spec valid, its defaults, and which changes need new workers."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator

from google.protobuf import struct_pb2

from chiron.policy.local.registry import NAMES
from chiron.requests.validation import Violation, check_slo
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.schedules import check_schedules
from services.global_controller.sleep_costs import sleep_violations

DEFAULT_MAX_BATCH_SIZE = 256
LARGEST_BATCH_SIZE = 65_536
PRIORITIES = range(-1000, 1001)
MOST_INSTANCES = 10_000
"""More than any cluster has GPUs for; a slip of the keyboard must not become as many records."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_LOCAL = re.compile(rf"|off|{'|'.join(NAMES)}|{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}")
_ENGINE = re.compile(rf"vllm|sim|{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}")
IN_PLACE = (
    "min_instances",
    "max_instances",
    "slo_defaults",
    "role",
    "priority",
    "drain_timeout_s",
    "roll",
    "autoscaling",
)
"""Fields that controller and routers read, not the workers that run: these need not be replaced for them."""


def check_spec(spec: cluster_pb2.ModelSpec) -> list[Violation]:
    """Every violation of a ModelSpec as (path in the request, what is wrong), in the order of its fields."""
    return [(f"spec.{field}", what) for field, what in _violations(spec)]


def normalise(spec: cluster_pb2.ModelSpec) -> cluster_pb2.ModelSpec:
    """A copy with the defaults filled in: max_batch_size 256, role mixed."""
    copy = cluster_pb2.ModelSpec()
    copy.CopyFrom(spec)
    copy.max_batch_size = spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    copy.role = spec.role or types_pb2.ROLE_MIXED
    return copy


def initial_batch_size(spec: cluster_pb2.ModelSpec) -> int:
    """Batch size of an instance that starts, in requests."""
    return spec.initial_batch_size or spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE


def needs_new_workers(old: cluster_pb2.ModelSpec, new: cluster_pb2.ModelSpec) -> bool:
    """Whether a worker started with `old` differs from one started with `new`. Both are normalised."""
    copies = []
    for spec in (old, new):
        copy = cluster_pb2.ModelSpec()
        copy.CopyFrom(spec)
        for field in IN_PLACE:
            copy.ClearField(field)  # type: ignore[arg-type]
        copies.append(copy)
    return copies[0] != copies[1]


def clamp_instances(wanted: int, spec: cluster_pb2.ModelSpec) -> int:
    """`wanted` within the spec's minimum and maximum; without a maximum, at most MOST_INSTANCES."""
    most = spec.max_instances or MOST_INSTANCES
    return min(max(wanted, spec.min_instances), most)


def _violations(spec: cluster_pb2.ModelSpec) -> Iterator[Violation]:
    if not _NAME.fullmatch(spec.name):
        what = "must be 1 to 63 characters of [a-z0-9.-], starting with a letter or digit"
        yield "name", f"{what}, not {spec.name!r}"
    if spec.gpus_per_instance < 1:
        yield "gpus_per_instance", "must be >= 1"
    if not _ENGINE.fullmatch(spec.engine):
        yield "engine", f"must be vllm, sim or module:Class, not {spec.engine!r}"
    if spec.engine == "vllm" and not spec.weights:
        yield "weights", "is required by engine vllm"
    for path in _not_finite(spec.engine_args, "engine_args"):
        yield path, "must be a finite number"
    for field, count in (("min_instances", spec.min_instances), ("max_instances", spec.max_instances)):
        if count > MOST_INSTANCES:
            yield field, f"must be at most {MOST_INSTANCES}, not {count}"
    if spec.max_instances and spec.min_instances > spec.max_instances:
        yield (
            "min_instances",
            f"must be at most max_instances ({spec.max_instances}), not {spec.min_instances}",
        )
    if spec.max_batch_size > LARGEST_BATCH_SIZE:
        yield "max_batch_size", f"must be at most {LARGEST_BATCH_SIZE}, not {spec.max_batch_size}"
    yield from check_slo(spec.slo_defaults.interactive, "slo_defaults.interactive")
    yield from check_slo(spec.slo_defaults.batch, "slo_defaults.batch")
    yield from _adapter_violations(spec)
    for field, seconds in (("drain_timeout_s", spec.drain_timeout_s), ("roll.hold_s", spec.roll.hold_s)):
        if not 0 <= seconds < math.inf:
            yield field, f"must be a number >= 0, not {seconds:g}"
    if spec.role not in types_pb2.Role.values():
        yield "role", f"unknown value {spec.role}"
    ceiling = spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    if spec.initial_batch_size > ceiling:
        yield (
            "initial_batch_size",
            f"must be at most max_batch_size ({ceiling}), not {spec.initial_batch_size}",
        )
    if not _LOCAL.fullmatch(spec.autoscaling.local):
        known = ", ".join([*NAMES, "off"])
        yield "autoscaling.local", f"must be {known} or module:Class, not {spec.autoscaling.local!r}"
    elif (module := spec.autoscaling.local.partition(":")[0].partition(".")[0]) in sys.stdlib_module_names:
        # Modules of one's own are on the agents alone: what is wrong with those, each agent tells.
        what = f"{module} is of Python's own library, which has no local autoscaler"
        yield "autoscaling.local", f"{what}: {spec.autoscaling.local!r}"
    yield from check_schedules(spec)
    if spec.priority not in PRIORITIES:
        yield "priority", f"must be {PRIORITIES[0]} to {PRIORITIES[-1]}, not {spec.priority}"
    yield from sleep_violations(spec)


def _adapter_violations(spec: cluster_pb2.ModelSpec) -> Iterator[Violation]:
    seen: Counter[str] = Counter()
    for index, adapter in enumerate(spec.adapters):
        path = f"adapters[{index}]"
        seen[adapter.name] += 1
        if not adapter.name:
            yield f"{path}.name", "is required"
        elif seen[adapter.name] > 1:
            yield f"{path}.name", f"{adapter.name!r} is there twice"
        if not adapter.path:
            yield f"{path}.path", "is required"


def _not_finite(value: struct_pb2.Struct | struct_pb2.ListValue, path: str) -> Iterator[str]:
    """Paths of numbers that JSON cannot hold; a spec reaches its worker as JSON."""
    if isinstance(value, struct_pb2.Struct):
        items = [(f"{path}.{key}", value.fields[key]) for key in sorted(value.fields)]
    else:
        items = [(f"{path}[{index}]", one) for index, one in enumerate(value.values)]
    for where, one in items:
        kind = one.WhichOneof("kind")
        if kind == "number_value" and not math.isfinite(one.number_value):
            yield where
        elif kind == "struct_value":
            yield from _not_finite(one.struct_value, where)
        elif kind == "list_value":
            yield from _not_finite(one.list_value, where)
