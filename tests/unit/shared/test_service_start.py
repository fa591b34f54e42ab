"""A service that cannot start says why in one line and exits with 2."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from chiron.rpc.servers import BindError
from chiron.service import run_service


@dataclass(frozen=True)
class Settings:
    listen: str = "127.0.0.1:0"


async def never_called(config: Settings, stop: asyncio.Event) -> None:
    raise AssertionError("must not start")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--set", "lisen=x"], "lisen"),
        (["--set", "listen"], "KEY=VALUE"),
        (["--config", "missing.toml"], "missing.toml"),
    ],
)
def test_bad_configuration(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_service("thing", Settings, never_called, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert name in error
    assert error.count("\n") == 1


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(config: Settings, stop: asyncio.Event) -> None:
        raise BindError(f"cannot listen on {config.listen}")

    assert run_service("thing", Settings, serve, []) == 2
    assert capsys.readouterr().err == "error: cannot listen on 127.0.0.1:0\n"


def test_sigterm_asks_the_service_to_stop() -> None:
    async def serve(config: Settings, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()

    assert run_service("thing", Settings, serve, []) == 0


def test_a_second_signal_cancels_it(tmp_path: Path) -> None:
    async def serve(config: Settings, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    assert run_service("thing", Settings, serve, []) == 130
