"""Decisions of `chiron-paper`, by hand-worked fleets, and what it says of them."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import FleetDecision, Start
from chiron.policy.fleet import ChironPaper, ChironSettings
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S = 20.0


def decide(
    *groups: tuple[float, int], instances: tuple[FleetInstance, ...], finished: int = 10_000_000
) -> FleetDecision:
    """groups: deadline in seconds and requests of 100 output tokens each, as those that have ended had."""
    traffic = Traffic(
        1.0,
        finished_batch=finished,
        finished_output_tokens=100 * finished,
        finished_output_tokens_sq=1e4 * finished,
        finished_batch_output_tokens=100 * finished,
        finished_batch_output_tokens_sq=1e4 * finished,
    )
    backlog = tuple(BatchBacklog(due_s, requests, 0) for due_s, requests in groups)
    model = ModelFleet("m", 1, 0, 0, 10.0, 0.2, 2.0, instances, traffic, backlog, LOAD_S)
    # At the quantile 0.5 the work is the mean.
    autoscaler = ChironPaper(ChironSettings(wait_quantile=0.5, default_theta=0.5))
    return autoscaler.decide(FleetSnapshot(1.0, (model,), {"n": 100}))


FULL = FleetInstance("b", "n", Role.BATCH, Phase.READY, 100, 100, running_batch=100, tokens_per_s=1_000.0)


@pytest.mark.parametrize(("requests", "late", "starts"), [(1_190, 0, 0), (1_310, 1, 1), (2_310, 1, 2)])
def test_batch_instances_are_added_until_the_last_first_token_of_every_group_is_in_time(
    requests: int, late: int, starts: int
) -> None:
    # 1,000 tokens a second until 120 s serve 1,200 requests; each further instance 1,000 in its 100 s.
    decision = decide((120.0, requests), instances=(FULL,))
    assert decision.assessments[0].numbers["bbp"] == late
    assert [(a.role, a.count) for a in decision.actions if isinstance(a, Start)] == [
        (Role.BATCH, starts) for _ in range(starts > 0)
    ]


def test_a_group_that_none_can_save_is_to_begin_two_load_times_from_now() -> None:
    # By 40 s there are 40,000 tokens; a further instance makes 20,000 of them from 20 s on.
    for requests, starts in ((390, 0), (450, 1), (750, 2)):
        for due_s in (-100.0, 5.0, 20.0, 40.0):
            actions = decide((due_s, requests), instances=(FULL,)).actions
            assert sum(action.count for action in actions if isinstance(action, Start)) == starts


def test_a_tick_without_actions_says_what_is_above_and_what_is_late() -> None:
    late = decide((-5.0, 100), instances=(FULL,)).assessments[0]
    assert late.numbers["bbp"] == 1.0
    assert late.reason == (
        "IBP is not above Θ; BBP is 1: no further instance is known to make a late group begin sooner"
    )
    idle = decide(instances=(FULL,)).assessments[0]
    assert idle.reason == "IBP is not above Θ; BBP is 0"
    busy = FleetInstance("i", "n", Role.MIXED, Phase.READY, 100, 100, running_interactive=1)
    coming = FleetInstance("j", "n", Role.MIXED, Phase.LOADING, 100, 100, ready_in_s=5.0)
    above = decide(instances=(busy, coming)).assessments[0]
    assert above.numbers["ibp"] == 1.0
    assert above.reason == "IBP is above Θ until what loads is ready; BBP is 0"
