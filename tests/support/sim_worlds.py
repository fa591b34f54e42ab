"""Small simulated worlds: an engine whose every step takes 10 ms, and policies that follow a script."""

import numpy as np

from chiron.engine import get_profile
from chiron.policy.decisions import FleetDecision, Start
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass, Role
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.simulator import simulate
from chiron.sim.workload import Workload

STEP_S = 0.01
FLAT = get_profile("toy").replace(
    step_time_ms=((1, 10.0), (1001, 10.0)), kv_bytes_per_token=1, kv_read_bytes_per_s=1e18, load_s=2.0
)
"""10 ms a step whatever is in it; reading the KV cache takes no time worth mentioning."""


class Script:
    """An autoscaler that does at each tick what a script says to instances that are there."""

    def __init__(self, actions=None):
        self.actions = actions or {}
        self.snapshots = []

    def decide(self, snapshot):
        self.snapshots.append(snapshot)
        known = {each.instance_id for model in snapshot.models for each in model.instances}
        actions = self.actions.get(round(snapshot.now_s, 6), ())
        return FleetDecision(
            tuple(each for each in actions if isinstance(each, Start) or each.instance_id in known), ()
        )


def requests(*rows):
    """Rows of (arrival, prompt, output) for interactive, with a deadline for batch requests."""
    rows = sorted(rows, key=lambda row: row[0])
    batch = np.array([len(row) > 3 for row in rows], dtype=bool)
    return Workload(
        arrival_s=np.array([row[0] for row in rows], dtype=float),
        prompt_tokens=np.array([row[1] for row in rows], dtype=np.int32),
        output_tokens=np.array([row[2] for row in rows], dtype=np.int32),
        request_class=np.where(batch, RequestClass.BATCH, RequestClass.INTERACTIVE).astype(np.int8),
        model=np.zeros(len(rows), dtype=np.int16),
        deadline_s=np.array([row[3] if len(row) > 3 else np.inf for row in rows], dtype=float),
    )


def world(initial=None, *, profile=FLAT, batch_size=8, gpus=8, model=None, **settings):
    """Settings with one model; 8 GPUs on two nodes."""
    made = SimModel(
        "m",
        profile,
        initial={Role.MIXED: 1} if initial is None else initial,
        initial_batch_size=batch_size,
        **(model or {}),
    )
    return SimSettings(models=(made,), gpu_types=(GpuType("g", 2, gpus // 2, 3.0),), **settings)


def run(settings, workload, autoscaler=None, **others):
    others.setdefault("dispatcher", LeastExpectedWait())
    return simulate(settings, workload, autoscaler=autoscaler or Script(), **others)
