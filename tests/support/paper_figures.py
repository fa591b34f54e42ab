"""Figures of a run that was never made, as far as the evaluation's sections look at them."""

from __future__ import annotations

from typing import Any


def figures(gpu_hours: float, *, attains: bool = True, ratio: float = 1.1, **more: Any) -> dict[str, Any]:
    """Those of a run with so many GPU-hours, and further ones."""
    return {
        "attains": attains,
        "gpu_hours": gpu_hours,
        "gpus_peak": 12,
        "fleet": 3,
        "simulated_s": 7200.0,
        "scaling_actions": 10,
        "reversals": 2,
        "slo_attainment": {"interactive": 0.999 if attains else 0.5, "batch": 1.0, "all": 0.99},
        "throughput": {"requests_per_s": 20.0, "requests_per_gpu_hour": 900.0},
        "oracle_lb": {"gpu_hours": gpu_hours / ratio, "ratio": ratio},
        "ttft_ms": {"p99": 4000.0},
        "itl_ms": {"p99": 100.0},
        **more,
    }
