"""More demand, and tighter objectives, never make the global autoscaler ask for fewer instances.

Each sequence of snapshots is shown to copies of one autoscaler: a fresh one, and some that know demand,
lengths and throughput.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import Phase as Stage
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.decisions import Start
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import NEVER_S, BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

SLOTS, LOAD_S, MEAN_TOKENS = 50, 20.0, 400
HISTORIES = ("fresh", "bursts at night", "bursts by day", "steady")


def model(
    *,
    running: int,
    instances: int = 4,
    queued: int = 0,
    groups: Sequence[tuple[float, int]] = (),
    ttft_slo_s: float = 10.0,
    arrived: int = 0,
) -> ModelFleet:
    """groups: deadline in seconds and requests, in any order. Each instance runs as many requests."""
    rate = running / (0.008 + 0.00014 * running)
    ready = tuple(
        FleetInstance(
            f"i{n}",
            "n",
            Role.MIXED,
            Phase.READY,
            SLOTS,
            SLOTS,
            running_interactive=running,
            tokens_per_s=rate,
        )
        for n in range(instances)
    )
    # Every request that arrives ends within the same second, half of them batch ones of the same lengths.
    both, one = 2 * arrived * MEAN_TOKENS, arrived * MEAN_TOKENS
    traffic = Traffic(
        1.0,
        arrived,
        arrived,
        queued,
        arrived,
        arrived,
        both,
        finished_output_tokens_sq=2.0 * both * MEAN_TOKENS,
        finished_batch_output_tokens=one,
        finished_batch_output_tokens_sq=2.0 * one * MEAN_TOKENS,
    )
    backlog = tuple(BatchBacklog(due_s, requests, 0) for due_s, requests in sorted(groups))
    return ModelFleet("m", 1, 0, 0, ttft_slo_s, 0.2, 2.0, ready, traffic, backlog, LOAD_S)


@cache
def autoscaler(history: str) -> tuple[Chiron, float, int]:
    """With the time of its next tick, in seconds, and the arrivals it has got used to."""
    chiron, now_s, arrived = Chiron(), 0.0, 0
    for tick in range({"fresh": 0, "steady": 600}.get(history, 1_800)):
        night, high = tick < 900, tick // 20 % 2
        match history:
            case "bursts at night":
                # The growth of a quiet time, 240 requests on 400, which says nothing of a demand of 2,000.
                running = 10 + 6 * high if night else 50
            case "bursts by day":
                running = 10 if night else 30 + 10 * high
            case _:
                running = 40
        # Few arrivals where bursts decide: otherwise their rate would.
        now_s, arrived = tick + 1.0, 4 * running if history == "steady" else 2
        fleet = model(running=running, instances=40, arrived=arrived)
        chiron.decide(FleetSnapshot(now_s, (fleet,), {"n": 0}))
    return chiron, now_s + 1.0, arrived


def asked(history: str, fleet: ModelFleet) -> int:
    """Instances that are started."""
    chiron, now_s, _ = autoscaler(history)
    decision = copy.deepcopy(chiron).decide(FleetSnapshot(now_s, (fleet,), {"n": 1_000_000}))
    return sum(action.count for action in decision.actions if isinstance(action, Start))


def assert_rises(counts: Sequence[int]) -> None:
    assert all(fewer <= more for fewer, more in itertools.pairwise(counts)), counts


histories = pytest.mark.parametrize("history", HISTORIES)
# A counterexample is not shrunk: each attempt decides dozens of times.
examples = settings(max_examples=12, deadline=None, phases=(Stage.explicit, Stage.generate))
running = st.integers(0, SLOTS)
DEMANDS = [int(50 * 1.2**step) for step in range(32)]


@histories
@examples
@given(running, st.integers(1, 12), st.integers(0, 9), st.sampled_from((0.5, 10.0, 60.0, NEVER_S)))
def test_more_interactive_requests_never_ask_for_fewer_instances(
    history: str, running: int, instances: int, more: int, ttft_slo_s: float
) -> None:
    arrived = autoscaler(history)[2]
    queues = [demand + more - running * instances for demand in DEMANDS]
    counts = [
        asked(
            history,
            model(
                running=running, instances=instances, queued=queued, ttft_slo_s=ttft_slo_s, arrived=arrived
            ),
        )
        for queued in queues
        if queued >= 0
    ]
    assert_rises(counts)


@histories
@examples
@given(running, st.integers(0, 3_000), st.floats(0.1, 2.0))
def test_a_tighter_ttft_slo_never_asks_for_fewer_instances(
    history: str, running: int, queued: int, factor: float
) -> None:
    arrived = autoscaler(history)[2]
    ladder = (
        NEVER_S,
        *(factor * slo_s for slo_s in (3_600.0, 300.0, 100.0, 50.0, 20.0, 10.0, 5.0, 1.0, 0.1)),
    )
    assert_rises(
        [
            asked(history, model(running=running, queued=queued, ttft_slo_s=slo_s, arrived=arrived))
            for slo_s in ladder
        ]
    )


@pytest.mark.parametrize("history", HISTORIES[1:])
def test_a_looser_ttft_slo_has_room_for_more_and_asks_for_fewer_instances(history: str) -> None:
    arrived = autoscaler(history)[2]
    tight, loose = (
        asked(history, model(running=SLOTS, queued=1_500, ttft_slo_s=slo_s, arrived=arrived))
        for slo_s in (0.5, 20.0)
    )
    assert tight > loose


group = st.tuples(st.floats(-100, 3_600), st.integers(0, 20_000))


@histories
@examples
@given(running, st.lists(group, min_size=1, max_size=5))
def test_more_groups_never_ask_for_fewer_instances(
    history: str, running: int, groups: list[tuple[float, int]]
) -> None:
    assert_rises(
        [asked(history, model(running=running, groups=groups[:number])) for number in range(len(groups) + 1)]
    )


@histories
@examples
@given(running, st.floats(-100, 3_600), st.integers(2, 50_000), st.floats(0.01, 0.99))
def test_a_group_in_two_parts_asks_for_as_many_instances_as_in_one(
    history: str, running: int, due_s: float, requests: int, share: float
) -> None:
    first = max(1, min(requests - 1, int(share * requests)))
    parts = [(due_s, first), (due_s, requests - first)]
    whole = asked(history, model(running=running, groups=[(due_s, requests)]))
    assert asked(history, model(running=running, groups=parts)) == whole


@histories
@examples
@given(running, st.floats(-100, 7_200), st.integers(1, 300))
def test_more_backlog_never_asks_for_fewer_instances(
    history: str, running: int, due_s: float, step: int
) -> None:
    counts = [
        asked(history, model(running=running, groups=[(due_s, step * factor)] if factor else []))
        for factor in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
    ]
    assert_rises(counts)


@histories
@examples
@given(running, st.lists(group, min_size=1, max_size=4))
def test_a_tighter_deadline_never_asks_for_fewer_instances(
    history: str, running: int, groups: list[tuple[float, int]]
) -> None:
    counts = []
    for sooner_s in (-4_000.0, -1_000.0, -400.0, -100.0, 0.0, 20.0, 60.0, 200.0, 500.0, 1_000.0, 4_000.0):
        moved = [(due_s - sooner_s, requests) for due_s, requests in groups]
        counts.append(asked(history, model(running=running, groups=moved)))
    assert_rises(counts)
