"""Batches through a whole cluster whose router is killed: while they are handed in, waited for and read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chiron.client import BatchState, Client
from tests.support.chiron_command import Up, chiron_up
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with chiron_up("--nodes=1", "--gpus=2", directory=tmp_path_factory.mktemp("batches")) as started:
        await started.ready()
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def client(up: Up) -> AsyncIterator[Client]:
    async with Client(up.router, batch_patience_s=40.0) as connected:
        yield connected


async def kill_router(up: Up) -> None:
    """SIGKILL, as soon as there is a router; `chiron up` starts another one in its place."""

    def routers() -> list[int]:
        return [pid for pid, command in up.processes().items() if "services.router" in command]

    (router,) = await eventually(routers)
    os.kill(router, signal.SIGKILL)
    await eventually(lambda: router not in routers())


def item(number: int, **fields: Any) -> dict[str, Any]:
    own = {"custom_id": f"q{number}", "prompt": f"question {number}"}
    return {"model": "toy", "max_tokens": 4, "ignore_eos": True, **own, **fields}


async def test_a_router_that_dies_during_a_submission_costs_no_item(up: Up, client: Client) -> None:
    count, kills = 6_000, [2_000, 4_000]

    async def received() -> int:
        return (await client.batch.get("big")).progress.items_received

    async def feed() -> AsyncIterator[dict[str, Any]]:
        for number in range(count):
            if kills and number == kills[0]:
                kills.pop(0)
                await eventually(received, what="some items are on disk")
                await kill_router(up)
            yield item(number, prompt="x" * 300)

    batch = await client.batch.submit(feed(), deadline_s=3600, batch_id="big")
    assert not kills
    assert batch.progress.items_received == batch.progress.items_contiguous == count
    await client.batch.cancel("big")


async def test_a_command_gets_each_answer_once_whatever_becomes_of_the_router(
    up: Up, client: Client, tmp_path: Path
) -> None:
    count = 400
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(item(number)) + "\n" for number in range(count)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from chiron.cli.main import main; main()",
        *("batch", "submit", str(file), "--deadline=1h", "--output", str(out), "--batch-id=asked"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CHIRON_ROUTER": up.router},
    )
    for share in (0.2, 0.6):
        await eventually(lambda share=share: out.exists() and len(lines(out)) >= share * count)
        await kill_router(up)
    printed, told = await process.communicate()
    assert (process.returncode, printed.decode()) == (0, "asked\n"), told.decode()
    written = [json.loads(line) for line in lines(out)]
    assert [line["number"] for line in written] == list(range(1, count + 1))
    assert sorted(line["custom_id"] for line in written) == sorted(f"q{number}" for number in range(count))
    assert {line["usage"]["completion_tokens"] for line in written} == {4}
    batch = await client.batch.get("asked")
    assert (batch.state, batch.progress.succeeded) == (BatchState.ENDED, count)


def lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
