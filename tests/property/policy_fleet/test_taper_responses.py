"""Batch instances go as late backlogs allow, and no backlog is late for it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.decisions import Retire, Start
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from tests.support.fluid_fleet import Fluid, FluidModel

SLOTS, LOAD_S = 100, 20.0
KEPT = ChironSettings(taper_margin=1e9, defer_far=0.15)
"""Batch instances stay until no batch request waits, and start as soon as one is missing."""


def seen(mixed: int, batch: int, running: int, groups: Sequence[tuple[float, int]]) -> ModelFleet:
    """Instances that all run as much, of which the mixed ones are half full of interactive requests."""
    rate = running / (0.008 + 0.00014 * running)
    interactive = min(running, SLOTS // 2)
    instances = [
        FleetInstance(
            f"m{n}",
            "n",
            Role.MIXED,
            Phase.READY,
            SLOTS,
            SLOTS,
            running_interactive=interactive,
            running_batch=running - interactive,
            tokens_per_s=rate,
            phase_age_s=600.0,
        )
        for n in range(mixed)
    ] + [
        FleetInstance(
            f"b{n}",
            "n",
            Role.BATCH,
            Phase.READY,
            SLOTS,
            SLOTS,
            running_batch=running,
            tokens_per_s=rate,
            phase_age_s=600.0,
        )
        for n in range(batch)
    ]
    # As many end as tokens are made for; each has 300.
    done = round(sum(i.tokens_per_s * i.running_batch / running for i in instances) / 300)
    ended = Traffic(
        1.0,
        arrived_interactive=10,
        finished_interactive=10,
        finished_batch=done,
        finished_output_tokens=300 * (10 + done),
        finished_output_tokens_sq=2.0e5 * (10 + done),
        finished_batch_output_tokens=300 * done,
        finished_batch_output_tokens_sq=2.0e5 * done,
    )
    backlog = tuple(BatchBacklog(due_s, requests, 0) for due_s, requests in sorted(groups))
    return ModelFleet("m", 1, 0, 0, 10.0, 0.2, 2.0, tuple(instances), ended, backlog, LOAD_S)


def going(fleets: Sequence[ModelFleet], mixed: int, batch: int, running: int) -> list[int]:
    """Batch instances that go at each of these, by copies of an autoscaler that knows the work."""
    chiron = Chiron()
    for tick in range(120):
        fleet = seen(mixed, batch, running, [(3_600.0, 10**6)])
        chiron.decide(FleetSnapshot(float(tick), (fleet,), {"n": 0}))
    told = []
    for fleet in fleets:
        decision = copy.deepcopy(chiron).decide(FleetSnapshot(120.0, (fleet,), {"n": 0}))
        told.append(sum(isinstance(a, Retire) and a.instance_id[0] == "b" for a in decision.actions))
    return told


counts = st.integers(1, 6)
group = st.tuples(st.floats(30, 7_200), st.integers(1, 30_000))


@settings(max_examples=15, deadline=None)
@given(counts, counts, st.integers(60, SLOTS), st.lists(group, min_size=1, max_size=4))
def test_more_work_and_earlier_deadlines_never_let_more_batch_instances_go(
    mixed: int, batch: int, running: int, groups: list[tuple[float, int]]
) -> None:
    more = [seen(mixed, batch, running, [(d, n * f) for d, n in groups]) for f in (1, 2, 4, 8, 32, 128)]
    sooner = [seen(mixed, batch, running, [(d / f, n) for d, n in groups]) for f in (1, 2, 4, 8, 32, 128)]
    longer = [seen(mixed, batch, running, groups[:n]) for n in range(1, len(groups) + 1)]
    for ladder in (more, sooner, longer):
        told = going(ladder, mixed, batch, running)
        assert all(fewer >= later for fewer, later in itertools.pairwise(told)), told


def test_of_several_batch_instances_some_go() -> None:
    fleets = [seen(3, 4, SLOTS, [(3_600.0, n)]) for n in (1_000, 100_000, 10**6)]
    none, some, every = sorted(going(fleets, 3, 4, SLOTS))
    assert none == 0 < some < every == 4


# Interactive requests a second, batch requests, and by how much steps are slower in the second half.
LOADS = [(60.0, 6_000, 1.0), (20.0, 30_000, 1.0), (60.0, 20_000, 1.3)]


def served(rate: float, backlog: int, slower: float, kept: ChironSettings | None = None) -> Fluid:
    """Half an hour of it, the backlog due at its end; asserts that nobody was late and nothing was undone."""
    generator, model = np.random.default_rng(7), FluidModel(backlog=float(backlog), deadline_s=1_800.0)
    for _ in range(math.ceil(rate / model.requests_per_s_each)):
        model.add(Role.MIXED, 0.0)
    fluid = Fluid(Chiron(kept), {model.name: model})
    fluid.run(900, lambda _, __: float(generator.poisson(rate)))
    model.fixed_s *= slower
    model.slope_s *= slower
    fluid.run(900, lambda _, __: float(generator.poisson(rate)))
    assert model.backlog < 1
    assert fluid.work_done["batch"] > backlog - 10
    assert fluid.longest_queue_s < model.ttft_slo_s
    return fluid


@pytest.mark.parametrize(("rate", "backlog", "slower"), LOADS)
def test_a_backlog_is_done_in_time_and_batch_instances_are_held_for_less(
    rate: float, backlog: int, slower: float
) -> None:
    tapered, kept = served(rate, backlog, slower), served(rate, backlog, slower, KEPT)
    assert tapered.gpu_seconds <= kept.gpu_seconds
    acts = [(at_s, isinstance(a, Start)) for at_s, a in tapered.log if isinstance(a, Start | Retire)]
    assert not [
        (at_s, later_s)
        for (at_s, came), (later_s, comes) in itertools.combinations(acts, 2)
        if came != comes and at_s < later_s < at_s + LOAD_S
    ]
