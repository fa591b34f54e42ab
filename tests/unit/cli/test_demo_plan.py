from __future__ import annotations

import pytest

from chiron.cli.demo import plan as demo
from chiron.cli.demo.fixed_fleet import smallest_fixed_fleet
from chiron.cli.demo.plan import Ask, Plan, make_plan
from chiron.cli.demo.run import demo_spec


def test_the_seed_alone_decides_what_is_asked() -> None:
    assert make_plan(3) == make_plan(3)
    assert make_plan(3) != make_plan(4)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_a_quiet_load_with_a_burst_and_a_backlog(seed: int) -> None:
    plan = make_plan(seed)
    times = [ask.at_s for ask in plan.interactive]
    burst = [at_s for at_s in times if demo.BURST_FROM_S <= at_s < demo.BURST_TO_S]
    burst_s = demo.BURST_TO_S - demo.BURST_FROM_S

    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < demo.DURATION_S
    # Poisson: within five standard deviations of what is expected.
    for count, expected in (
        (len(burst), demo.BURST_PER_S * burst_s),
        (len(times) - len(burst), demo.BASE_PER_S * (demo.DURATION_S - burst_s)),
    ):
        assert abs(count - expected) < 5 * expected**0.5
    assert [len(backlog.items) for backlog in plan.backlogs] == [demo.SAMPLE_ITEMS, demo.BACKLOG_ITEMS]
    assert {ask.output_tokens for ask in plan.interactive} == set(
        range(demo.OUTPUT_TOKENS[0], demo.OUTPUT_TOKENS[1] + 1)
    )


def test_the_fixed_fleet_grows_with_what_is_asked() -> None:
    def fleet(per_s: float) -> int:
        asks = tuple(Ask(number / per_s, 60, 24) for number in range(round(30 * per_s)))
        found = smallest_fixed_fleet(Plan(asks, ()), demo_spec(), nodes=2, gpus=4, seed=1)
        assert found is not None
        return found.instances

    # An instance makes about 24 tokens in 80 ms: some 10 of these requests a second.
    assert fleet(2.0) == 1
    assert 2 <= fleet(15.0) < fleet(60.0) <= 8


def test_no_fixed_fleet_serves_what_is_too_much_for_all_gpus() -> None:
    asks = tuple(Ask(number / 400, 60, 32) for number in range(12_000))

    assert smallest_fixed_fleet(Plan(asks, ()), demo_spec(), nodes=1, gpus=2, seed=1) is None
