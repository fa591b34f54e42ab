"""`chiron sim replay --format chiron`: a recording simulated on its cluster, live beside simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.chiron_command import only_error, simulate

ZERO = 1772366400.0
"""2026-03-01 12:00 UTC."""
READY = types_pb2.INSTANCE_STATE_READY


def recording(folder: Path, *, model: str = "m", count: int = 20, **fields: Any) -> Path:
    """Ten requests a second, of which the last one has missed its SLO, and a batch item that came before."""
    folder.mkdir()
    head = {"chiron_recording": 1, "started": "2026-03-01T12:00:00+00:00", "router": "r", "models": {}}
    lines = [head]
    for number in range(count):
        late = number == count - 1
        lines.append(
            {
                "at": number / 10,
                "id": f"{number}",
                "model": model,
                "class": "interactive",
                "prompt": 10,
                "output": 11,
                "slo": {"ttft_ms": 200, "itl_ms": 50},
                "ttft_ms": 900 if late else 5,
                "itl_mean_ms": 4,
                "took_s": 0.1,
                "end": "ok",
                **fields,
            }
        )
    item = {"at": -5, "id": "item", "model": model, "class": "batch", "prompt": 10, "output": 50, "slo": {}}
    lines.append({**item, "end": "ok", "took_s": 7.0, "deadline_s": 8.0})
    (folder / "requests-r-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def spec(**fields: Any) -> pb.ModelSpec:
    arguments = struct_pb2.Struct()
    arguments.update({"profile": "toy"})
    return pb.ModelSpec(
        **{
            "name": "m",
            "engine": "sim",
            "gpus_per_instance": 1,
            "max_batch_size": 8,
            "engine_args": arguments,
            "autoscaling": pb.AutoscalingSpec(local="off"),
            **fields,
        }
    )


def snapshot(at_s: float, serving_s: float, ready: int = 1, gpus: tuple[int, ...] = (2,), **of_model: Any):
    made = pb.ClusterSnapshot(
        term=3,
        models=[pb.ModelStatus(spec=spec(**of_model))],
        nodes=[
            pb.NodeStatus(node_id=f"n{number}", gpus=[pb.Gpu(index=index) for index in range(count)])
            for number, count in enumerate(gpus)
        ],
        instances=[
            pb.InstanceStatus(
                instance_id=f"m-{number}",
                model="m",
                node_id="n0",
                gpu_indexes=[number],
                role=types_pb2.ROLE_MIXED,
                state=READY,
            )
            for number in range(ready)
        ],
        gpu_seconds=pb.GpuSeconds(serving=serving_s, loading=0.5, over_s=at_s),
    )
    made.time.FromNanoseconds(int((ZERO + at_s) * 1e9))
    return made


def snapshots(file: Path, *given: pb.ClusterSnapshot) -> Path:
    shown = given or (snapshot(-1, 10), snapshot(0, 11), snapshot(1, 12), snapshot(3, 16, ready=2))
    file.write_text("".join(json.dumps(json_format.MessageToDict(one)) + "\n" for one in shown))
    return file


def decisions(file: Path) -> Path:
    acts = [("start", 0.5, "more comes"), ("apply_model", 0.6, "asked for"), ("retire", 99.0, "too late")]
    answer = pb.ListDecisionsResponse()
    for action, at_s, reason in acts:
        made = answer.decisions.add(action=action, model="m", reason=reason)
        made.time.FromNanoseconds(int((ZERO + at_s) * 1e9))
    file.write_text(json_format.MessageToJson(answer))
    return file


def replay(tmp_path: Path, *options: object, folder: Path | None = None):
    return simulate(
        "replay",
        folder or recording(tmp_path / "recording"),
        "--format",
        "chiron",
        "--cluster",
        tmp_path / "cluster.jsonl",
        *options,
    )


def test_both_sides_are_counted_by_the_same_rules(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    told = decisions(tmp_path / "decisions.json")
    done = replay(tmp_path, "--live-decisions", told, "--json", "-")
    assert (done.status, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["requests"], found["left_out"]) == (21, 0)
    # The batch item ended last: seven seconds after it came, five seconds before the zero.
    assert found["span_s"] == pytest.approx(2.0)
    live, simulated = found["live"], found["simulated"]
    assert (live["interactive_attainment"], simulated["interactive_attainment"]) == (0.95, 1.0)
    assert (live["batch_deadlines_met"], simulated["batch_deadlines_met"]) == (1.0, 1.0)
    assert found["attainment_difference"] == pytest.approx(0.05)
    assert live["ttft_ms"]["p50"] == 5
    assert 0 < simulated["ttft_ms"]["p50"] < 50
    # Two seconds in: half of the four GPU-seconds between the last two snapshots.
    assert live["gpu_seconds"]["serving"] == pytest.approx(3.0)
    assert live["gpu_seconds"]["loading"] == 0
    assert simulated["gpu_seconds"]["serving"] == pytest.approx(2.0)
    assert found["gpu_seconds_ratio"] == pytest.approx(2 / 3)
    assert live["acts"] == {"start": 1, "retire": 0, "change-role": 0, "wake": 0, "sleep": 0}
    assert found["decisions"] == [
        {"at_s": pytest.approx(0.5), "side": "live", "kind": "start", "model": "m", "reason": "more comes"}
    ]
    assert found["operators_acts"] == {"spec applied": 1}
    assert [one["live"]["ready"] for one in found["instances"]] == [1] * 13
    assert found["simulation"]["policy"] == "fixed[local=static]"


def test_it_is_shown_side_by_side(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    done = replay(tmp_path, "--live-decisions", decisions(tmp_path / "decisions.json"))
    assert done.status == 0
    row = next(line for line in done.stdout.splitlines() if "SLO attainment" in line)
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["95.00%", "100.00%", "+5.00 points"]
    assert "start m: more comes" in done.stdout
    assert "Operators acted meanwhile, which is not simulated: 1 × spec applied" in done.stdout


def scaled_by(factor: float) -> struct_pb2.Struct:
    arguments = struct_pb2.Struct()
    arguments.update({"profile": "toy", "time_scale": factor})
    return arguments


def with_an_idle_model() -> pb.ClusterSnapshot:
    """Beside the model `m` one of which the engine is ten times slower."""
    made = snapshot(0, 0)
    made.models.add(spec=spec(name="idle", engine_args=scaled_by(10.0)))
    return made


def test_a_model_without_a_request_may_have_engines_of_another_speed(tmp_path: Path) -> None:
    folder = recording(tmp_path / "recording")
    snapshots(tmp_path / "plain.jsonl", snapshot(0, 0))
    snapshots(tmp_path / "cluster.jsonl", with_an_idle_model())
    beside = json.loads(replay(tmp_path, "--json", "-", folder=folder).stdout)
    (tmp_path / "plain.jsonl").replace(tmp_path / "cluster.jsonl")
    alone = json.loads(replay(tmp_path, "--json", "-", folder=folder).stdout)
    assert beside["simulated"]["ttft_ms"] == alone["simulated"]["ttft_ms"]
    snapshots(tmp_path / "cluster.jsonl", with_an_idle_model())
    more = json.loads((folder / "requests-r-1.jsonl").read_text().splitlines()[1])
    with (folder / "requests-r-1.jsonl").open("a") as file:
        file.write(json.dumps({**more, "id": "other", "model": "idle"}) + "\n")
    assert "engine_args.time_scale differs between models: [1.0, 10.0]" in only_error(
        replay(tmp_path, folder=folder), 2
    )


def test_an_autoscaled_cluster_is_simulated_with_the_autoscaler(tmp_path: Path) -> None:
    scaled = {
        "autoscaling": pb.AutoscalingSpec(local="model", enabled=True),
        "min_instances": 1,
        "max_instances": 2,
    }
    snapshots(tmp_path / "cluster.jsonl", snapshot(0, 0, **scaled), snapshot(3, 3, **scaled))
    found = json.loads(replay(tmp_path, "--json", "-").stdout)
    assert found["simulation"]["policy"] == "chiron[local=model]"


def test_another_policy_may_be_asked_for(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    found = json.loads(replay(tmp_path, "--policy", "chiron-paper", "--json", "-").stdout)
    assert found["simulation"]["policy"].startswith("chiron-paper")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    folder = recording(tmp_path / "recording", end="refused", reason="QUEUE_FULL", output=0)
    with (folder / "requests-r-1.jsonl").open("a") as out:
        out.write('{"left_out": 2}\n{\n')
    done = replay(tmp_path, "--json", "-", folder=folder)
    assert json.loads(done.stdout)["left_out"] == 20
    assert "1 malformed lines left out" in done.stderr
    assert "2 requests could not be recorded" in done.stderr
    assert "20 requests are not simulated: refused, QUEUE_FULL" in done.stderr


def test_a_model_that_no_node_can_host_is_left_out_and_told(tmp_path: Path) -> None:
    shown = [snapshot(0, 11), snapshot(3, 16)]
    for one in shown:
        # It asks for a profile, another time scale and another autoscaler, and none of that matters.
        big = spec(
            name="big", gpus_per_instance=4, engine="vllm", autoscaling=pb.AutoscalingSpec(local="model")
        )
        one.models.add(spec=big)
    snapshots(tmp_path / "cluster.jsonl", *shown)
    folder = recording(tmp_path / "recording")
    line = {"model": "big", "class": "interactive", "prompt": 9, "slo": {"ttft_ms": 200}, "took_s": 1.0}
    refused = {**line, "at": 0.2, "id": "a", "output": 0, "end": "refused", "reason": "NO_INSTANCE"}
    elsewhere = {**line, "at": 0.3, "id": "b", "output": 5, "end": "ok", "ttft_ms": 5, "itl_mean_ms": 4}
    with (folder / "requests-r-1.jsonl").open("a") as out:
        out.write(f"{json.dumps(refused)}\n{json.dumps(elsewhere)}\n")
    done = replay(tmp_path, "--json", "-", folder=folder)
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["requests"], found["left_out"]) == (23, 2)
    assert found["simulated"]["interactive_attainment"] == 1.0
    assert "1 request is not simulated: model 'big': an instance needs 4 GPUs, a node has 2" in done.stderr
    assert "1 request is not simulated: refused, NO_INSTANCE" in done.stderr


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"gpus_per_instance": 3}, "can host none of its models (m: an instance needs 3 GPUs, a node has 2)"),
        ({"engine": "vllm"}, "engine 'vllm' names no profile: give --profile m=NAME"),
        ({"gpus": (2, 4)}, "the nodes' GPUs must be alike"),
        ({"name": "other"}, "model 'm' of the recording is none of the cluster's"),
    ],
)
def test_a_cluster_that_cannot_be_simulated_says_why(
    tmp_path: Path, given: dict[str, Any], error: str
) -> None:
    snapshots(tmp_path / "cluster.jsonl", snapshot(0, 0, **given))
    assert error in only_error(replay(tmp_path), 2)


def test_a_profile_is_named_by_model(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl", snapshot(0, 0, engine="vllm"))
    folder = recording(tmp_path / "recording")
    assert replay(tmp_path, "--profile", "m=toy", "--json", "-", folder=folder).status == 0
    assert "as MODEL=PROFILE, not 'toy'" in only_error(replay(tmp_path, "--profile", "toy", folder=folder), 2)
    assert "no model x" in only_error(replay(tmp_path, "--profile", "x=toy", folder=folder), 2)


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    folder, file = recording(tmp_path / "recording"), tmp_path / "cluster.jsonl"
    without = simulate("replay", folder, "--format", "chiron")
    assert "--cluster: needs the cluster's snapshots" in only_error(without, 2)
    assert "No such file" in only_error(replay(tmp_path, folder=folder), 2)
    file.write_text("{}\n")
    assert "no snapshot in it" in only_error(replay(tmp_path, folder=folder), 2)
    file.write_text("not json\n")
    assert "cluster.jsonl:1: no snapshot of a cluster" in only_error(replay(tmp_path, folder=folder), 2)
    later = snapshot(1, 1)
    later.term = 4
    snapshots(file, snapshot(0, 0), later)
    assert "the controller changed meanwhile" in only_error(replay(tmp_path, folder=folder), 2)
    snapshots(file)
    assert "no decisions as" in only_error(replay(tmp_path, "--live-decisions", file, folder=folder), 2)


def test_what_loads_took_live_is_simulated(tmp_path: Path) -> None:
    scaled = {"autoscaling": pb.AutoscalingSpec(local="off", enabled=True), "min_instances": 2}
    shown = []
    for at_s, state in ((0, None), (1, types_pb2.INSTANCE_STATE_PENDING), (2.5, READY), (3, READY)):
        shown.append(snapshot(at_s, at_s, **scaled))
        if state is not None:
            shown[-1].instances.add(instance_id="new", model="m", node_id="n0", gpu_indexes=[1], state=state)
    snapshots(tmp_path / "cluster.jsonl", *shown)
    found = json.loads(replay(tmp_path, "--json", "-").stdout)
    assert found["simulation"]["parameters"]["settings"]["models"][0]["load_time_s"] == 1.5


def test_what_was_cached_of_a_prompt_is_not_computed(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    first_token_ms = []
    for cached in (0, 3990, 4000):
        folder = recording(tmp_path / f"cached-{cached}", prompt=4000, cached=cached)
        found = json.loads(replay(tmp_path, "--json", "-", folder=folder).stdout)
        first_token_ms.append(found["simulated"]["ttft_ms"]["p50"])
    assert first_token_ms[0] > 2 * first_token_ms[1]
    assert first_token_ms[1] == pytest.approx(first_token_ms[2], rel=0.2)


def test_a_decision_that_starts_several_counts_for_so_many(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    answer = pb.ListDecisionsResponse()
    made = answer.decisions.add(action="start", model="m", reason="more comes", numbers={"started": 3})
    made.time.FromNanoseconds(int((ZERO + 0.5) * 1e9))
    (tmp_path / "decisions.json").write_text(json_format.MessageToJson(answer))
    found = json.loads(
        replay(tmp_path, "--live-decisions", tmp_path / "decisions.json", "--json", "-").stdout
    )
    assert (found["live"]["acts"]["start"], len(found["decisions"])) == (3, 1)


def test_the_controllers_configuration_is_taken_over(tmp_path: Path) -> None:
    snapshots(tmp_path / "cluster.jsonl")
    (tmp_path / "chiron.toml").write_text("[controller]\npresumed_load_time_s = 4\ndrain_notice_s = 1\n")
    found = json.loads(replay(tmp_path, "--config", tmp_path / "chiron.toml", "--json", "-").stdout)
    live = found["simulation"]["parameters"]["settings"]["live"]
    assert (live["presumed_load_s"], live["drain_notice_s"]) == (4.0, 1.0)
    (tmp_path / "chiron.toml").write_text("[controller]\npresumed_load_times_s = 4\n")
    failed = replay(tmp_path, "--config", tmp_path / "chiron.toml", folder=recording(tmp_path / "another"))
    assert "unknown key 'presumed_load_times_s'" in only_error(failed, 2)
