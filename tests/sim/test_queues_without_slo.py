"""A simulated model without a TTFT SLO: a queue that stands brings an instance, whatever is promised."""

from __future__ import annotations

from chiron.policy.fleet import Chiron
from chiron.sim.settings import LARGEST
from tests.support.sim_worlds import requests, run, world

LOAD_S = 5.0


def rate(per_s: float, since_s: float, until_s: float) -> list[tuple[float, int, int]]:
    count = round((until_s - since_s) * per_s)
    return [(since_s + number / per_s, 10, 100) for number in range(count)]


def test_requests_that_wait_for_longer_than_a_load_call_for_capacity() -> None:
    """A slot ends a request a second: eight do as many as come, and never work off what came beyond that."""
    quiet = [*rate(5, 0, 20), *rate(7.5, 20, 40)]
    more, steady = rate(8.4, 40, 60), rate(7.9, 60, 120)
    patient = {"ttft_slo_s": LARGEST, "min_instances": 1, "load_time_s": LOAD_S}
    result = run(world(model=patient), requests(*quiet, *more, *steady), autoscaler=Chiron())
    [first, *_] = [act for act in result.actions if act.kind == "start"]
    assert "have waited in line" in first.reason
    assert 40.0 + LOAD_S <= first.at_s <= 40.0 + LOAD_S + 3.0
    # Those who come late find the line gone.
    late_s = result.outcomes.first_token_s[-8:] - [at for at, _, _ in steady[-8:]]
    assert late_s.max() < 0.1
