"""`[router.http]`: what cannot work is refused at the start, by the name of its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chiron.config import ConfigError, load_config
from services.router.config import RouterConfig

ORIGIN = "expected scheme://host, scheme://host:port or *, in small letters and without a path"
NO_ORIGINS = (
    "chat.example",
    "https://a.example/x",
    "https://a.example/",
    "https://a.example?x=1",
    "https://A.example",
    "https://user@a.example",
    "https://*.a.example",
    "https://",
    "https://a.example:port",
    "null",
    "",
)


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
        *(("cors_origins", origin, f"{ORIGIN}, not {origin!r}") for origin in NO_ORIGINS),
        (
            "cors_origins",
            "https://a.example:443",
            "browsers leave the scheme's own port out, and so must 'https://a.example:443'",
        ),
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
        "http.cors_origins": "https://a.example,http://localhost:3000,http://[::1]:8080,app://chat,*",
        "http.open_metrics": "true",
    }
    http = load_config(RouterConfig, "router", environ={}, overrides=chosen).http
    assert (http.listen, http.pipelined, http.open_metrics) == ("127.0.0.1:8000", 0, True)
    assert http.cors_origins[1:4] == ("http://localhost:3000", "http://[::1]:8080", "app://chat")
    assert (http.cors_origins[0], http.cors_origins[-1]) == ("https://a.example", "*")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("body_bytes", "16M", "a whole number of bytes, not '16M'"),
        ("body_bytes", "1.5", "a whole number of bytes, not '1.5'"),
        ("body_s", "30s", "a number of seconds, not '30s'"),
        ("body_bytes_per_s", "64k", "a whole number, not '64k'"),
        ("pipelined", "many", "a whole number, not 'many'"),
    ],
)
def test_what_is_no_number_is_told_what_is_expected(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    variable = f"CHIRON_ROUTER_HTTP_{key.upper()}"
    with pytest.raises(ConfigError) as raised:
        load_config(RouterConfig, "router", environ={variable: value})
    assert str(raised.value) == f"{variable}: 'http.{key}': expected {expected}"
    file = tmp_path / "chiron.toml"
    file.write_text(f'[router.http]\n{key} = "{value}"\n')
    with pytest.raises(ConfigError) as raised:
        load_config(RouterConfig, "router", file=file, environ={})
    assert str(raised.value) == f"{file} [router]: 'http.{key}': expected {expected}"


def test_by_itself_a_router_has_no_http_door() -> None:
    assert RouterConfig().http.listen == ""
