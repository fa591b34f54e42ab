"""Scenarios whose need of GPUs can be calculated: equal requests in step, one at a time in each engine."""

from __future__ import annotations

from typing import Any

SERVICE_S = 0.2
"""Of one request: 99 further tokens of 2 ms each, after a first one that takes little more."""


def clockwork_document(rate_per_s: float, nodes: int = 8, **model: Any) -> dict[str, Any]:
    """`rate_per_s` times SERVICE_S requests are served at once; as many GPUs are needed, and no fewer."""
    return {
        "name": "clockwork",
        "seed": 1,
        "duration_s": 20,
        "cluster": {"gpus": [{"name": "g", "nodes": nodes, "gpus_per_node": 1, "price_per_gpu_hour": 2.0}]},
        "models": {
            "m": {
                "profile": "toy",
                "ttft_slo_s": 0.3,
                "itl_slo_s": 0.05,
                "initial_batch_size": 1,
                "max_batch_size": 1,
                "load_time_s": 1.0,
                "initial": {"mixed": nodes},
                **model,
            }
        },
        "traffic": [
            {
                "rate_per_s": rate_per_s,
                "cv": 0,
                "lengths": "lognormal",
                "prompt_mean": 1,
                "output_mean": 100,
                "sigma": 0,
            }
        ],
    }
