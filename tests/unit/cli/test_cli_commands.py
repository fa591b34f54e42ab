"""The `chiron` command as a user meets it, without a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

HEAVY = ("grpc", "google.protobuf", "opentelemetry", "rich", "asyncio", "numpy", "uvloop")


def chiron(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from chiron.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env={**os.environ, **variables},
        timeout=50,
        check=False,
    )


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is bound and does not listen: connecting to it is refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from chiron.cli.main import app; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = chiron("--help", COLUMNS="200")

    assert loaded.stdout.strip() == "[]"
    assert shown.returncode == 0
    for command in ("up", "generate", "models", "status", "demo", "version"):
        assert f" {command} " in shown.stdout


def test_the_help_of_up_says_what_the_end_of_a_service_means() -> None:
    shown = " ".join(chiron("up", "--help", COLUMNS="200").stdout.split())

    assert "A worker, an agent or a router that ends is started again" in shown
    assert "With --etcd, so are controllers and etcd, for as long as it takes" in shown
    assert "without it, the whole cluster ends with its controller." in shown
    assert "It also ends when an agent or a router ends time and again." in shown


def test_version_is_the_distribution_s() -> None:
    assert chiron("version").stdout == f"chiron {version('chiron-serving')}\n"


def test_a_controller_that_is_not_there_is_one_line(nobody: str) -> None:
    result = chiron("status", "--controller", nobody)

    assert_one_line(result, 1, f"cannot reach the controller at {nobody}")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("status", "--controller"), "controller"),
        (("status", "--watch", "--controller"), "controller"),
        (("models", "list", "--controller"), "controller"),
        (("router",), "router"),
        (("generate", "toy", "hi", "--router"), "routers"),
        (("batch", "list", "--router"), "routers"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anybody_is_called(
    command: tuple[str, ...], key: str
) -> None:
    for wrong in ("127.0.0.1", "127.0.0.1:99999"):
        assert_one_line(chiron(*command, wrong), 2, f"{key}: expected host:port, not '{wrong}'")


def test_the_module_runs_like_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "chiron.cli.main", "version"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, f"chiron {version('chiron-serving')}\n")


def test_the_controller_s_address_comes_from_the_environment_too(nobody: str) -> None:
    assert_one_line(chiron("models", "list", CHIRON_CONTROLLER=nobody), 1, nobody)


def test_a_router_that_is_not_there_is_one_line(nobody: str) -> None:
    assert_one_line(chiron("generate", "toy", "-", stdin="hi", CHIRON_ROUTER=nobody), 1, nobody)


def test_an_unknown_class_is_refused_before_anything_is_sent(nobody: str) -> None:
    result = chiron("generate", "toy", "hi", "--class", "online", "--router", nobody)

    assert_one_line(result, 2, "--class must be interactive or batch, not online")


def test_an_unknown_key_in_a_model_file_is_named_and_nothing_is_applied(tmp_path: Path, nobody: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.toy]\nengine = "sim"\nspeed = 3\n')

    result = chiron("models", "apply", str(file), "--controller", nobody)

    assert_one_line(result, 2, f"{file} [models.toy]: unknown key 'speed'")


def test_the_same_model_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text('[models.toy]\nengine = "sim"\n')

    result = chiron("up", "--model", str(tmp_path / "a.toml"), "--model", str(tmp_path / "b.toml"))

    assert_one_line(result, 2, "model 'toy'")


def test_an_unknown_engine_is_refused() -> None:
    assert_one_line(chiron("up", "--engine", "fast"), 2, "--engine must be sim or vllm, not fast")
    assert chiron("demo", "--engine", "fast").returncode == 2


@pytest.mark.parametrize(
    ("below", "said"), [("", "File exists"), ("/run", "Not a directory")], ids=["a file", "below a file"]
)
def test_a_directory_that_cannot_be_one_is_named_before_anything_starts(
    tmp_path: Path, below: str, said: str
) -> None:
    file = tmp_path / "file"
    file.touch()

    result = chiron("up", f"--directory={file}{below}")

    assert_one_line(result, 2, f"{file}{below}: cannot hold logs and state: {said}")
    assert result.stdout == ""


def test_a_directory_where_nobody_can_write_is_named_before_anything_starts() -> None:
    assert_one_line(chiron("up", "--directory=/proc"), 2, "/proc: cannot hold logs and state: ")


@pytest.mark.parametrize("scale", ["20", "0", "-1", "nan", "inf"])
def test_a_time_scale_out_of_range_is_refused_before_anything_starts(tmp_path: Path, scale: str) -> None:
    result = chiron("up", f"--time-scale={scale}", f"--directory={tmp_path / 'run'}")

    assert_one_line(result, 2, f"--time-scale must be above 0 and at most 10, not {scale}")
    assert not (tmp_path / "run").exists()
