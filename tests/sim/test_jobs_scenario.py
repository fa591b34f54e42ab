"""Scenarios: what is read, what is drawn from it, and every error by file and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chiron.config import ConfigError
from chiron.policy.words import RequestClass, Role
from chiron.sim.policies import POLICIES
from chiron.sim.scenario import Scenario, read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"

BASE = """
name = "base"
seed = 3
duration_s = 100
[cluster]
gpu_budget = 8
[[cluster.gpus]]
name = "a100"
nodes = 2
gpus_per_node = 4
[models.m]
profile = "llama3-8b@a100"
initial = { mixed = 2, batch = 1 }
[[traffic]]
rate_per_s = 20
[[backlog]]
requests = 50
arrive_s = 10
deadline_in_s = 600
deadline_spread_s = 60
"""


def read(folder: Path, text: str = BASE) -> Scenario:
    file = folder / "s.toml"
    file.write_text(text, encoding="utf-8")
    return read_scenario(file)


def test_a_scenario_becomes_settings_and_a_workload(tmp_path: Path) -> None:
    scenario = read(tmp_path)
    workload = scenario.reading().workload

    assert scenario.settings.gpu_budget == 8
    assert scenario.settings.models[0].initial == {Role.MIXED: 2, Role.BATCH: 1}
    batch = workload.request_class == RequestClass.BATCH
    assert batch.sum() == 50
    assert (workload.arrival_s[batch] == 10.0).all()
    assert ((workload.deadline_s[batch] >= 610.0) & (workload.deadline_s[batch] <= 670.0)).all()
    # Poisson with mean 2000: five standard deviations.
    assert abs((~batch).sum() - 2000) < 5 * np.sqrt(2000)
    assert (np.diff(workload.arrival_s) >= 0).all()


def test_a_seed_repeats_the_workload_and_a_source_does_not_change_the_others(tmp_path: Path) -> None:
    once, again = read(tmp_path).reading().workload, read(tmp_path).reading().workload
    other = read(tmp_path).with_seed(4).reading().workload
    doubled = read(tmp_path, BASE.replace("requests = 50", "requests = 100")).reading().workload

    np.testing.assert_array_equal(once.arrival_s, again.arrival_s)
    np.testing.assert_array_equal(once.output_tokens, again.output_tokens)
    assert not np.array_equal(once.arrival_s[:20], other.arrival_s[:20])
    interactive = [each.request_class == RequestClass.INTERACTIVE for each in (once, doubled)]
    np.testing.assert_array_equal(once.output_tokens[interactive[0]], doubled.output_tokens[interactive[1]])


def test_requests_beyond_the_longest_context_are_cut_and_counted(tmp_path: Path) -> None:
    text = BASE.replace("initial =", "engine = { max_context_tokens = 300 }\ninitial =")
    reading = read(tmp_path, text).reading()

    whole = read(tmp_path).reading().workload
    too_long = (whole.prompt_tokens + whole.output_tokens) > 300
    assert reading.shortened == too_long.sum() > 0
    assert (reading.workload.prompt_tokens + reading.workload.output_tokens).max() == 300


def test_a_trace_is_found_beside_the_scenario_and_its_bad_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,10,2\nbad\n2023-11-16 18:15:48,20,3\n"
    )
    text = BASE[: BASE.index("[[traffic]]")] + '[[replay]]\nfile = "t.csv"\nformat = "azure"\n'
    reading = read(tmp_path, text).reading()

    assert reading.workload.arrival_s.tolist() == [0.0, 2.0]
    assert reading.workload.prompt_tokens.tolist() == [10, 20]
    assert [str(bad) for bad in reading.bad_rows] == [
        f"{tmp_path / 't.csv'}:3: 1 cells in a row, 3 in the header"
    ]
    with pytest.raises(ConfigError, match=r"t\.csv:3: 1 cells"):
        read(tmp_path, text + "strict = true\n").reading()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "initial = {",
            "engine.max_context_tokens = 1\ninitial = {",
            "'max_context_tokens': must hold a token",
        ),
        (
            "initial = {",
            "max_instances = 2\ninitial = {",
            "'initial': must not exceed max_instances = 2, not 3",
        ),
        (
            "initial = {",
            "initial_step_token_budget = 9000\ninitial = {",
            "'initial_step_token_budget': must not exceed max_step_token_budget = 8192, not 9000",
        ),
        (
            "initial = {",
            "max_step_token_budget = 1\ninitial = {",
            "'max_step_token_budget': must not be below the 2048 tokens that instances start with, not 1",
        ),
        ("[[cluster.gpus]]", "[[gpus]]", r"'gpus' belongs to the cluster: \[\[cluster\.gpus\]\]"),
        ("[[cluster.gpus]]", "[cluster.gpus]", r"'gpus' must be an array of tables: \[\[cluster\.gpus\]\]"),
        (
            "[[backlog]]",
            '[[replay]]\nfile = "a\\u0000b"\nformat = "azure"\n[[backlog]]',
            "file: no file has a na",
        ),
        (
            "[cluster]",
            "[simulation]\nhorizon_s = 5\nwarmup_s = 5\n[cluster]",
            "horizon_s: must be above warmup_s",
        ),
        ("[cluster]", "[simulation]\nhorizon_s = 1e9\n[cluster]", "horizon_s: .* at most 31622400"),
        ("[cluster]", "[simulation]\ntick_s = 1e-9\n[cluster]", "tick_s: must be positive, at least 0.001"),
        ("[cluster]", "[faults]\nnode_mtbf_s = 1e-9\n[cluster]", "node_mtbf_s: must be at least 1"),
        ("arrive_s = 10", "arrive_s = 1e11", "arrive_s: must be at least 0 and at most 31622400"),
        ("deadline_in_s = 600", "deadline_in_s = 1e11", "deadline_in_s: .* at most 31622400"),
        ("duration_s = 100", "duration_s = 1e11", "duration_s: must be a number from 0 to 31622400"),
        ("seed = 3", "sead = 3", r"s\.toml: unknown key 'sead'; known are backlog"),
        ("seed = 3", "seed = -1", "'seed' must be a whole number >= 0, not -1"),
        ("seed = 3", 'seed = "x"', "'seed' must be a whole number"),
        ("duration_s = 100", "", "key 'duration_s' is required with"),
        ("duration_s = 100", "duration_s = -1", "duration_s: must be a number from 0 to"),
        ("nodes = 2", "nodes = 0", r"\[\[cluster\.gpus\]\] #1: nodes: must be positive"),
        ("gpus_per_node = 4", "gpus_per_node = 0", r"#1: gpus_per_node: must be positive"),
        ("gpu_budget = 8", "gpu_budget = 0", "'gpu_budget' must be a whole number >= 1, not 0"),
        ("gpu_budget = 8", "gpu_budget = 2", "'initial': the first instances need 3 GPUs, there are 2"),
        ('"llama3-8b@a100"', '"gpt-9"', r"\[models\.m\]: 'profile': .*gpt-9"),
        ('"llama3-8b@a100"', '"llama3-70b@4xa100"', "the first instances need 12 GPUs, there are 8"),
        ("initial = {", "intial = {", r"\[models\.m\]: unknown key 'intial'"),
        ("batch = 1", "bach = 1", "initial: unknown key 'bach'"),
        ("initial = {", "itl_slo_s = 0.005\ninitial = {", "itl_slo_s: 0.005 s can never be kept"),
        ("initial = {", "ttft_slo_s = 0\ninitial = {", "ttft_slo_s: must be positive"),
        ("initial = {", "ttft_slo_s = nan\ninitial = {", "'ttft_slo_s' must be a number, not nan"),
        (
            "rate_per_s = 20",
            "rate_per_s = -20",
            r"\[\[traffic\]\] #1: rate_per_s: must be at least 0 and at most",
        ),
        ("rate_per_s = 20", 'rate_per_s = "20"', "'rate_per_s' must be a number, not '20'"),
        ("rate_per_s = 20", "", "key 'rate_per_s' is required"),
        ("rate_per_s = 20", 'rate_per_s = 20\nmodel = "x"', "'model': unknown name 'x'; known are m"),
        ("rate_per_s = 20", 'rate_per_s = 20\nshape = "wave"', "'shape' must be one of constant, diurnal"),
        ("rate_per_s = 20", 'rate_per_s = 20\nlengths = "lognormal"', "prompt_mean: lengths = 'lognormal'"),
        ("rate_per_s = 20", 'rate_per_s = 20\nrequest_class = "batch"', "deadline_in_s: batch requests need"),
        ("requests = 50", "requests = 0", r"\[\[backlog\]\] #1: requests: must be at least 1"),
        ("deadline_in_s = 600", "deadline_in_s = 0", "deadline_in_s: must be a number > 0"),
        ("[cluster]", '[policy]\nname = "best"\n[cluster]', r"\[policy\]: 'name': unknown 'best'; known are"),
        ("[cluster]", '[simulation]\ndiscipline = "lifo"\n[cluster]', "'discipline': unknown discipline"),
        ("[cluster]", "[telemetry]\nloss = 2\n[cluster]", r"\[telemetry\]: loss: must be at least 0"),
        ("[cluster]", '[[faults.planned]]\nat_s = 1\nkind = "x"\n[cluster]', r"#1: 'kind' must be one of"),
        ("[cluster]", "[cluster", r"s\.toml: Expected"),
        (
            "rate_per_s = 20",
            "rate_per_s = 20\nswing = 0.5",
            r"#1: 'swing' goes with shape = 'diurnal', not 'cons",
        ),
        (
            "rate_per_s = 20",
            'rate_per_s = 20\nshape = "spike"\nstep_at_s = 5',
            "'step_at_s' goes with shape = 'st",
        ),
        (
            "rate_per_s = 20",
            'rate_per_s = 20\nshape = "spike"\nspike_factor = -3',
            "factor: must be a number >= 0",
        ),
        ("rate_per_s = 20", 'rate_per_s = 20\nshape = "diurnal"\nswing = 2', "swing: must be from 0 to 1"),
        (
            "rate_per_s = 20",
            "rate_per_s = 20\nstart_s = 100",
            "'start_s' must be below duration_s = 100, not 100",
        ),
        ("rate_per_s = 20", "rate_per_s = 20\ncv = -1", "cv: must be at least 0 and at most"),
        ("rate_per_s = 20", "rate_per_s = inf", "rate_per_s: must be at least 0 and at most"),
        (
            "rate_per_s = 20",
            "rate_per_s = 20\ndeadline_in_s = 5",
            "deadline_in_s: interactive requests have SLOs",
        ),
        ("requests = 50", "requests = 1_000_000_000", "requests: must be at least 1 and at most 100,000,000"),
        ("duration_s = 100", "duration_s = 0", "'duration_s' must be above 0"),
        ("duration_s = 100", "duration_s = nan", "'duration_s' must be a number, not nan"),
        ("nodes = 2", "nodes = 2_000_000", "'nodes': with gpus_per_node 8,000,000 GPUs, at most 1,000,000"),
        ("nodes = 2", "nodes = 2.5", "'nodes' must be a whole number, not 2.5"),
        ("nodes = 2", "nodes = 2\nprice_per_gpu_hour = -1", "price_per_gpu_hour: must be at least 0"),
        (
            "initial = {",
            "min_instances = 9\ninitial = {",
            "'min_instances': the fewest instances need 9 GPUs",
        ),
        (
            "initial = {",
            'gpu_type = "h100"\ninitial = {',
            r"\[models\.m\]: 'gpu_type': unknown 'h100'; known are a100",
        ),
        (
            "[models.m]",
            '[[cluster.gpus]]\nname = "a100"\nnodes = 1\ngpus_per_node = 4\n[models.m]',
            r"\[\[cluster\.gpus\]\] #2: 'name': 'a100' is there twice",
        ),
        (
            'gpus_per_node = 4\n[models.m]\nprofile = "llama3-8b@a100"',
            'gpus_per_node = 2\n[models.m]\nprofile = "llama3-70b@4xa100"',
            r"\[\[cluster\.gpus\]\] #1: 'gpus_per_node': 'm' needs 4 GPUs on one node, 'a100' has 2",
        ),
        (
            "deadline_in_s = 600",
            "deadline_in_s = 0.001",
            r"\[\[backlog\]\] #1: 'deadline_in_s': 0\.001 s can never be kept: one step of",
        ),
        ("initial = {", "sleep_level = 3\ninitial = {", "'sleep_level' must be one of 0, 1, 2, not 3"),
        (
            "initial = {",
            "load_time_spread = 9\ninitial = {",
            "load_time_spread: must be at least 0 and at most 3",
        ),
        ("initial = {", "batch_itl_slo_s = 0.001\ninitial = {", "batch_itl_slo_s: 0.001 s can never be kept"),
        ("initial = {", "engine = { block_size = 0 }\ninitial = {", "engine: block_size: must be positive"),
        (
            "initial = {",
            "engine = { draft_tokens = 3 }\ninitial = {",
            "'draft_tokens' and 'acceptance_rate' go toget",
        ),
        (
            "[cluster]",
            '[policy]\nautoscaler = "best"\n[cluster]',
            r"\[policy\]: 'autoscaler': .*also fixed, llumnix",
        ),
        ("[cluster]", '[policy]\nlocal = ""\n[cluster]', r"\[policy\]: 'local': unknown .*also static"),
        (
            "[cluster]",
            "[simulation]\nstep_noise = 40\n[cluster]",
            "step_noise: must be at least 0 and at most 3",
        ),
        ("[cluster]", "[simulation]\ntick_s = 0\n[cluster]", "tick_s: must be positive"),
        ("[cluster]", "[telemetry]\nview_delay_s = 3\n[cluster]", "view_delay_s: must be below 2"),
        ("[cluster]", "[faults]\nnode_mtbf_s = -1\n[cluster]", r"\[faults\]: node_mtbf_s: must be positive"),
        ("[cluster]", "telemetry = 3\n[cluster]", "'telemetry' must be a table"),
    ],
)
def test_a_mistake_is_one_error_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert old in BASE

    with pytest.raises(ConfigError, match=problem) as caught:
        read(tmp_path, BASE.replace(old, new, 1))

    assert str(caught.value).startswith(str(tmp_path / "s.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "rate_per_s = 20",
            "rate_per_s = 1e9",
            "rate_per_s: 1e\\+11 requests in 100 s, more than 100,000,000",
        ),
        (
            "[cluster]",
            "[simulation]\nwarmup_s = 1000\n[cluster]",
            "'warmup_s': no request arrives after 1000 s",
        ),
        ("rate_per_s = 20\n[[backlog]]\nrequests = 50", "rate_per_s = 0\n[[backlog]]\nrequests = 50", None),
    ],
)
def test_a_workload_that_cannot_be_is_one_error(
    tmp_path: Path, old: str, new: str, problem: str | None
) -> None:
    assert old in BASE
    scenario = read(tmp_path, BASE.replace(old, new, 1))
    if problem is None:
        # A source may be silent as long as another one is not.
        assert len(scenario.reading().workload) == 50
        return
    with pytest.raises(ConfigError, match=problem) as caught:
        scenario.reading()
    assert str(caught.value).startswith(str(tmp_path / "s.toml"))


def test_a_scenario_needs_requests_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no requests: needs"):
        read(tmp_path, BASE[: BASE.index("[[traffic]]")])
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        read_scenario(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_is_read_and_explained(file: Path) -> None:
    scenario = read_scenario(file)

    assert file.read_text(encoding="utf-8").startswith("# ")
    assert scenario.description
    assert scenario.traffic or scenario.replays


def test_the_page_names_every_example_and_every_policy() -> None:
    page = (EXAMPLES.parents[1] / "docs" / "simulator.md").read_text(encoding="utf-8")

    for name in POLICIES:
        assert f"| `{name}` |" in page
    for file in EXAMPLES.glob("*.toml"):
        stem = file.stem
        assert f"`{stem}`" in page or f"`-{stem.rpartition('-')[2]}`" in page
