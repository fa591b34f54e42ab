"""Profiles of one's own, read from a file: for GPUs that no profile is shipped for."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiron.config import ConfigError
from chiron.engine import UnknownProfileError, get_profile
from chiron.sim.profile_files import gpu_type_of, load_profile
from chiron.sim.scenario import read_scenario

WHOLE = """
name = "mine@2xh100"
gpus = 2
step_time_ms = [[1, 5.0], [100, 6], [1000, 30.5]]
kv_bytes_per_token = 1000
kv_read_bytes_per_s = 3e12
kv_capacity_tokens = 32000
block_size = 16
max_context_tokens = 8192
default_step_token_budget = 2048
load_s = 12
wake_s = [1, 6.5]
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_whole_profile_is_read_field_by_field(tmp_path: Path) -> None:
    written(tmp_path, WHOLE)

    profile = load_profile("mine.toml", tmp_path)

    assert profile.name == "mine@2xh100"
    assert profile.step_time_ms == ((1, 5.0), (100, 6.0), (1000, 30.5))
    assert (profile.gpus, profile.load_s, profile.wake_s) == (2, 12.0, (1.0, 6.5))
    assert gpu_type_of(profile) == "h100"


def test_a_profile_takes_from_a_shipped_one_what_it_leaves_out(tmp_path: Path) -> None:
    toy = get_profile("toy")
    written(tmp_path, 'name = "toy@new"\nlike = "toy"\nstep_time_factor = 0.5\nload_s = 9.0\n')

    profile = load_profile("mine.toml", tmp_path)

    assert profile == toy.replace(
        name="toy@new", load_s=9.0, step_time_ms=tuple((at, ms / 2) for at, ms in toy.step_time_ms)
    )


def test_a_scenario_names_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, WHOLE)
    scenario = tmp_path / "s.toml"
    scenario.write_text(
        """
        name = "own"
        cluster = { gpus = [{ name = "h100", nodes = 1, gpus_per_node = 2 }] }
        models = { m = { profile = "mine.toml", engine = { max_context_tokens = 4096 } } }
        backlog = [{ requests = 1 }]
        """,
        encoding="utf-8",
    )

    (model,) = read_scenario(scenario).settings.models

    assert model.profile.name == "mine@2xh100"
    assert model.profile.max_context_tokens == 4096


@pytest.mark.parametrize(("name", "gpus"), [("8b@a100", "a100"), ("70b@4xa100", "a100"), ("toy", "")])
def test_the_type_is_what_the_name_says_after_the_number(name: str, gpus: str) -> None:
    assert gpu_type_of(get_profile("toy").replace(name=name)) == gpus


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "mine@2xh100"', "", r"mine\.toml: key 'name' is required$"),
        ("gpus = 2", "", r"mine\.toml: key 'gpus' is required without 'like'$"),
        ("gpus = 2", "gpus = 0", r"mine\.toml: gpus: must be positive, got 0$"),
        ("gpus = 2", "gpus = 2.5", r"mine\.toml: 'gpus' must be a whole number, not 2\.5$"),
        ("gpus = 2", "gpu = 2", r"mine\.toml: unknown key 'gpu'; known are "),
        ("gpus = 2", 'gpus = 2\nlike = "x"', r"mine\.toml: 'like': unknown engine profile 'x'"),
        ("gpus = 2", "gpus = 2\nstep_time_factor = 0", r"'step_time_factor' must be above 0, not 0$"),
        ("[[1, 5.0], ", "[[1], ", r"'step_time_ms' must be an array of \[tokens, milliseconds\]$"),
        ("[[1, 5.0], ", "[[200, 5.0], ", r"mine\.toml: step_time_ms: tokens must ascend from 1"),
        ("[1, 6.5]", "[1]", r"mine\.toml: wake_s: must be two times"),
        ("[1, 6.5]", "1", r"'wake_s' must be an array of numbers$"),
        ("gpus = 2", "gpus =", r"mine\.toml: Invalid value"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(old: str, new: str, told: str, tmp_path: Path) -> None:
    assert old in WHOLE
    written(tmp_path, WHOLE.replace(old, new, 1))

    with pytest.raises(ConfigError, match=told):
        load_profile("mine.toml", tmp_path)


def test_a_file_that_is_not_there_and_a_name_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other\.toml: no such file$"):
        load_profile("other.toml", tmp_path)
    with pytest.raises(UnknownProfileError, match="llama3-8b@h100"):
        load_profile("llama3-8b@h100", tmp_path)
