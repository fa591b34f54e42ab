"""The lower bound on GPU time, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chiron.engine import EngineModel, EngineRequest, Profile, Speculation, get_profile
from chiron.policy.words import RequestClass
from chiron.sim.demand import Demand, merge
from chiron.sim.oracle import oracle_lb_gpu_s, oracle_served_gpu_s, unit_costs, work_gpu_s
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.workload import Workload

HAND = Profile(
    name="hand",
    gpus=2,
    # 10 ms for one token, 20 ms for 10 and then 1 ms for each more: 2 ms a token at 10, 1.1 at 100, and
    # ever nearer to the slope of 1 ms.
    step_time_ms=((1, 10.0), (10, 20.0), (100, 110.0)),
    kv_bytes_per_token=1000,
    kv_read_bytes_per_s=1e6,
    kv_capacity_tokens=16_000,
    block_size=16,
    max_context_tokens=4096,
    default_step_token_budget=512,
    load_s=1.0,
    wake_s=(0.1, 0.2),
)


def settings(profile: Profile, factor: float = 1.0) -> SimSettings:
    return SimSettings((SimModel("m", profile),), (GpuType("g", 1, 8),), step_time_factor=factor)


def workload(lengths: list[tuple[int, int]], prefix: tuple[tuple[int, ...], ...] | None = None) -> Workload:
    prompt, output = np.array(lengths, dtype=np.int32).T
    return merge(
        [Demand(0, RequestClass.INTERACTIVE, np.zeros(len(lengths)), prompt, output, math.inf, prefix)]
    )


def test_the_cheapest_token_and_the_cost_of_reading() -> None:
    costs = unit_costs(HAND)

    # The line's slope of 1 ms, on two GPUs; 1000 bytes at 1 MB/s on each of two GPUs that share the read.
    assert costs.per_token_gpu_s == pytest.approx(2 * 0.001)
    assert costs.per_kv_token_gpu_s == pytest.approx(2 * 0.0005)


def test_one_request_by_hand() -> None:
    # i = 5, o = 4: 8 tokens computed; tokens 2, 3 and 4 read 5, 6 and 7 = 3 x 5 + 3 x 2 / 2 = 18.
    assert oracle_lb_gpu_s(settings(HAND), workload([(5, 4)])) == pytest.approx(8 * 0.002 + 18 * 0.001)
    # One output token: the prompt alone, and nothing is read.
    assert oracle_lb_gpu_s(settings(HAND), workload([(5, 1)])) == pytest.approx(5 * 0.002)


def test_requests_add_up_and_slower_steps_cost_more() -> None:
    both = oracle_lb_gpu_s(settings(HAND), workload([(5, 4), (5, 1)]))

    assert both == pytest.approx(8 * 0.002 + 18 * 0.001 + 5 * 0.002)
    assert oracle_lb_gpu_s(settings(HAND, 1.3), workload([(5, 4), (5, 1)])) == pytest.approx(1.3 * both)


def test_a_prompt_block_is_computed_once() -> None:
    # Two blocks of 16 shared by both, the second request's third block is its own.
    shared = workload([(40, 1), (50, 1)], ((1, 2), (1, 2, 3)))

    assert oracle_lb_gpu_s(settings(HAND), shared) == pytest.approx((40 + 50 - 32) * 0.002)


def test_a_block_that_a_request_beside_the_served_ones_has_may_have_been_computed_by_it() -> None:
    # The first is not served or came in the warm-up; two of its blocks of 16 are also the second's and the
    # third's, and the third block of those is computed by one of them.
    shared = workload([(40, 1), (50, 1), (50, 1)], ((1, 2), (1, 2, 3), (1, 2, 3)))
    served = np.array([False, True, True])

    bound = oracle_served_gpu_s(settings(HAND), shared, served)

    assert bound == pytest.approx((50 - 32 + 50 - 48) * 0.002)


def test_drafts_divide_the_reads() -> None:
    drafting = HAND.replace(speculation=Speculation(2, 0.5))

    assert oracle_lb_gpu_s(settings(drafting), workload([(5, 4)])) == pytest.approx(
        8 * 0.002 + 18 * 0.001 / 3
    )


@pytest.mark.parametrize("name", ["llama3-8b@a100", "llama3-70b@4xa100", "toy"])
@pytest.mark.parametrize("batch_size", [1, 64, 512])
def test_no_engine_beats_the_bound(name: str, batch_size: int) -> None:
    profile = get_profile(name)
    generator = np.random.default_rng(5)
    prompt = generator.integers(1, 600, 600)
    output = generator.integers(1, 300, 600)
    engine = EngineModel(profile, batch_size=batch_size, report_emissions=False)
    for request in range(600):
        engine.submit(EngineRequest(request, int(prompt[request]), int(output[request])))
    busy_s = 0.0
    while (outcome := engine.advance(busy_s)) is not None:
        busy_s += outcome.duration_s

    bound = work_gpu_s(unit_costs(profile), prompt.astype(np.int32), output.astype(np.int32)).sum()
    assert bound <= busy_s * profile.gpus
