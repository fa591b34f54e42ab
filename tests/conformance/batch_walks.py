"""Random walks: what the conformance suite asks of any sequence of calls."""

from __future__ import annotations

import itertools
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.batch_cases import Advance, BatchCase, OpenQueue
from tests.conformance.batch_model import STEPS, walk

_names = itertools.count()
_step = st.sampled_from([step for step, weight in STEPS.items() for _ in range(weight)])


class BatchWalksSuite(BatchCase):
    """Queue and model agree after every step."""

    @settings(
        max_examples=8,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,  # each walk has tenants of its own
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    @given(steps=st.lists(_step, min_size=20, max_size=40), seed=st.integers(0, 1 << 32))
    async def test_counts_and_results_agree_with_a_model(
        self, open_queue: OpenQueue, advance: Advance, steps: list[str], seed: int
    ) -> None:
        await walk(open_queue, advance, str(next(_names)), steps, seed)

    async def test_a_long_walk_agrees_with_a_model(self, open_queue: OpenQueue, advance: Advance) -> None:
        rng = random.Random(18)
        steps = rng.choices(list(STEPS), list(STEPS.values()), k=150)
        await walk(open_queue, advance, "long", steps, seed=18)
