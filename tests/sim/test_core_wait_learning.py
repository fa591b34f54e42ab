"""What a router learns of loads and lengths before it has seen many of them."""

import numpy as np
import pytest

from chiron.engine import get_profile
from chiron.policy.decisions import ChangeRole, Sleep, Start, Wake
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass, Role
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.lengths import SHAREGPT
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.simulator import Simulation, simulate
from chiron.sim.workload import Workload
from tests.support.sim_worlds import FLAT, Script, requests, world


def loading_at(tick_s, actions, *, profile=FLAT, **model):
    """Expected times until instances that load are ready, as the router has them at this tick."""

    class Watching(Script):
        found = None

        def decide(self, snapshot):
            if snapshot.now_s == pytest.approx(tick_s):
                self.found = [each.ready_in_s for each in simulation.routers[0].waits.serving(tick_s)]
            return super().decide(snapshot)

    script = Watching(actions)
    settings = world(profile=profile, model=model, queues=QueueSettings(estimate_every=1))
    dispatcher = LeastExpectedWait()
    simulation = Simulation(settings, requests((20.0, 10, 1)), script, dispatcher, None, None)
    simulation.run()
    return [ready_in_s for ready_in_s in script.found if ready_in_s > 0]


def test_a_wake_teaches_nothing_of_how_long_a_load_takes():
    wakes = {1.0: [Sleep("m", "m-00000", "idle")], 3.0: [Wake("m", "m-00000", Role.MIXED, "demand")]}
    starts = {6.0: [Start("m", Role.MIXED, 1, "demand")]}
    # Awake after 0.5 s; the other one loads from 6 to 8.
    assert loading_at(7.0, wakes | starts, sleep_level=1, wake_time_s=0.5) == pytest.approx([1.0])


def test_another_role_while_it_loads_does_not_begin_a_load_anew():
    start = [Start("m", Role.MIXED, 1, "demand")]
    actions = {1.0: start, 4.0: [ChangeRole("m", "m-00001", Role.BATCH, "split")], 6.0: start}
    # The first one loads from 1 to 5, the second one from 6 to 10.
    assert loading_at(5.0, actions, load_time_s=4.5) == pytest.approx([0.5])
    assert loading_at(7.0, actions, load_time_s=4.0) == pytest.approx([3.0])


def test_a_wake_is_expected_to_take_as_long_as_the_level_of_sleep_demands():
    profile = FLAT.replace(wake_s=(1.0, 4.0))
    actions = {1.0: [Sleep("m", "m-00000", "idle")], 3.0: [Wake("m", "m-00000", Role.MIXED, "demand")]}
    assert loading_at(4.0, actions, profile=profile, sleep_level=2) == pytest.approx([3.0])


def test_nobody_is_refused_at_a_cold_start_who_would_be_served_in_time():
    rng = np.random.default_rng(5)
    count = 2_300
    prompt, output = SHAREGPT.sample(rng, count)
    burst = Workload(
        arrival_s=np.sort(rng.uniform(0.0, 8.0, count)),
        prompt_tokens=prompt,
        output_tokens=np.minimum(output, 4_000),
        request_class=np.full(count, RequestClass.INTERACTIVE, dtype=np.int8),
        model=np.zeros(count, dtype=np.int16),
        deadline_s=np.full(count, np.inf),
    )
    arrays = {name: getattr(burst, name) for name in Workload.__slots__}
    asking = Workload(**arrays | {"refuse_late": np.ones(count, dtype=bool)})
    model = SimModel("m", get_profile("llama3-8b@a100"), initial={Role.MIXED: 4}, ttft_slo_s=10.0)
    settings = SimSettings(models=(model,), gpu_types=(GpuType("g", 1, 4),))
    patient, asked = (
        simulate(settings, work, autoscaler=FixedFleet(), dispatcher=LeastExpectedWait())
        for work in (burst, asking)
    )
    assert (patient.outcomes.first_token_s - burst.arrival_s).max() < 10.0
    assert asked.refused == 0
