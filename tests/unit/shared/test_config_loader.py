"""Configuration: three sources, one order, and errors that name the key and its origin."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chiron.config import ConfigError, load_config, override_variable


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


@dataclass(frozen=True)
class Limits:
    queue: int = 10
    ratio: float = 0.5


@dataclass(frozen=True)
class Settings:
    listen: str
    mode: Mode = Mode.SAFE
    verbose: bool = False
    state_dir: Path | None = None
    hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.limits.queue < 1:
            raise ValueError(f"limits.queue: must be >= 1, not {self.limits.queue}")


def load(tmp_path: Path, text: str = "", **kwargs: object) -> Settings:
    file = tmp_path / "chiron.toml"
    file.write_text(text)
    arguments: dict[str, object] = {"environ": {}, **kwargs}
    return load_config(Settings, "router", file=file, **arguments)  # type: ignore[arg-type]


def test_reads_every_type_from_a_file(tmp_path: Path) -> None:
    text = """
    [router]
    listen = "127.0.0.1:1"
    mode = "fast"
    verbose = true
    state_dir = "/tmp/x"
    hosts = ["a", "b"]
    [router.limits]
    queue = 3
    ratio = 1
    [agent]
    unknown = 1
    """
    assert load(tmp_path, text) == Settings(
        "127.0.0.1:1", Mode.FAST, True, Path("/tmp/x"), ("a", "b"), Limits(3, 1.0)
    )


def test_environment_beats_file_and_command_line_beats_environment(tmp_path: Path) -> None:
    text = '[router]\nlisten = "file"\nhosts = ["file"]\n'
    environ = {
        "CHIRON_ROUTER_LISTEN": "env",
        "CHIRON_ROUTER_HOSTS": "x, y",
        "CHIRON_ROUTER_LIMITS_QUEUE": "7",
    }
    got = load(tmp_path, text, environ=environ, overrides={"listen": "line", "mode": None})
    assert (got.listen, got.hosts, got.limits.queue) == ("line", ("x", "y"), 7)


def test_variables_of_other_sections_are_left_alone(tmp_path: Path) -> None:
    environ = {"CHIRON_AGENT_GPUS": "2", "CHIRON_ROUTER": "host:1", "CHIRON_LOG_LEVEL": "INFO"}
    assert load(tmp_path, '[router]\nlisten = "x"', environ=environ).listen == "x"


def test_the_variable_of_a_nested_key() -> None:
    assert override_variable("router", "limits.queue") == "CHIRON_ROUTER_LIMITS_QUEUE"


@pytest.mark.parametrize(
    ("text", "environ", "names"),
    [
        ('[router]\nlisten = "x"\nlisen = 1', {}, ["lisen", "[router]", "listen"]),
        ('[router]\nlisten = "x"\n[router.limits]\nquue = 1', {}, ["limits.quue"]),
        ('[router]\nlisten = "x"', {"CHIRON_ROUTER_LISTN": "y"}, ["CHIRON_ROUTER_LISTN"]),
        ("[router]\nverbose = true", {}, ["listen", "required", "CHIRON_ROUTER_LISTEN"]),
        ("[router]\nlisten = 5", {}, ["listen", "str", "5"]),
        ('[router]\nlisten = "x"\nverbose = "maybe"', {}, ["verbose", "true or false", "maybe"]),
        ('[router]\nlisten = "x"\nmode = "slow"', {}, ["mode", "fast, safe", "slow"]),
        ('[router]\nlisten = "x"\n[router.limits]\nqueue = true', {}, ["limits.queue", "a whole number"]),
        ('[router]\nlisten = "x"\n[router.limits]\nqueue = 1.5', {}, ["limits.queue", "a whole number"]),
        (
            '[router]\nlisten = "x"',
            {"CHIRON_ROUTER_LIMITS_QUEUE": "many"},
            ["limits.queue", "a whole number", "many"],
        ),
        ('[router]\nlisten = "x"\n[router.limits]\nqueue = 0', {}, ["limits.queue", ">= 1"]),
        ("[router\n", {}, ["chiron.toml"]),
        ("router = 1", {}, ["[router]", "table"]),
        (
            '[router]\nlisten = "x"\n[rooter]\nqueue = 1',
            {},
            ["[rooter]", "controller, router"],
        ),
        ('listen = "x"', {}, ["'listen'", "outside any table"]),
    ],
)
def test_a_bad_configuration_names_what_is_wrong(
    tmp_path: Path, text: str, environ: dict[str, str], names: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ=environ)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_config(Settings, "router", file=tmp_path / "nowhere.toml", environ={})
