"""`chiron up --time-scale` slows the simulated engines down, and what is asked of them with it."""

from __future__ import annotations

from chiron.cli.up import stretch
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2


def spec(engine: str) -> pb.ModelSpec:
    defaults = pb.SloDefaults(
        interactive=types_pb2.Slo(ttft_ms=200, itl_ms=20), batch=types_pb2.Slo(deadline_s=60)
    )
    return pb.ModelSpec(name="toy", engine=engine, slo_defaults=defaults)


def test_engine_and_slo_defaults_stretch_together() -> None:
    model = spec("sim")

    stretch(model, 4.0)

    assert model.engine_args["time_scale"] == 4.0
    assert model.slo_defaults.interactive == types_pb2.Slo(ttft_ms=800, itl_ms=80)
    assert model.slo_defaults.batch == types_pb2.Slo(deadline_s=240)


def test_it_takes_the_place_of_the_spec_s_own_scale() -> None:
    model = spec("sim")
    model.engine_args["time_scale"] = 8

    stretch(model, 0.5)

    assert model.engine_args["time_scale"] == 0.5
    assert model.slo_defaults.interactive == types_pb2.Slo(ttft_ms=100, itl_ms=10)


def test_what_has_no_default_gets_none() -> None:
    model = pb.ModelSpec(name="toy", engine="sim")

    stretch(model, 2.0)

    assert not model.HasField("slo_defaults")


def test_an_engine_that_runs_in_real_time_is_left_alone() -> None:
    model = spec("vllm")

    stretch(model, 4.0)

    assert model == spec("vllm")
