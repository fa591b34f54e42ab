"""Every example in the README and the docstrings runs as written, but for the router's address."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import chiron.client
from chiron.client import Client, SyncClient
from tests.support.fake_inference import FakeDoor, FakeRouter, serving

README = Path(__file__).parents[3] / "client" / "README.md"
DOCUMENTED = (Client, Client.generate, Client.complete, SyncClient, SyncClient.generate, SyncClient.complete)
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def examples() -> list[object]:
    texts = {"README": README.read_text()}
    texts |= {each.__qualname__: inspect.getdoc(each) or "" for each in DOCUMENTED}
    return [
        pytest.param(textwrap.dedent(match[2]), id=f"{name}-{number}")
        for name, text in texts.items()
        for number, match in enumerate(BLOCK.finditer(text), start=1)
        if "client.batch" not in match[2]  # Those run where there is a queue: test_batch_examples.py.
    ]


def execute(source: str) -> None:
    code = compile(source, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {name: getattr(chiron.client, name) for name in chiron.client.__all__}
    result = eval(code, names)
    if inspect.isawaitable(result):
        asyncio.run(_wait_for(result))


async def _wait_for(result) -> None:
    await result


def test_each_documented_callable_and_the_readme_have_examples():
    assert len(examples()) >= len(DOCUMENTED) + 3


@pytest.mark.parametrize("source", examples())
async def test_example_runs(source, capsys):
    worker = FakeDoor("w-1")
    router = FakeRouter(worker)
    async with serving(worker, router):
        await asyncio.to_thread(execute, source.replace("127.0.0.1:50051", router.address))
    assert worker.generated
    if "print(chunk.text" in source:
        assert "Once upon a time" in capsys.readouterr().out
