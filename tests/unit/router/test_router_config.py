"""A router is not started with settings that cannot work."""

from __future__ import annotations

import pytest

from chiron.config import ConfigError, load_config
from services.router.config import RouterConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("queue_limit", "-1"),
        ("worker_queue", "-1"),
        ("max_attempts", "0"),
        ("max_queue_s", "0"),
        ("max_queue_s", "nan"),
        ("retry_pause_s", "-1"),
        ("ticket_ttl_s", "0"),
        ("reader_stall_s", "0"),
        ("retry_share", "1.1"),
        ("retry_floor_per_s", "-1"),
        ("eject_failures", "0"),
        ("eject_s", "0"),
        ("eject_longest_s", "0.5"),
        ("eject_silence_s", "nan"),
        ("eject_panic_share", "-0.1"),
        ("report_interval_s", "0"),
        ("drain_timeout_s", "-1"),
        ("dispatcher", "dice"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[router\] {key}: "):
        load_config(RouterConfig, "router", environ={}, overrides={key: value})


class NeedsArgument:
    """A dispatcher that cannot be made as dispatchers are."""

    def __init__(self, wanted: object) -> None: ...

    def pick(self, *_: object) -> None: ...


def test_a_dispatcher_whose_own_code_fails_is_refused_by_its_key() -> None:
    name = f"{__name__}:NeedsArgument"
    problem = rf"\[router\] dispatcher: dispatcher {name}: NeedsArgument\(\) failed: TypeError: .*'wanted'"
    with pytest.raises(ConfigError, match=problem):
        load_config(RouterConfig, "router", environ={}, overrides={"dispatcher": name})


def test_an_unnamed_router_is_named_after_host_and_process() -> None:
    assert RouterConfig(router_id="r1").identity == "r1"
    assert RouterConfig().identity == RouterConfig().identity != ""
