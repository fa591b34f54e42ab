"""Which specs are refused, naming the field, and which changes need new workers."""

from __future__ import annotations

import math

import pytest

from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from services.global_controller.specs import check_spec, clamp_instances, needs_new_workers, normalise


def spec(**fields: object) -> pb.ModelSpec:
    return pb.ModelSpec(**{"name": "chat", "gpus_per_instance": 1, "engine": "sim"} | fields)  # type: ignore[arg-type]


def test_the_smallest_spec_is_valid() -> None:
    assert check_spec(spec()) == []


@pytest.mark.parametrize(
    ("fields", "field", "what"),
    [
        ({"name": ""}, "name", "1 to 63 characters"),
        ({"name": "Chat"}, "name", "[a-z0-9.-]"),
        ({"name": "-chat"}, "name", "starting with a letter or digit"),
        ({"name": "x" * 64}, "name", "1 to 63 characters"),
        ({"gpus_per_instance": 0}, "gpus_per_instance", ">= 1"),
        ({"engine": ""}, "engine", "vllm, sim or module:Class"),
        ({"engine": "tensorrt"}, "engine", "'tensorrt'"),
        ({"engine": "my.module:"}, "engine", "module:Class"),
        ({"engine": "vllm"}, "weights", "required by engine vllm"),
        ({"min_instances": 3, "max_instances": 2}, "min_instances", "at most max_instances (2), not 3"),
        ({"min_instances": 10_001}, "min_instances", "at most 10000, not 10001"),
        ({"max_instances": 1_000_000_000}, "max_instances", "at most 10000, not 1000000000"),
        ({"max_batch_size": 65_537}, "max_batch_size", "at most 65536"),
        ({"role": 9}, "role", "unknown value 9"),
        ({"max_batch_size": 8, "initial_batch_size": 9}, "initial_batch_size", "(8), not 9"),
        ({"initial_batch_size": 257}, "initial_batch_size", "(256), not 257"),
        ({"drain_timeout_s": -1}, "drain_timeout_s", "a number >= 0, not -1"),
        ({"roll": pb.RollSettings(hold_s=math.inf)}, "roll.hold_s", "a number >= 0, not inf"),
        (
            {"autoscaling": pb.AutoscalingSpec(local="modle")},
            "autoscaling.local",
            "model, reactive, off or module:Class",
        ),
        ({"priority": -1001}, "priority", "-1000 to 1000, not -1001"),
        (
            {"autoscaling": pb.AutoscalingSpec(local="os:getcwd")},
            "autoscaling.local",
            "os is of Python's own library, which has no local autoscaler: 'os:getcwd'",
        ),
        (
            {"autoscaling": pb.AutoscalingSpec(local="concurrent.futures:Executor")},
            "autoscaling.local",
            "concurrent is of Python's own library",
        ),
        ({"autoscaling": pb.AutoscalingSpec(sleep_level=3)}, "autoscaling.sleep_level", "0, 1 or 2, not 3"),
        (
            {"autoscaling": pb.AutoscalingSpec(sleep_residual_mib=100)},
            "autoscaling.sleep_level",
            "must be 1 or 2 for sleep_residual_mib to count, not 0: never",
        ),
        (
            {"autoscaling": pb.AutoscalingSpec(sleep_residual_mib=100, sleep_host_mib=5)},
            "autoscaling.sleep_level",
            "must be 1 or 2 for sleep_residual_mib and sleep_host_mib to count",
        ),
        (
            {"autoscaling": pb.AutoscalingSpec(gpu_memory_share=1.5)},
            "autoscaling.gpu_memory_share",
            "at most 1, or 0 (unset), not 1.5",
        ),
        (
            {"slo_defaults": pb.SloDefaults(interactive=types_pb2.Slo(ttft_ms=0))},
            "slo_defaults.interactive.ttft_ms",
            "> 0",
        ),
        (
            {"slo_defaults": pb.SloDefaults(batch=types_pb2.Slo(deadline_s=math.nan))},
            "slo_defaults.batch.deadline_s",
            "> 0",
        ),
        ({"adapters": [pb.Adapter(name="", path="/x")]}, "adapters[0].name", "required"),
        ({"adapters": [pb.Adapter(name="sql")]}, "adapters[0].path", "required"),
        (
            {"adapters": [pb.Adapter(name="sql", path="/x"), pb.Adapter(name="sql", path="/y")]},
            "adapters[1].name",
            "twice",
        ),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], field: str, what: str) -> None:
    [(path, text)] = check_spec(spec(**fields))
    assert path == f"spec.{field}"
    assert what in text


def test_a_number_that_json_cannot_hold_is_named_at_its_depth() -> None:
    bad = spec()
    bad.engine_args.update({"nested": {"values": [1.0, math.inf]}})
    assert check_spec(bad) == [("spec.engine_args.nested.values[1]", "must be a finite number")]


def test_every_violation_is_reported() -> None:
    found = [path for path, _ in check_spec(pb.ModelSpec())]
    assert found == ["spec.name", "spec.gpus_per_instance", "spec.engine"]


@pytest.mark.parametrize("engine", ["sim", "mine:Engine", "my.engines.fast:Engine_2"])
def test_engines_by_name_and_by_class_are_valid(engine: str) -> None:
    assert check_spec(spec(engine=engine)) == []


@pytest.mark.parametrize(
    "local", ["osmosis:Mine", "my.os:Autoscaler", "chiron.policy.local.model:ModelAutoscaler"]
)
def test_local_autoscalers_of_ones_own_are_valid(local: str) -> None:
    assert check_spec(spec(autoscaling=pb.AutoscalingSpec(local=local))) == []


def test_what_sleepers_may_keep_counts_beside_a_level() -> None:
    counts = pb.AutoscalingSpec(sleep_level=1, sleep_residual_mib=100, sleep_host_mib=5)
    assert check_spec(spec(autoscaling=counts)) == []


def test_defaults_are_filled_in_without_touching_the_callers_spec() -> None:
    given = spec()
    filled = normalise(given)
    assert filled.max_batch_size == 256
    assert filled.role == types_pb2.ROLE_MIXED
    assert given == spec()


def test_what_is_set_stays() -> None:
    filled = normalise(spec(max_batch_size=8, role=types_pb2.ROLE_BATCH))
    assert filled.max_batch_size == 8
    assert filled.role == types_pb2.ROLE_BATCH


@pytest.mark.parametrize(
    "change", [{"min_instances": 2}, {"max_instances": 4}, {"role": 3}, {"priority": -3}]
)
def test_numbers_of_instances_role_and_priority_need_no_new_workers(change: dict[str, int]) -> None:
    assert not needs_new_workers(spec(), spec(**change))


def test_what_autoscalers_may_do_needs_no_new_workers() -> None:
    assert not needs_new_workers(spec(), spec(autoscaling=pb.AutoscalingSpec(sleep_level=1)))


@pytest.mark.parametrize("change", [{"weights": "/v2"}, {"revision": "b"}, {"max_batch_size": 8}])
def test_everything_that_a_worker_reads_needs_new_workers(change: dict[str, object]) -> None:
    assert needs_new_workers(spec(), spec(**change))


@pytest.mark.parametrize(
    ("wanted", "low", "high", "result"),
    [(0, 1, 3, 1), (2, 1, 3, 2), (9, 1, 3, 3), (9, 1, 0, 9), (0, 2, 0, 2), (10_001, 1, 0, 10_000)],
)
def test_wanted_instances_stay_within_the_spec(wanted: int, low: int, high: int, result: int) -> None:
    assert clamp_instances(wanted, spec(min_instances=low, max_instances=high)) == result
