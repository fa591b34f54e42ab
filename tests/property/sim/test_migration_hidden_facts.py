"""What no planner of migrations may know is not shown to it: lengths under way, and arrivals to come."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.words import Role
from chiron.sim.baselines.migration import FreenessPairing, MigrationThresholds
from chiron.sim.migration_settings import MigrationSettings
from tests.support.sim_hidden_facts import other_future
from tests.support.sim_worlds import FLAT, requests, run, world

UNTIL_S = 2.0


class Recording:
    """Llumnix's planner at thresholds that keep requests moving, and all that it was shown and answered."""

    interval_s = 0.0531

    def __init__(self):
        self.entries = []
        self._inner = FreenessPairing(MigrationThresholds(migrate_out_below=25, migrate_in_above=25))

    def pairs(self, instances):
        self.entries.append((instances, self._inner.pairs(instances)))
        return self.entries[-1][1]

    def choose(self, movable):
        self.entries.append((sorted(movable), self._inner.choose(movable)))
        return self.entries[-1][1]


def play(work):
    planner = Recording()
    settings = world(
        {Role.MIXED: 3},
        profile=FLAT.replace(kv_capacity_tokens=4096),
        batch_size=12,
        migration=MigrationSettings(network_bytes_per_s=20_000.0),
    )
    return run(settings, work, migration=planner), planner


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_what_a_planner_sees_up_to_a_time_does_not_depend_on_what_is_hidden_then(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (float(arrival), int(rng.integers(20, 200)), int(rng.integers(1, 300)))
        for arrival in np.cumsum(rng.exponential(0.03, 120))
    ]
    work = requests(*rows)
    result, planner = play(work)
    _, other = play(other_future(rng, work, result.outcomes, UNTIL_S))
    looks = int(UNTIL_S / planner.interval_s)
    assert _until(planner, looks) == _until(other, looks)


def _until(planner, looks):
    """What it was shown, and answered, up to so many looks at the instances."""
    found, seen = [], 0
    for shown, answer in planner.entries:
        seen += bool(shown) and hasattr(shown[0], "draining")
        if seen > looks:
            break
        found.append((shown, answer))
    return found
