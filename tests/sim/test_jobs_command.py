"""`chiron sim` as a user meets it, on the scenario that runs in a second."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.chiron_command import only_error, simulate

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "scenarios" / "tiny.toml"
GUIDE = ROOT / "docs" / "writing-a-policy.md"
REPLAY = ("--format", "azure", "--profile", "toy", "--rate", 5)
KEYS = {
    "policy",
    "seed",
    "requests",
    "slo_attainment",
    "refused",
    "gpu_hours",
    "gpus_peak",
    "gpu_cost",
    "throughput",
    "ttft_ms",
    "itl_ms",
    "scaling_actions",
    "reversals",
    "preemptions",
    "wall_s",
    "events",
}


def figures(*arguments: object, folder: Path | None = None) -> dict[str, Any]:
    done = simulate(*arguments, "--json", "-", folder=folder)
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_reports_every_figure() -> None:
    found = figures("run", TINY)

    assert set(found) >= KEYS
    assert set(found["slo_attainment"]) == {"interactive", "batch", "all"}
    assert set(found["throughput"]) == {"requests_per_s", "tokens_per_s", "requests_per_gpu_hour"}
    for figure in ("ttft_ms", "itl_ms"):
        assert 0 < found[figure]["p50"] <= found[figure]["p90"] <= found[figure]["p99"]
    assert found["policy"] == "chiron"
    assert found["seed"] == 1
    assert 1 <= found["gpus_peak"] <= 4
    assert found["oracle_lb"]["gpu_hours"] <= found["gpu_hours"]
    # One currency unit per GPU-hour.
    assert found["gpu_cost"] == pytest.approx(found["gpu_hours"])
    assert found["parameters"]["policy"]["local"] == "model"


SHARE, NUMBER = "share", "number"
TYPES: dict[str, Any] = {
    "policy": str,
    "seed": int,
    "requests": int,
    "slo_attainment": {"interactive": SHARE, "batch": SHARE, "all": SHARE},
    "refused": int,
    "gpu_hours": NUMBER,
    "gpus_peak": int,
    "gpu_cost": NUMBER,
    "throughput": {"requests_per_s": NUMBER, "tokens_per_s": NUMBER, "requests_per_gpu_hour": NUMBER},
    "ttft_ms": {"p50": NUMBER, "p90": NUMBER, "p99": NUMBER},
    "itl_ms": {"p50": NUMBER, "p90": NUMBER, "p99": NUMBER},
    "itl_p99_per_request_ms": {"p50": NUMBER, "p90": NUMBER, "p99": NUMBER},
    "longest_gap_ms": {"p50": NUMBER, "p90": NUMBER, "p99": NUMBER},
    "scaling_actions": int,
    "reversals": int,
    "preemptions": int,
    "wall_s": NUMBER,
    "events": int,
}


def check_type(path: str, value: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert set(value) == set(wanted), path
        for key, each in wanted.items():
            check_type(f"{path}.{key}", value[key], each)
    elif wanted in (SHARE, NUMBER):
        assert type(value) is float, path
        assert 0 <= value <= (1 if wanted == SHARE else 1e12), path
    else:
        assert type(value) is wanted, path
        assert wanted is str or value >= 0, path


def test_every_figure_has_its_type_and_its_unit() -> None:
    found = figures("run", TINY)

    assert set(TYPES) >= KEYS
    for key, wanted in TYPES.items():
        check_type(key, found[key], wanted)
    # Everything is counted in this scenario: GPU-hours, seconds and requests belong together.
    finished = found["requests"] - found["refused"] - found["unfinished"]
    throughput = found["throughput"]
    assert throughput["requests_per_gpu_hour"] * found["gpu_hours"] == pytest.approx(finished)
    assert throughput["requests_per_s"] * found["simulated_s"] == pytest.approx(finished)
    assert found["gpu_hours"] <= found["gpus_peak"] * found["simulated_s"] / 3600
    # Toy engines take 2 to 12 ms a step; the first token of an idle one comes within the first steps.
    assert 2 <= found["itl_ms"]["p50"] <= 12
    assert 2 <= found["ttft_ms"]["p50"] <= 1000


def without_wall_time(text: str) -> str:
    assert '"wall_s": ' in text
    return re.sub(r'"wall_s": [0-9.e-]+', '"wall_s": 0', text)


def azure_trace(file: Path) -> Path:
    rows = "".join(f"2023-11-16 18:15:{second:02},100,20\n" for second in range(60))
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", encoding="utf-8")
    return file


@pytest.mark.parametrize("command", ["run", "replay", "compare"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(command: str, tmp_path: Path) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "run": ("run", TINY, "--seed"),
        "replay": ("replay", azure_trace(tmp_path / "t.csv"), *REPLAY, "--seed"),
        "compare": ("compare", TINY, "--policies", "chiron,llumnix", "--jobs", 1, "--first-seed"),
    }
    texts = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        done = simulate(*arguments[command], seed, "--json", tmp_path / name)
        assert done.status == 0, done.stderr
        texts.append(without_wall_time((tmp_path / name).read_text(encoding="utf-8")))

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_every_decision_is_written_down_with_its_reason_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    found = figures("run", TINY, "--decisions", file)

    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["at_s"] for line in lines] == sorted(line["at_s"] for line in lines)
    assert all(line["reason"] and line["numbers"] for line in lines)
    assessed = [line for line in lines if line["kind"] == "assessment"]
    assert all({"ibp", "bbp", "theta"} <= set(line["numbers"]) for line in assessed)
    # Each action that was carried out counts once for each of its instances.
    actions = [line for line in lines if line["kind"] != "assessment"]
    assert sum(len(line["instances"]) for line in actions) == found["scaling_actions"] > 0
    assert {line["kind"] for line in actions} >= {"start", "retire"}
    assert all(line["asked"] >= len(line["instances"]) for line in actions if line["kind"] == "start")


@pytest.mark.parametrize("command", ["run", "replay"])
def test_decisions_that_cannot_be_written_are_told_in_one_line(command: str, tmp_path: Path) -> None:
    what = (TINY,) if command == "run" else (azure_trace(tmp_path / "t.csv"), *REPLAY)
    for file in (tmp_path / "missing" / "d.jsonl", tmp_path):
        assert f"cannot write {file}" in only_error(simulate(command, *what, "--decisions", file), 1)


@pytest.mark.parametrize("policy", ["chiron-paper", "chiron-static", "llumnix", "llumnix-queue", "fixed"])
def test_every_policy_runs_by_its_name(policy: str) -> None:
    found = figures("run", TINY, "--policy", policy)

    assert found["policy"] == policy
    assert found["requests"] == figures("run", TINY)["requests"]
    if policy == "fixed":
        assert (found["scaling_actions"], found["gpus_peak"]) == (0, 1)


def test_a_run_draws_its_timeline(tmp_path: Path) -> None:
    done = simulate("run", TINY, "--plots", tmp_path / "plots")

    assert done.status == 0, done.stderr
    assert "SLO attainment, interactive" in done.stdout
    written = sorted((tmp_path / "plots").iterdir())
    assert [file.suffix for file in written] == [".png", ".svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_a_comparison_tabulates_and_draws_the_same_workloads(tmp_path: Path) -> None:
    options = ("--policies", "chiron,fixed", "--seeds", 2, "--jobs", 2, "--plots", tmp_path / "plots")
    done = simulate("compare", TINY, *options, "--json", tmp_path / "c.json")

    assert done.status == 0, done.stderr
    assert "× lb" in done.stdout
    assert "physical ceiling" in done.stdout
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    requests = {
        name: [run["requests"] for run in policy["seeds"].values()]
        for name, policy in found["policies"].items()
    }
    assert requests["chiron"] == requests["fixed"]
    assert list(found["policies"]["chiron"]["seeds"]) == ["1", "2"]
    fixed = found["policies"]["fixed"]
    # The fleet that a search found attains by definition.
    assert fixed["attains"] == 2
    assert all(1 <= fleet <= 4 for fleet in fixed["fleets"])
    assert {file.suffix for file in (tmp_path / "plots").iterdir()} == {".png", ".svg"}


def test_a_comparison_does_not_depend_on_the_number_of_processes() -> None:
    one, two = (
        figures("compare", TINY, "--policies", "chiron,llumnix", "--jobs", jobs, "--no-ceiling")
        for jobs in (1, 2)
    )

    for found in (one, two):
        for policy in found["policies"].values():
            for run in policy["seeds"].values():
                run["wall_s"] = 0
    assert one == two


def test_a_trace_is_replayed_and_its_bad_rows_are_told(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02},100,20\n" for second in range(60))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}nonsense\n", encoding="utf-8")
    options = ("--format", "azure", "--profile", "toy", "--rate", 5, "--json", "-")

    done = simulate("replay", trace, *options)
    strict = simulate("replay", trace, *options, "--strict")

    found = json.loads(done.stdout)
    assert done.stderr.splitlines() == [
        f"warning: {trace}:62: 1 cells in a row, 3 in the header",
        "warning: 1 malformed rows left out",
    ]
    assert found["workload"]["malformed_rows"] == 1
    assert found["workload"]["malformed"] == [f"{trace}:62: 1 cells in a row, 3 in the header"]
    # 60 arrivals over 59 s at 5/s instead: five copies of some, four of others.
    assert 240 <= found["requests"] <= 300
    assert strict.status == 2
    assert strict.stderr == f"error: {trace}:62: 1 cells in a row, 3 in the header\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nowhere.toml"), "nowhere.toml: no such file"),
        (("run", TINY, "--policy", "best"), "unknown policy 'best'; known are chiron, chiron-paper"),
        (("run", TINY, "--autoscaler", "none"), "unknown autoscaler 'none'"),
        (("run", TINY, "--autoscaler", "nowhere:X"), "No module named 'nowhere'"),
        (("run", TINY, "--dispatcher", "none"), "unknown dispatcher 'none'"),
        (("run", TINY, "--local", "none"), "unknown local autoscaler 'none'"),
        (("compare", TINY, "--policies", "chiron,best"), "unknown policy 'best'"),
        (("replay", "t.csv", "--format", "csv"), "--format must be one of azure, burstgpt"),
        (("replay", "t.csv", "--format", "azure", "--slo-itl", "1"), "--slo-itl: 0.001 s can never be kept"),
        (("replay", "t.csv", "--format", "azure", "--rate", "-1"), "--rate: must be a number > 0"),
        (("run", TINY, "--json", "/nowhere/x.json"), "cannot write /nowhere/x.json"),
        (("run", TINY, "--plots", TINY), "cannot write plots to"),
        (("run", TINY, "--autoscaler", ""), "unknown autoscaler ''"),
        (("compare", TINY, "--policies", "chiron,chiron"), "--policies: 'chiron' is there twice"),
        (("replay", "t.csv", "--format", "azure", "--rate", "nan"), "--rate must be a number, not nan"),
        (("replay", "t.csv", "--format", "azure", "--deadline", "0"), "--deadline: must be a number > 0"),
        (("replay", "t.csv", "--format", "azure", "--profile", "x"), "--profile: unknown engine profile 'x'"),
        (
            ("replay", "t.csv", "--format", "azure", "--instances", 57),
            "--instances: the first instances need 57",
        ),
        (("replay", "t.csv", "--format", "azure", "--slo-ttft", "-1"), "--slo-ttft: must be positive"),
        (("replay", "t.csv", "--format", "azure", "--price", "-1"), "--price: must be at least 0"),
        (("replay", "nowhere.csv", "--format", "azure"), "nowhere.csv: No such file"),
        (
            ("replay", "t.csv", "--format", "azure", "--profile", "llama3-70b@4xa100", "--gpus", 2),
            "--gpus: 'model' needs 4 GPUs on one node",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[object, ...], said: str) -> None:
    assert said in only_error(simulate(*arguments), 1, 2)


def test_the_guide_s_policy_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_policy.py").write_text(blocks[0], encoding="utf-8")

    found = figures("run", TINY, "--autoscaler", "my_policy:QueueLength", folder=tmp_path)

    assert len(blocks[0].splitlines()) <= 30
    assert found["policy"] == "chiron[autoscaler=my_policy:QueueLength]"
    # It adds an instance when requests queue, so that the step in traffic does not stay unanswered.
    assert found["scaling_actions"] > 0
    assert found["gpus_peak"] > 1


def test_a_policy_of_one_s_own_is_compared_from_the_options_or_the_scenario(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_policy.py").write_text(blocks[0], encoding="utf-8")
    scenario = tmp_path / "s.toml"
    own = 'autoscaler = "my_policy:QueueLength"'
    scenario.write_text(f"{TINY.read_text(encoding='utf-8')}\n[policy]\n{own}\n", encoding="utf-8")
    options = ("--policies", "chiron", "--jobs", 2, "--no-ceiling")

    single = figures("run", scenario, folder=tmp_path)
    named = figures("compare", scenario, *options, folder=tmp_path)
    given = figures("compare", TINY, *options, "--autoscaler", "my_policy:QueueLength", folder=tmp_path)

    label = "chiron[autoscaler=my_policy:QueueLength]"
    assert single["policy"] == label
    for found in (named, given):
        assert list(found["policies"]) == ["chiron", label]
        assert found["policies"][label]["seeds"]["1"]["gpu_hours"] == single["gpu_hours"]


def test_a_pipe_gets_every_figure_whole() -> None:
    part = ("--local", "chiron.policy.local.model:ModelAutoscaler", "--dispatcher", "llumnix")
    done = simulate("compare", TINY, "--policies", "chiron", "--no-ceiling", "--seeds", 2, "--jobs", 1, *part)

    assert done.status == 0, done.stderr
    assert "…" not in done.stdout
    # A title, three lines of a heading, one line for each policy, and the end.
    assert len(done.stdout.splitlines()) == 7


def test_requests_beyond_the_horizon_are_told(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        f"{TINY.read_text(encoding='utf-8')}\n[simulation]\nhorizon_s = 0.001\n", encoding="utf-8"
    )

    done = simulate("run", file, "--json", "-")

    requests = json.loads(done.stdout)["requests"]
    assert f" of {requests} requests arrive after horizon_s = 0.001: nothing serves them\n" in done.stderr


def test_a_replay_costs_what_its_price_says_and_nothing_is_said_without(tmp_path: Path) -> None:
    trace = azure_trace(tmp_path / "t.csv")

    priced = figures("replay", trace, *REPLAY, "--price", 2)
    unpriced = figures("replay", trace, *REPLAY)

    assert priced["gpu_cost"] == pytest.approx(2 * priced["gpu_hours"])
    assert unpriced["gpu_cost"] is None
