"""Phases, since when, and how long loads and wakes take, by a clock that the test moves."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.internal.v1 import control_pb2
from chiron.policy.words import Phase
from chiron.store import InstanceRecord, ModelRecord, Observed
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.phases import Phases, phase_of
from tests.support.cluster_states import DRAINING, FAILED, LOADING, PENDING, READY, STOPPED, instance, model

SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING
GONE = types_pb2.INSTANCE_STATE_STOPPED
SLEEP = control_pb2.DESIRED_STATE_SLEEPING
RUN = control_pb2.DESIRED_STATE_RUNNING


@pytest.mark.parametrize(
    ("state", "desired", "phase"),
    [
        (PENDING, RUN, Phase.LOADING),
        (LOADING, RUN, Phase.LOADING),
        (READY, RUN, Phase.READY),
        (DRAINING, RUN, Phase.DRAINING),
        (READY, STOPPED, Phase.DRAINING),
        (LOADING, STOPPED, Phase.DRAINING),
        (READY, SLEEP, Phase.DRAINING),
        (SLEEPING, SLEEP, Phase.SLEEPING),
        (SLEEPING, RUN, Phase.LOADING),
        (FAILED, RUN, None),
        (FAILED, STOPPED, None),
        (GONE, STOPPED, None),
    ],
)
def test_a_command_counts_at_once(
    state: types_pb2.InstanceState.ValueType,
    desired: control_pb2.DesiredState.ValueType,
    phase: Phase | None,
) -> None:
    assert phase_of(instance("a", "n", state=state, desired=desired)) is phase


class World:
    """One model and one instance of it, as the controller sees them."""

    def __init__(self) -> None:
        self.phases = Phases()
        self.model = model("chat")
        self.models: list[ModelRecord] = [self.model]
        self.record: InstanceRecord = instance("a", "n", state=PENDING)

    def see(
        self,
        now: float,
        state: types_pb2.InstanceState.ValueType,
        *,
        desired: control_pb2.DesiredState.ValueType = RUN,
        reported: types_pb2.InstanceState.ValueType | None = None,
        age_ms: float = 0.0,
        load_ms: float = 0.0,
    ) -> None:
        """An update; the last report may be of another state than the one on record."""
        self.record = dataclasses.replace(self.record, desired=desired, observed=Observed(state))
        status = cluster_pb2.InstanceStatus(
            state=state if reported is None else reported,
            state_age_ms=age_ms,
            load=cluster_pb2.InstanceLoad(load_ms=load_ms),
        )
        self.phases.update(self.models, [self.record], {"a": status}, now)

    @property
    def since_s(self) -> float:
        standing = self.phases.of("a")
        assert standing is not None
        return standing.since_s


@pytest.fixture
def world() -> World:
    return World()


def test_a_phase_lasts_over_the_states_that_make_it_up(world: World) -> None:
    world.see(100.0, PENDING)
    world.see(101.0, LOADING)
    assert world.since_s == 100.0


def test_a_phase_found_at_the_first_look_began_as_long_ago_as_the_agent_says(world: World) -> None:
    world.see(100.0, READY, age_ms=60_000)
    assert world.since_s == 40.0


def test_the_age_of_another_state_says_nothing(world: World) -> None:
    world.see(100.0, READY)
    world.see(200.0, READY, desired=STOPPED, age_ms=100_000)
    assert world.since_s == 200.0, "it drains since it was told to, not since it is ready"
    world.see(300.0, DRAINING, desired=RUN, reported=READY, age_ms=100_000)
    assert world.since_s == 200.0, "it is still draining"


def test_load_times_reach_from_placement_to_ready(world: World) -> None:
    assert world.phases.load_time_s(world.model) is None
    world.see(100.0, PENDING)
    world.see(102.0, LOADING)
    world.see(131.0, READY, age_ms=1000)
    assert world.phases.load_time_s(world.model) == pytest.approx(30.0)
    assert world.phases.wake_time_s(world.model) is None


def test_the_95th_percentile_counts(world: World) -> None:
    for index in range(101):
        world.record = instance(f"i{index}", "n", state=PENDING)
        world.see(1000.0 * index, PENDING)
        world.see(1000.0 * index + 10 + index, READY)
    assert world.phases.load_time_s(world.model) == pytest.approx(105.0)


def test_a_restart_after_a_crash_is_no_measurement(world: World) -> None:
    world.see(100.0, PENDING)
    world.see(110.0, READY)
    world.see(200.0, PENDING)
    world.see(290.0, READY)
    assert world.phases.load_time_s(world.model) == pytest.approx(10.0)


def test_waking_is_measured_apart(world: World) -> None:
    world.see(100.0, SLEEPING, desired=SLEEP)
    world.see(200.0, SLEEPING, desired=RUN)
    standing = world.phases.of("a")
    assert standing is not None
    assert (standing.phase, standing.waking) == (Phase.LOADING, True)
    world.see(203.0, READY)
    assert world.phases.wake_time_s(world.model) == pytest.approx(3.0)
    assert world.phases.load_time_s(world.model) is None


def test_of_a_worker_that_another_controller_started_the_workers_own_measurement_counts(world: World) -> None:
    world.see(100.0, READY, load_ms=21_000)
    assert world.phases.load_time_s(world.model) == pytest.approx(21.0)


def test_measurements_of_workers_that_a_new_spec_replaces_count_no_more(world: World) -> None:
    world.see(100.0, PENDING)
    world.see(110.0, READY)
    assert (
        world.phases.load_time_s(dataclasses.replace(world.model, spec_version=2, rollout_version=2)) is None
    )


def test_what_is_gone_is_forgotten(world: World) -> None:
    world.see(100.0, PENDING)
    world.see(110.0, READY)
    world.models = []
    world.see(111.0, GONE, desired=STOPPED)
    assert world.phases.of("a") is None
    assert world.phases.load_time_s(world.model) is None
