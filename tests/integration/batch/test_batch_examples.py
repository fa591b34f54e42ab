"""Every example about batches runs as written, but for the router's address, and prints its answers."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import chiron.client
from chiron.client import Batches
from chiron.client.batch.sync import SyncBatches
from tests.support.batch_service import BatchService, batch_service

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
TEXTS = {
    "README": (ROOT / "client" / "README.md").read_text(),
    "guide": (ROOT / "docs" / "batch.md").read_text(),
    "Batches": inspect.getdoc(Batches) or "",
    "SyncBatches": inspect.getdoc(SyncBatches) or "",
}
EXAMPLES = [
    pytest.param(textwrap.dedent(match[2]), id=name)
    for name, text in TEXTS.items()
    for match in BLOCK.finditer(text)
    if "client.batch" in match[2]
]


def test_each_text_has_an_example() -> None:
    assert len(EXAMPLES) == len(TEXTS)


def execute(source: str) -> None:
    code = compile(source, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, {name: getattr(chiron.client, name) for name in chiron.client.__all__})
    if inspect.isawaitable(result):
        asyncio.run(_wait_for(result))


async def _wait_for(result: Any) -> None:
    await result


async def answer(service: BatchService) -> None:
    """Works on whatever comes."""
    async for _ in service.queue.changes():
        batches, _ = await service.queue.page("", limit=10, open_only=True)
        for batch in batches:
            await service.complete(batch.batch_id)


@pytest.mark.parametrize("source", EXAMPLES)
async def test_a_batch_example_runs(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with batch_service(tmp_path) as service:
        answering = asyncio.create_task(answer(service))
        await asyncio.to_thread(execute, source.replace("127.0.0.1:50051", service.address))
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    assert re.search("answer to|succeeded", capsys.readouterr().out)
