"""Clusters and loads that experiments are made of: both Llama models on A100s, as the evaluation has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chiron.engine import get_profile
from chiron.policy.words import Role
from chiron.sim.scenario import Scenario
from chiron.sim.settings import GpuType, SimModel, SimSettings, TelemetrySettings
from chiron.sim.sources import Backlog, Replay, Traffic

PROFILES = {"8b": "llama3-8b@a100", "70b": "llama3-70b@4xa100"}
"""The models of the evaluation, by the names that scenarios give them."""
MOST_GPUS = 50
"""Of the evaluation's cluster."""
GPUS_PER_RATE = {"8b": 0.05, "70b": 0.45}
"""GPUs for each interactive request per second: about what the lower bound needs at ShareGPT lengths."""


def model(name: str, initial_gpus: float, **changes: Any) -> SimModel:
    """One of `PROFILES` with the evaluation's SLOs: TTFT 10 s, ITL 200 ms, and 2 s for batch work.

    Args:
        name: of the model.
        initial_gpus: GPUs of the mixed instances that are ready at the start: as many as they fill, one
            instance at least.
        changes: further fields of SimModel.
    """
    profile = get_profile(PROFILES[name])
    instances = max(1, int(initial_gpus / profile.gpus))
    return SimModel(name, profile, initial={Role.MIXED: instances}, **changes)


def on_a100s(
    name: str,
    models: Sequence[SimModel],
    *,
    traffic: Sequence[Traffic] = (),
    backlogs: Sequence[Backlog] = (),
    replays: Sequence[Replay] = (),
    duration_s: float,
    gpu_budget: int = MOST_GPUS,
    warmup_s: float = 600.0,
    description: str = "",
) -> Scenario:
    """A scenario on 7 nodes of 8 A100s, with noisy step times and reports that are late and noisy.

    Args:
        name: of the scenario.
        models: what is served.
        traffic: requests that arrive over time.
        backlogs: batch requests that arrive at once.
        replays: recorded traces; their files are absolute.
        duration_s: traffic arrives until then.
        gpu_budget: most GPUs held at once.
        warmup_s: what arrives earlier counts in no figure: the fleet has to find its size first.
        description: of the scenario.
    """
    settings = SimSettings(
        tuple(models),
        (GpuType("a100", nodes=7, gpus_per_node=8, price_per_gpu_hour=2.0),),
        gpu_budget=gpu_budget,
        telemetry=TelemetrySettings(delay_s=0.1, noise=0.02),
        step_noise=0.05,
        warmup_s=warmup_s,
    )
    return Scenario(
        Path(f"{name}.toml"),
        name,
        description,
        duration_s,
        settings,
        tuple(traffic),
        tuple(backlogs),
        tuple(replays),
    )
