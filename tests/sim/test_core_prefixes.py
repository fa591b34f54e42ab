"""Simulated requests return to where the beginning of their prompt is cached, as live ones do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from chiron.engine import get_profile
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass, Role
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.settings import Fault, FaultSettings, GpuType, SimModel, SimSettings
from chiron.sim.simulator import Simulation
from chiron.sim.workload import Workload

PROFILE = get_profile("toy")
BLOCK = PROFILE.block_size
TURNS, CHATS = 3, 5
TOKENS = 64 * 6


def settings(affinity: bool, **changes: object) -> SimSettings:
    model = SimModel("m", PROFILE, initial={Role.INTERACTIVE: 3}, initial_batch_size=8, max_batch_size=8)
    queues = QueueSettings(prefix_affinity=affinity)
    return SimSettings((model,), (GpuType("g", 1, 3),), queues=queues, **changes)  # type: ignore[arg-type]


def chats(shared: bool = True) -> Workload:
    """Conversations whose turns come together, in another order each time; every turn adds TOKENS tokens."""
    order = [(turn, (turn + chat) % CHATS) for turn in range(TURNS) for chat in range(CHATS)]
    prompts = [TOKENS * (turn + 1) + 1 for turn, _ in order]
    own = [
        range(10_000 * (chat + 1), 10_000 * (chat + 1) + length // BLOCK)
        for (_, chat), length in zip(order, prompts, strict=True)
    ]
    count = len(order)
    return Workload(
        np.array([20.0 * (number // CHATS) + 0.01 * (number % CHATS) for number in range(count)]),
        np.array(prompts, dtype=np.int32),
        np.full(count, 4, dtype=np.int32),
        np.full(count, RequestClass.INTERACTIVE, dtype=np.int8),
        np.zeros(count, dtype=np.int16),
        np.full(count, np.inf),
        tuple(map(tuple, own)) if shared else None,
    )


def run(affinity: bool, workload: Workload, **changes: object) -> tuple[int, list[float]]:
    """Prompt tokens found in caches, and the requests' times to the first token."""
    simulation = Simulation(
        settings(affinity, **changes), workload, FixedFleet(), LeastExpectedWait(), None, None
    )
    simulation.run()
    engines = [one.engine for one in simulation.cluster.instances.values()]
    ttft_s = np.array(simulation.ledger.first_token_s) - workload.arrival_s
    return sum(engine.totals.cached_tokens for engine in engines), ttft_s.tolist()


def test_every_turn_finds_the_one_before_it() -> None:
    cached, ttft_s = run(True, chats())
    # Of the second turn's prompt the first is cached, of the third's the first two.
    assert cached == CHATS * (TOKENS + 2 * TOKENS)
    without, cold_s = run(False, chats())
    assert without < cached / 2
    assert sum(ttft_s) < sum(cold_s)
    assert ttft_s[:CHATS] == cold_s[:CHATS]


def test_without_shared_prefixes_nothing_changes() -> None:
    assert run(True, chats(shared=False)) == run(False, chats(shared=False))
    alone = dataclasses.replace(chats(), prefix=tuple((number,) for number in range(TURNS * CHATS)))
    assert run(True, alone) == run(False, alone)


@pytest.mark.parametrize("affinity", [True, False])
def test_a_dead_instances_cache_is_forgotten(affinity: bool) -> None:
    faults = FaultSettings(planned=(Fault(26.0, "instance", 0),))
    _, ttft_s = run(affinity, chats(), faults=faults)
    assert np.isfinite(ttft_s).all()
