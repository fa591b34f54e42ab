from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agent_cases import StartAgent
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
async def agent(tmp_path: Path, controller: FakeController) -> AsyncIterator[StartAgent]:
    started: list[AgentProcess] = []

    async def start(**keys: object) -> AgentProcess:
        process = AgentProcess(tmp_path, controller.port, **keys)  # type: ignore[arg-type]
        started.append(process)
        assert await process.start() != {}, process.log()
        await controller.until_connected()
        return process

    yield start
    for process in started:
        await process.end()


@pytest.fixture
def scripted_python(tmp_path: Path) -> Path:
    """An interpreter for `worker_python` that runs workers without an engine."""
    python = tmp_path / "scripted-python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.scripted_worker "$@"\n')
    python.chmod(0o755)
    return python
