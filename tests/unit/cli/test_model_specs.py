from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from chiron.cluster import read_model_files, read_models
from chiron.config import ConfigError
from chiron.v1 import types_pb2

EXAMPLE = Path(__file__).parents[3] / "examples" / "models.toml"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return file


def test_every_key_reaches_the_spec(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [models."llama3.1-8b"]
        engine = "vllm"
        weights = "/models/llama"
        revision = "r2"
        chat_template = "t.jinja"
        tool_parser = "llama3_json"
        reasoning_parser = "none"
        gpus_per_instance = 2
        min_instances = 3
        max_instances = 5
        max_batch_size = 64
        initial_batch_size = 8
        initial_step_token_budget = 512
        priority = -5
        role = "batch"
        drain_timeout_s = 90
        roll = { hold_s = 2.5, max_unavailable = 0 }
        autoscaling.enabled = true
        autoscaling.local = "reactive"
        autoscaling.sleep_level = 1
        autoscaling.sleep_host_mib = 16384
        autoscaling.gpu_memory_share = 0.8
        engine_args = { max_model_len = 4096, enforce_eager = true, nested = { a = [1, 2] } }
        adapters = { polite = "/lora/polite" }
        slo_defaults.interactive = { ttft_ms = 500, itl_ms = 50.5, refuse_if_late = true }
        slo_defaults.batch = { deadline_s = 60 }
        """,
    )

    (spec,) = read_models(file)

    assert json_format.MessageToDict(spec, preserving_proto_field_name=True) == {
        "name": "llama3.1-8b",
        "engine": "vllm",
        "weights": "/models/llama",
        "revision": "r2",
        "chat_template": "t.jinja",
        "tool_parser": "llama3_json",
        "reasoning_parser": "none",
        "gpus_per_instance": 2,
        "min_instances": 3,
        "max_instances": 5,
        "max_batch_size": 64,
        "initial_batch_size": 8,
        "initial_step_token_budget": 512,
        "priority": -5,
        "role": "ROLE_BATCH",
        "drain_timeout_s": 90.0,
        "roll": {"hold_s": 2.5, "max_unavailable": 0},
        "autoscaling": {
            "local": "reactive",
            "sleep_level": 1,
            "sleep_host_mib": 16384,
            "gpu_memory_share": 0.8,
            "enabled": True,
        },
        "engine_args": {
            "max_model_len": 4096.0,
            "enforce_eager": True,
            "nested": {"a": [1.0, 2.0]},
        },
        "adapters": [{"name": "polite", "path": "/lora/polite"}],
        "slo_defaults": {
            "interactive": {"ttft_ms": 500.0, "itl_ms": 50.5, "refuse_if_late": True},
            "batch": {"deadline_s": 60.0},
        },
    }


def test_a_model_has_one_instance_on_one_gpu_unless_it_says_otherwise(tmp_path: Path) -> None:
    (spec,) = read_models(write(tmp_path, '[models.toy]\nengine = "sim"\n'))

    assert (spec.min_instances, spec.gpus_per_instance, spec.role) == (1, 1, types_pb2.ROLE_UNSPECIFIED)


def test_the_example_file_reads(tmp_path: Path) -> None:
    assert [(spec.name, spec.engine, spec.min_instances) for spec in read_models(EXAMPLE)] == [
        ("toy", "sim", 2),
        ("llama3-70b", "sim", 0),
    ]


def test_the_keys_that_the_example_shows_in_comments_exist_too(tmp_path: Path) -> None:
    _, _, tail = EXAMPLE.read_text().partition('# [models."smollm2"]')
    shown = "\n".join(line.removeprefix("# ") for line in tail.splitlines())

    (spec,) = read_models(write(tmp_path, f'[models."smollm2"]{shown}'))

    assert spec.adapters[0].name == "polite"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[models.toy]\nengine = "sim"\nengin_args = {}',
            "[models.toy]: unknown key 'engin_args'; known are ",
        ),
        ('[model.toy]\nengine = "sim"', "unknown key 'model'; a model is a table [models.NAME]"),
        ("", "no model; a model is a table [models.NAME]"),
        ("[models]\ntoy = 3", "[models.toy]: must be a table"),
        ("[models.toy]\nmin_instances = 1", "[models.toy]: key 'engine' is required"),
        ("[models.toy]\nengine = 1", "[models.toy]: 'engine' must be text, not 1"),
        (
            '[models.toy]\nengine = "sim"\nmin_instances = -1',
            "[models.toy]: 'min_instances' must be a whole number from 0 to 4294967295, not -1",
        ),
        (
            '[models.toy]\nengine = "sim"\nmin_instances = 10000000000000',
            "[models.toy]: 'min_instances' must be a whole number from 0 to 4294967295, not 10000000000000",
        ),
        (
            '[models.toy]\nengine = "sim"\nmax_batch_size = true',
            "[models.toy]: 'max_batch_size' must be a whole number from 0 to 4294967295, not True",
        ),
        (
            '[models.toy]\nengine = "sim"\nrole = "any"',
            "[models.toy]: 'role' must be one of interactive, mixed, batch, not 'any'",
        ),
        ('[models.toy]\nengine = "sim"\nadapters = "x"', "[models.toy]: 'adapters' must be a table, not 'x'"),
        (
            '[models.toy]\nengine = "sim"\nengine_args = { day = 2020-01-01 }',
            "[models.toy]: 'engine_args': ",
        ),
        (
            '[models.toy]\nengine = "sim"\nslo_defaults = { online = {} }',
            "[models.toy]: unknown key 'slo_defaults.online'; known are batch, interactive",
        ),
        (
            '[models.toy]\nengine = "sim"\nslo_defaults = { batch = { ttft = 1 } }',
            "[models.toy]: unknown key 'slo_defaults.batch.ttft'; known are deadline_s, itl_ms, "
            "refuse_if_late, ttft_ms",
        ),
        (
            '[models.toy]\nengine = "sim"\nslo_defaults = { batch = { refuse_if_late = 1 } }',
            "[models.toy]: 'slo_defaults.batch.refuse_if_late' must be true or false, not 1",
        ),
        (
            '[models.toy]\nengine = "sim"\nslo_defaults = { batch = { ttft_ms = 0 } }',
            "[models.toy]: 'slo_defaults.batch.ttft_ms' must be a number > 0, not 0",
        ),
        (
            '[models.toy]\nengine = "sim"\nautoscaling = { lokal = "off" }',
            "[models.toy]: unknown key 'autoscaling.lokal'; known are ",
        ),
        (
            '[models.toy]\nengine = "sim"\nautoscaling = { local = 3 }',
            "[models.toy]: 'autoscaling': Failed to parse local field",
        ),
        (
            '[models.toy]\nengine = "sim"\nroll = { hold = 1 }',
            "[models.toy]: unknown key 'roll.hold'; known are hold_s, max_unavailable",
        ),
        (
            '[models.toy]\nengine = "sim"\nroll = { hold_s = -1 }',
            "[models.toy]: 'roll.hold_s' must be a number of seconds >= 0, not -1",
        ),
        (
            '[models.toy]\nengine = "sim"\nautoscaling = { sleep = 1 }',
            "[models.toy]: unknown key 'autoscaling.sleep'; known are",
        ),
        (
            '[models.toy]\nengine = "sim"\nautoscaling = { sleep_level = "deep" }',
            "[models.toy]: 'autoscaling': Failed to parse sleep_level field",
        ),
        (
            '[models.toy]\nengine = "sim"\ndrain_timeout_s = inf',
            "[models.toy]: 'drain_timeout_s' must be a number of seconds >= 0, not inf",
        ),
        ("[models.toy", "Expected ']'"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        read_models(file)

    message = str(caught.value)
    assert message.startswith(str(file))
    assert said in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        read_models(tmp_path / "absent.toml")


def test_what_is_wrong_with_a_later_model_is_found_before_any_spec_is_returned(tmp_path: Path) -> None:
    good = write(tmp_path, '[models.good]\nengine = "sim"\n')
    mixed = tmp_path / "mixed.toml"
    mixed.write_text('[models.fine]\nengine = "sim"\n[models.odd]\nengine = "sim"\nspeed = 3\n')

    with pytest.raises(ConfigError, match=r"mixed\.toml \[models\.odd\]: unknown key 'speed'"):
        read_model_files([good, mixed])


def test_a_model_that_two_files_describe_is_named_with_both(tmp_path: Path) -> None:
    first = write(tmp_path, '[models.toy]\nengine = "sim"\n')
    second = tmp_path / "more.toml"
    second.write_text('[models.other]\nengine = "sim"\n[models.toy]\nengine = "sim"\n')

    with pytest.raises(ConfigError) as caught:
        read_model_files([first, second])

    assert str(caught.value) == f"{second} [models.toy]: model 'toy' is in {first} too"


def test_a_time_without_quotes_is_told_to_be_text(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    minimum = '{ begins = 08:00:00, ends = "18:00", min_instances = 2 }'
    file.write_text(f'[models.a]\nengine = "sim"\nautoscaling.scheduled_minimums = [{minimum}]')
    with pytest.raises(ConfigError, match='begins\' must be text such as "08:00", in quotes'):
        read_models(file)
