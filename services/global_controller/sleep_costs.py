"""Whether a model's instances may sleep, and what that costs, from its spec. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chiron.requests.validation import Violation
from chiron.v1 import cluster_pb2

DEFAULT_RESIDUAL_MIB = 4096
"""A process's CUDA context, its graphs and its communication buffers stay on the GPU."""
DEFAULT_MEMORY_SHARE = 0.92
_MIB = 2**20
_LEVELS = (0, 1, 2)
_ABOUT_SLEEPERS = ("sleep_residual_mib", "sleep_host_mib")
_SHARE_ARGUMENT = "gpu_memory_utilization"


@dataclass(frozen=True, slots=True)
class SleepCosts:
    """One model's."""

    level: int
    """1 keeps the weights in host memory, 2 drops them; 0: its instances never sleep."""
    residual_bytes: int
    """Most memory of each of its GPUs that a sleeper may keep."""
    host_bytes: int
    """Host memory that a sleeper is expected to take; 0: nobody has said."""
    memory_share: float
    """Share of each GPU's memory that an instance takes while it is awake."""


def sleep_costs(spec: cluster_pb2.ModelSpec) -> SleepCosts:
    """What a valid spec says, defaults filled in."""
    autoscaling = spec.autoscaling
    share = autoscaling.gpu_memory_share
    if not share and _SHARE_ARGUMENT in spec.engine_args.fields:
        share = spec.engine_args.fields[_SHARE_ARGUMENT].number_value
    return SleepCosts(
        level=autoscaling.sleep_level,
        residual_bytes=(autoscaling.sleep_residual_mib or DEFAULT_RESIDUAL_MIB) * _MIB,
        host_bytes=autoscaling.sleep_host_mib * _MIB if autoscaling.sleep_level == 1 else 0,
        memory_share=share if 0 < share <= 1 else DEFAULT_MEMORY_SHARE,
    )


def sleep_violations(spec: cluster_pb2.ModelSpec) -> Iterator[Violation]:
    """What is wrong with the fields of a spec that are about sleep."""
    autoscaling = spec.autoscaling
    if autoscaling.sleep_level not in _LEVELS:
        yield "autoscaling.sleep_level", f"must be 0, 1 or 2, not {autoscaling.sleep_level}"
    useless = [field for field in _ABOUT_SLEEPERS if getattr(autoscaling, field)]
    if useless and not autoscaling.sleep_level:
        yield "autoscaling.sleep_level", f"must be 1 or 2 for {' and '.join(useless)} to count, not 0: never"
    share = autoscaling.gpu_memory_share
    if not 0 <= share <= 1:
        yield "autoscaling.gpu_memory_share", f"must be above 0 and at most 1, or 0 (unset), not {share:g}"
