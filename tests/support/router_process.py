"""Real router processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2_grpc
from tests.support.patience import patience

ROOT = Path(__file__).parents[2]


class RouterProcess:
    """One router, its channel and its stub."""

    def __init__(self, process: asyncio.subprocess.Process, announced: dict[str, str], log: Path) -> None:
        self.process = process
        self.address = address = announced["address"]
        self.http_url = announced.get("http", "")
        """Where its HTTP door is; empty: it has none."""
        self._log = log
        self.channel = open_channel(address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def log(self) -> str:
        """What the process wrote to stderr."""
        return self._log.read_text()

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def router_process(folder: Path, controller: str, **settings: Any) -> AsyncIterator[RouterProcess]:
    """Starts a router on any free port and kills it afterwards."""
    chosen = {"listen": "127.0.0.1:0", "controller": controller, "drain_timeout_s": 0, **settings}
    arguments = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    log = folder / f"router-{chosen.get('router_id', '')}.log"
    with log.open("a") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.router",
            *arguments,
            cwd=ROOT,
            env={**os.environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20.0 * patience()):
            line = await process.stdout.readline()
        assert line, f"the router announced nothing: {log.read_text()}"
        router = RouterProcess(process, json.loads(line), log)
        try:
            yield router
        finally:
            await router.channel.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
