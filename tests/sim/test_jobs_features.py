"""Everything that the simulator can do is reached from a scenario file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chiron.policy.words import RequestClass, Role
from chiron.sim.runs import run
from chiron.sim.scenario import Scenario, read_scenario

HEAD = """
name = "features"
seed = 2
duration_s = 400
[[cluster.gpus]]
name = "toy-gpu"
nodes = 2
gpus_per_node = 2
[models.m]
profile = "toy"
initial = { mixed = 2 }
"""
SHORT = 'lengths = "lognormal"\nprompt_mean = 50\noutput_mean = 30\nsigma = 0.5\n'


def read(folder: Path, text: str) -> Scenario:
    file = folder / "s.toml"
    file.write_text(HEAD + text, encoding="utf-8")
    return read_scenario(file)


@pytest.mark.parametrize(
    ("keys", "expected", "share_of_second_half"),
    [
        ("rate_per_s = 50", 20_000, 0.5),
        ("rate_per_s = 50\ncv = 4", 20_000, 0.5),
        # Two whole periods of 200 s.
        ('rate_per_s = 50\nshape = "diurnal"\nswing = 0.8\nperiod_s = 200\npeak_s = 50', 20_000, 0.5),
        ('rate_per_s = 50\nshape = "step"\nstep_at_s = 200\nstep_rate_per_s = 150', 40_000, 0.75),
        # 400 s at 50 a second and 100 s at 100 more, in the second half.
        (
            'rate_per_s = 50\nshape = "spike"\nspike_factor = 3\nspike_at_s = 250\nspike_length_s = 100',
            30_000,
            2 / 3,
        ),
    ],
)
def test_every_shape_of_traffic(
    tmp_path: Path, keys: str, expected: int, share_of_second_half: float
) -> None:
    workload = read(tmp_path, f"[[traffic]]\n{keys}\n{SHORT}").reading().workload

    # Gamma gaps of CV 4 spread counts four times as wide as Poisson ones.
    assert len(workload) == pytest.approx(expected, abs=5 * 4 * np.sqrt(expected))
    second = np.count_nonzero(workload.arrival_s >= 200) / len(workload)
    assert second == pytest.approx(share_of_second_half, abs=0.06)


@pytest.mark.parametrize(
    ("lengths", "prompt_mean", "output_mean"),
    [("sharegpt", 161, 338), ("azure-conv", 1155, 211), ("azure-code", 2048, 28)],
)
def test_every_fitted_length(tmp_path: Path, lengths: str, prompt_mean: float, output_mean: float) -> None:
    # Means: Kwon et al., SOSP 2023; Patel et al., ISCA 2024. The context is wide enough to cut nothing.
    text = HEAD.replace("initial =", "engine = { max_context_tokens = 60_000 }\ninitial =")
    (tmp_path / "s.toml").write_text(f'{text}[[traffic]]\nrate_per_s = 100\nlengths = "{lengths}"\n')
    workload = read_scenario(tmp_path / "s.toml").reading().workload

    assert workload.prompt_tokens.mean() == pytest.approx(prompt_mean, rel=0.03)
    assert workload.output_tokens.mean() == pytest.approx(output_mean, rel=0.03)


def write_traces(folder: Path) -> None:
    """Eleven requests in ten seconds, in each format."""
    azure = [f"2023-11-16 18:15:{second:02},100,20" for second in range(11)]
    (folder / "azure").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *azure]))
    burst = [f"{second},ChatGPT,100,20,120,Conversation log" for second in range(11)]
    columns = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    (folder / "burstgpt").write_text("\n".join([columns, *burst]))
    moon = [
        json.dumps(
            {"timestamp": 1000 * second, "input_length": 100, "output_length": 20, "hash_ids": [second]}
        )
        for second in range(11)
    ]
    (folder / "mooncake").write_text("\n".join(moon))
    talk = [{"from": "human", "value": "x" * 400}, {"from": "gpt", "value": "y" * 80}]
    (folder / "sharegpt").write_text(json.dumps([{"id": str(i), "conversations": talk} for i in range(11)]))


@pytest.mark.parametrize("trace_format", ["azure", "burstgpt", "mooncake", "sharegpt"])
@pytest.mark.parametrize("scaling", ["multiply", "compress"])
def test_every_trace_format_at_another_rate(tmp_path: Path, trace_format: str, scaling: str) -> None:
    write_traces(tmp_path)
    keys = f'file = "{trace_format}"\nformat = "{trace_format}"\nrate_per_s = 4\nscaling = "{scaling}"\n'
    workload = read(tmp_path, f"[[replay]]\n{keys}").reading().workload

    assert set(workload.prompt_tokens.tolist()) == {100}
    assert set(workload.output_tokens.tolist()) == {20}
    if trace_format == "sharegpt":
        assert len(workload) == 11
    elif scaling == "compress":
        assert len(workload) == 11
        assert workload.arrival_s[-1] == pytest.approx(11 / 4, rel=0.15)
    else:
        assert len(workload) == pytest.approx(40, abs=11)


def test_a_run_with_late_noisy_telemetry_failures_sleep_and_reloading(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        f"""
load_time_s = 3
load_time_spread = 0.2
wake_time_s = 0.4
sleep_level = 1
sleep_time_s = 0.2
initial_batch_size = 8
max_batch_size = 8
[models.other]
profile = "toy"
[simulation]
resume_cost = "kv-reload"
step_noise = 0.1
[telemetry]
interval_s = 2
delay_s = 1
noise = 0.1
loss = 0.1
view_delay_s = 0.1
[faults]
instance_mtbf_s = 300
[[faults.planned]]
at_s = 40
kind = "node"
repair_s = 30
[[traffic]]
model = "m"
rate_per_s = 20
shape = "spike"
spike_factor = 4
spike_at_s = 20
spike_length_s = 40
spike_every_s = 120
{SHORT}
[[backlog]]
model = "m"
requests = 500
arrive_s = 30
deadline_in_s = 300
deadline_spread_s = 60
{SHORT}
[[backlog]]
model = "other"
requests = 200
arrive_s = 100
deadline_in_s = 200
{SHORT}
""",
    )
    done = run(scenario, scenario.policy)
    result = done.result

    assert scenario.settings.models[0].initial == {Role.MIXED: 2}
    assert set(done.reading.workload.request_class) == {RequestClass.INTERACTIVE, RequestClass.BATCH}
    # A node at 40 s, and instances at random: what they served went on elsewhere.
    assert result.failures > 0
    assert result.retries > 0
    assert result.unfinished == 0
    assert {action.kind for action in result.actions} >= {"start", "sleep"}
    assert result.gpus_peak <= 4
