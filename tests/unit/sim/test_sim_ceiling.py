"""The physical ceiling: an engine that never runs out of requests."""

from __future__ import annotations

import numpy as np
import pytest

from chiron.engine import get_profile
from chiron.sim.ceiling import ceilings, steady_state
from chiron.sim.oracle import unit_costs, work_gpu_s

TOY = get_profile("toy")
PROMPT = np.full(2000, 10, dtype=np.int32)
OUTPUT = np.full(2000, 21, dtype=np.int32)


def test_one_slot_serves_one_request_after_the_other() -> None:
    state = steady_state(TOY, PROMPT, OUTPUT, batch_size=1, step_token_budget=512)

    # The toy profile: 2 ms a step and 0.01 ms a token. The prompt's step takes 2.1 ms, each of 20 decodes
    # 2.01 ms plus the reading of 11 to 30 tokens at 4096 bytes over 1 TB/s.
    read_s = sum(range(11, 31)) * 4096 / 1e12
    request_s = 2.1e-3 + 20 * 2.01e-3 + read_s
    assert state.requests_per_gpu_s == pytest.approx(1 / request_s, rel=0.01)
    assert state.itl_ms == pytest.approx([(20 * 2.01e-3 + read_s) / 20 * 1e3] * len(state.itl_ms))


def test_the_ceiling_lies_between_the_static_pair_and_the_lower_bound() -> None:
    loose, tight, impossible = ceilings(
        TOY,
        PROMPT,
        OUTPUT,
        [1.0, 0.0025, 0.001],
        batch_sizes=(1, 16, 256),
        budgets=(512,),
        static_pair=(16, 512),
    )

    bound = 1 / work_gpu_s(unit_costs(TOY), PROMPT, OUTPUT).mean()
    assert loose.best is not None
    assert loose.bound_requests_per_gpu_s == pytest.approx(bound)
    assert loose.static.requests_per_gpu_s < loose.best.requests_per_gpu_s < bound
    assert loose.best.batch_size == 256
    # 256 decodes take 4.5 ms a step; 16 take 2.2 ms.
    assert tight.best is not None
    assert tight.best.batch_size == 16
    assert tight.gain == 1.0
    assert impossible.best is None
    assert impossible.gain is None


def test_too_few_requests_show_no_steady_state() -> None:
    with pytest.raises(ValueError, match=r"^requests: 100 are too few for a batch size of 16"):
        steady_state(TOY, PROMPT[:100], OUTPUT[:100], 16, 512)
