"""What the demo's work would have cost on the smallest fixed fleet that serves it as well, by simulation.

The fleet is mixed instances from the first second to the last, with Chiron's own dispatch, queues and
preemption. The search sees the very requests of the run, which nobody who sizes a fleet beforehand does: a
strong reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chiron.cli.demo.plan import Plan
from chiron.engine import get_profile
from chiron.policy.words import RequestClass
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import smallest_fleet
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.workload import Workload
from chiron.v1 import cluster_pb2 as pb

_POLICIES = ("fixed", "fixed-model")
"""With the batch size that instances start with, and with the local autoscaler's: the smaller one counts."""


@dataclass(frozen=True, slots=True)
class FixedFleet:
    """The smallest fixed fleet that attains."""

    instances: int
    policy: str


def smallest_fixed_fleet(
    plan: Plan, spec: pb.ModelSpec, *, nodes: int, gpus: int, seed: int
) -> FixedFleet | None:
    """Finds it; None when not even one instance on each GPU serves the plan.

    Args:
        plan: what is asked.
        spec: the model; its engine is `sim`, at its profile's own speed.
        nodes: of the cluster.
        gpus: on each node.
        seed: of the simulation.
    """
    defaults = spec.slo_defaults
    model = SimModel(
        spec.name,
        get_profile(str(spec.engine_args["profile"])),
        ttft_slo_s=defaults.interactive.ttft_ms / 1e3,
        itl_slo_s=defaults.interactive.itl_ms / 1e3,
        batch_itl_slo_s=defaults.batch.itl_ms / 1e3,
        initial_batch_size=spec.initial_batch_size or spec.max_batch_size,
        max_batch_size=spec.max_batch_size,
    )
    settings = SimSettings((model,), (GpuType("declared", nodes, gpus),), seed=seed)
    scenario = Scenario(Path("demo"), "demo", "the demo's plan", 0.0, settings)
    reading = Reading(_workload(plan))
    found = []
    for policy in _POLICIES:
        fleet = smallest_fleet(scenario, PolicyChoice(policy), reading)
        if fleet is not None:
            found.append(FixedFleet(sum(fleet.settings.models[0].initial.values()), policy))
    return min(found, key=lambda fleet: fleet.instances) if found else None


def _workload(plan: Plan) -> Workload:
    interactive, batch = RequestClass.INTERACTIVE.value, RequestClass.BATCH.value
    rows = [(ask, interactive, np.inf) for ask in plan.interactive]
    rows += [
        (ask, batch, backlog.at_s + backlog.deadline_s) for backlog in plan.backlogs for ask in backlog.items
    ]
    rows.sort(key=lambda row: row[0].at_s)
    return Workload(
        np.array([ask.at_s for ask, _, _ in rows]),
        np.array([ask.prompt_tokens for ask, _, _ in rows], dtype=np.int64),
        np.array([ask.output_tokens for ask, _, _ in rows], dtype=np.int64),
        np.array([kind for _, kind, _ in rows], dtype=np.int8),
        np.zeros(len(rows), dtype=np.int16),
        np.array([deadline_s for _, _, deadline_s in rows]),
        None,
        None,
    )
