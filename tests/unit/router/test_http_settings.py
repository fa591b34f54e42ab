"""`[router.http]`: what cannot work is refused at the start, by the name of its key."""

from __future__ import annotations

from typing import Any

import pytest

from chiron.config import ConfigError, load_config
from services.router.config import RouterConfig


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("header_s", "0", "must be > 0 and finite, not 0"),
        ("body_s", "-1", "must be > 0 and finite, not -1"),
        ("keep_alive_s", "nan", "must be > 0 and finite, not nan"),
        ("body_s", "inf", "must be > 0 and finite, not inf"),
        ("connections", "0", "must be >= 1, not 0"),
        ("host_share", "0", "must be > 0 and finite, not 0"),
        ("host_share", "1.5", "must be <= 1, not 1.5"),
        ("body_bytes", "-5", "must be >= 1, not -5"),
        ("pipelined", "-1", "must be >= 0, not -1"),
        ("cors_origins", "chat.example", "expected scheme://host or *, not 'chat.example'"),
    ],
)
def test_a_value_that_cannot_work_is_named(key: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(RouterConfig, "router", environ={}, overrides={f"http.{key}": value})
    assert str(raised.value) == f"[router] http.{key}: {told}"


def test_what_works_is_taken() -> None:
    chosen: dict[str, Any] = {
        "http.listen": "127.0.0.1:8000",
        "http.pipelined": "0",
        "http.cors_origins": "https://a.example,*",
        "http.open_metrics": "true",
    }
    http = load_config(RouterConfig, "router", environ={}, overrides=chosen).http
    assert (http.listen, http.pipelined, http.open_metrics) == ("127.0.0.1:8000", 0, True)
    assert http.cors_origins == ("https://a.example", "*")


def test_by_itself_a_router_has_no_http_door() -> None:
    assert RouterConfig().http.listen == ""
