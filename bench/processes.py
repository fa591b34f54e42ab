"""Processes that announce themselves on stdout, as every service does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def announced(module: str, *arguments: str) -> AsyncIterator[tuple[dict[str, str], int]]:
    """A process that announces itself on stdout: (what it says, pid)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        if not line:
            raise SystemExit(f"error: {module} did not start; see its message above")
        yield json.loads(line), process.pid
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def started(module: str, *arguments: str) -> AsyncIterator[tuple[str, int]]:
    """The same: (address, pid)."""
    async with announced(module, *arguments) as (told, pid):
        yield told["address"], pid
