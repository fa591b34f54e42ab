"""`chiron sim plan --format chiron`: what a recorded cluster would have needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from chiron.cli.sim_options import OutputOptions, PlanOptions, PolicyOptions, TraceOptions
from chiron.cli.sim_plan import run_plan
from chiron.config import ConfigError
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

ZERO = 1772366400.0
"""2026-03-01 12:00 UTC."""


def recorded(
    folder: Path, *, slo: dict[str, float], count: int = 120, odd: dict[str, float] | None = None
) -> Path:
    """Twelve requests a second of 100 tokens, 0.2 s each; the last one may have another SLO."""
    folder.mkdir()
    lines: list[dict[str, Any]] = [
        {"chiron_recording": 1, "started": "2026-03-01T12:00:00+00:00", "router": "r", "models": {}}
    ]
    for number in range(count):
        last = odd is not None and number == count - 1
        lines.append(
            {
                "at": number / 12,
                "id": f"{number}",
                "model": "m",
                "class": "interactive",
                "prompt": 1,
                "output": 100,
                "slo": odd if last else slo,
                "ttft_ms": 5,
                "itl_mean_ms": 2,
                "took_s": 0.2,
                "end": "ok",
            }
        )
    (folder / "requests-r-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def cluster(file: Path, **autoscaling: Any) -> Path:
    """Five GPUs, one of which has the model's only instance, which serves one request at a time."""
    arguments = struct_pb2.Struct()
    arguments.update({"profile": "toy"})
    spec = pb.ModelSpec(
        name="m",
        engine="sim",
        gpus_per_instance=1,
        max_batch_size=1,
        max_instances=1,
        engine_args=arguments,
        autoscaling=pb.AutoscalingSpec(local="off", **autoscaling),
    )
    made = pb.ClusterSnapshot(
        term=3,
        models=[pb.ModelStatus(spec=spec)],
        nodes=[pb.NodeStatus(node_id="n", gpus=[pb.Gpu(index=index) for index in range(5)])],
        instances=[
            pb.InstanceStatus(
                instance_id="m-0",
                model="m",
                node_id="n",
                gpu_indexes=[0],
                role=types_pb2.ROLE_MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
            )
        ],
    )
    lines = []
    for at_s in (-1, 0, 9):
        made.time.FromNanoseconds(int((ZERO + at_s) * 1e9))
        lines.append(json.dumps(json_format.MessageToDict(made)) + "\n")
    file.write_text("".join(lines))
    return file


def planned(tmp_path: Path, recording: Path, *, autoscaled: bool = True, **asked: Any) -> Any:
    file = tmp_path / "plan.json"
    trace = TraceOptions(cluster=cluster(tmp_path / "cluster.jsonl", enabled=autoscaled))
    output = OutputOptions(json_file=file, progress=False)
    run_plan(recording, "chiron", PlanOptions(jobs=1, **asked), trace, PolicyOptions(), output)
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("autoscaled", [True, False])
def test_a_cluster_of_one_instance_is_told_what_it_needs(autoscaled: bool, tmp_path: Path) -> None:
    # 2.4 requests at once, whatever maximum the model had.
    recording = recorded(tmp_path / "r", slo={"ttft_ms": 600, "itl_ms": 50})

    found = planned(tmp_path, recording, autoscaled=autoscaled, seeds=2)

    assert found["fixed"]["instances"] == {"m": 3}
    assert found["most_gpus"] == 5
    assert found["policy"].startswith("chiron[local=static]")
    (model,) = found["parameters"]["settings"]["models"]
    assert (model["ttft_slo_s"], model["itl_slo_s"], model["max_instances"]) == (0.6, 0.05, 0)


def test_growth_brings_more_of_the_same_requests(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", slo={"ttft_ms": 5000, "itl_ms": 50}, count=48)

    found = planned(tmp_path, recording, seeds=1, growth="1,2")

    assert [each["fixed"]["gpus"] for each in found["growth"]] == [
        found["fixed"]["gpus"],
        found["growth"][1]["fixed"]["gpus"],
    ]
    assert found["growth"][1]["fixed"]["gpus"] > found["fixed"]["gpus"]


def test_requests_with_another_slo_than_most_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"ttft_ms": 600, "itl_ms": 50}
    recording = recorded(tmp_path / "r", slo=usual, odd={"ttft_ms": 1, "itl_ms": 1}, count=24)

    planned(tmp_path, recording, seeds=1)

    told = capsys.readouterr().err
    assert (
        "warning: 1 of 24 interactive requests to 'm' had another SLO than most; "
        "all are judged by TTFT 600 ms and ITL 50 ms" in told
    )


def test_without_any_slo_one_must_be_given(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", slo={}, count=24)

    with pytest.raises(ConfigError, match=r"^--slo-ttft: nothing is promised to requests to m: give this or"):
        planned(tmp_path, recording, seeds=1)
    found = planned(tmp_path, recording, seeds=1, slo_ttft="600")
    assert found["fixed"]["gpus"] == 2
    assert found["parameters"]["settings"]["models"][0]["ttft_slo_s"] == 0.6


def test_misses_before_the_fleet_can_have_grown_are_told_and_need_not_count(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r", slo={"ttft_ms": 600, "itl_ms": 50})

    # One instance is there, and further ones take 0.3 s to load and a tick or two to be asked for.
    cold = planned(tmp_path, recording, seeds=1)
    assert cold["gpus"] is None
    told = "came at the very beginning: begin with more instances, or count from later on with --warmup"
    assert told in cold["answer"][0]
    warm = planned(tmp_path, recording, seeds=1, warmup=6.0)
    assert warm["gpus"] is not None
    with pytest.raises(ConfigError, match=r"^--warmup: no request arrives after 60 s$"):
        planned(tmp_path, recording, seeds=1, warmup=60.0)
