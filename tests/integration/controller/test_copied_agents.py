"""Agents as real processes, one of which runs with a copy of the other's state folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.controller_process import ControllerProcess
from tests.support.wait import eventually

TAKEN = "connected to controller"
REFUSED = "belongs to another agent, which is connected now and runs with a copy of this state_dir"
ROBBED = "another stream of node node-1 has taken over"


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[ControllerProcess]:
    # A node dies of silence later than a test may last: whoever is taken is not taken because of that.
    process = ControllerProcess(
        "c", tmp_path / "controller.log", ("report_interval_ms=100", "liveness_timeout_s=300")
    )
    await process.start()
    yield process
    await process.kill()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def agent(stack: AsyncExitStack, folder: Path, controller: ControllerProcess) -> AgentProcess:
    folder.mkdir(exist_ok=True)
    process = AgentProcess(folder, int(controller.address.rpartition(":")[2]))
    stack.push_async_callback(process.end)
    return process


async def logged(one: AgentProcess, text: str, times: int = 1) -> None:
    await eventually(lambda: one.log().count(text) >= times, what=f"{text!r} {times} times in its log")


async def test_a_copied_state_folder_does_not_take_the_node_while_its_agent_is_connected(
    tmp_path: Path, controller: ControllerProcess, stack: AsyncExitStack
) -> None:
    original = agent(stack, tmp_path / "original", controller)
    assert await original.start()
    await logged(original, TAKEN)
    shutil.copytree(original.state_dir, tmp_path / "copy" / "agent")
    copy = agent(stack, tmp_path / "copy", controller)
    assert await copy.start()
    await logged(copy, REFUSED)
    # It tries on, and may once the other one is gone.
    original.signal(signal.SIGKILL)
    await original.wait()
    await logged(copy, TAKEN)
    assert original.log().count(TAKEN) == 1
    assert ROBBED not in original.log()
    assert controller.log.read_text().count(REFUSED) == 1, "told once, not at every try"


async def test_an_agent_that_starts_again_after_sigkill_is_taken_at_once(
    tmp_path: Path, controller: ControllerProcess, stack: AsyncExitStack
) -> None:
    one = agent(stack, tmp_path / "one", controller)
    for run in range(1, 4):
        assert await one.start()
        await logged(one, TAKEN, run)
        one.signal(signal.SIGKILL)
        await one.wait()
    assert "belongs to another agent" not in one.log() + controller.log.read_text()


async def test_an_agent_that_starts_again_under_a_stopped_controller_is_taken_when_that_goes_on(
    tmp_path: Path, controller: ControllerProcess, stack: AsyncExitStack
) -> None:
    """Its hello and the end of its last stream are read in whatever order."""
    one = agent(stack, tmp_path / "one", controller)
    assert await one.start()
    await logged(one, TAKEN)
    controller.signal(signal.SIGSTOP)
    one.signal(signal.SIGKILL)
    await one.wait()
    assert await one.start()
    controller.signal(signal.SIGCONT)
    await logged(one, TAKEN, 2)
