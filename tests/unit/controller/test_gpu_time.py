"""GPU time by model and phase, on a clock that the test holds."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.gpu_time import GpuTime
from tests.support.cluster_states import DRAINING, FAILED, LOADING, PENDING, STOPPED, instance

SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING


def held(name: str, *, of: str = "chat", gpus: tuple[int, ...] = (0,), **fields: object) -> InstanceRecord:
    return dataclasses.replace(instance(name, "a", of=of, **fields), gpu_indexes=gpus)


def asleep(name: str, **fields: object) -> InstanceRecord:
    record = held(name, state=SLEEPING, **fields)
    return dataclasses.replace(record, desired=control_pb2.DESIRED_STATE_SLEEPING)


def figures(told: cluster_pb2.GpuSeconds) -> tuple[float, ...]:
    return told.loading, told.serving, told.draining, told.sleeping


def test_each_phase_counts_from_placement_to_the_end_for_every_gpu() -> None:
    time = GpuTime(100.0)
    pair = (0, 1)
    time.update([held("i", gpus=pair, state=PENDING)], (), 101.0)
    time.update([held("i", gpus=pair, state=LOADING)], (), 103.0)
    time.update([held("i", gpus=pair)], (), 106.0)
    time.update([held("i", gpus=pair, desired=STOPPED)], (), 116.0)
    time.update([held("i", gpus=pair, desired=STOPPED, state=DRAINING)], (), 117.0)
    time.update([held("i", gpus=pair, desired=STOPPED, state=types_pb2.INSTANCE_STATE_STOPPED)], (), 118.0)
    told = time.of("chat", 200.0)
    assert figures(told) == (10.0, 20.0, 4.0, 0.0)
    assert told.over_s == 100.0
    assert time.of("other", 200.0) == cluster_pb2.GpuSeconds(over_s=100.0)


def test_what_is_held_now_grows_with_every_look() -> None:
    time = GpuTime(0.0)
    time.update([held("i")], (), 0.0)
    assert [time.all(float(now)).serving for now in (1, 1, 4)] == [1.0, 1.0, 4.0]


@pytest.mark.parametrize(
    "record",
    [held("i", state=FAILED), held("i", state=types_pb2.INSTANCE_STATE_STOPPED)],
    ids=["failed", "stopped"],
)
def test_who_holds_nothing_counts_for_nothing(record: InstanceRecord) -> None:
    time = GpuTime(0.0)
    time.update([record], (), 0.0)
    assert figures(time.all(9.0)) == (0.0, 0.0, 0.0, 0.0)


def test_a_dead_nodes_gpus_are_nobodys() -> None:
    time = GpuTime(0.0)
    time.update([held("i")], (), 0.0)
    time.update([held("i")], {"a"}, 5.0)
    assert time.all(60.0).serving == 5.0


def test_a_shared_gpu_counts_once_for_who_is_awake() -> None:
    time = GpuTime(0.0)
    sleeper, other = asleep("s"), asleep("t", of="third")
    time.update([sleeper, other, held("i", of="other")], (), 0.0)
    time.update([sleeper, other], (), 10.0)
    assert figures(time.of("other", 14.0)) == (0.0, 10.0, 0.0, 0.0)
    assert figures(time.of("chat", 14.0)) == (0.0, 0.0, 0.0, 2.0)
    assert figures(time.of("third", 14.0)) == (0.0, 0.0, 0.0, 2.0)
    assert figures(time.all(14.0)) == (0.0, 10.0, 0.0, 4.0)


def test_one_that_is_told_to_wake_loads() -> None:
    time = GpuTime(0.0)
    time.update([held("s", state=SLEEPING)], (), 0.0)
    assert figures(time.all(3.0)) == (3.0, 0.0, 0.0, 0.0)


def test_a_model_that_is_gone_stays_in_the_clusters_time() -> None:
    time = GpuTime(0.0)
    time.update([held("i")], (), 0.0)
    time.update([], (), 2.0)
    assert time.all(60.0).serving == 2.0
