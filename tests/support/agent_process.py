"""A local agent as a real process, with declared GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiron.config import ConfigError
from services.local_agent.journal_file import JournalFile
from services.local_agent.memory import Memory, WorkerNoted
from services.local_agent.procfs import session_members, workers_below

_ROOT = Path(__file__).parents[2]


class AgentProcess:
    """Starts with `start`; `end` leaves neither the agent nor its workers."""

    def __init__(
        self,
        folder: Path,
        controller_port: int,
        *,
        gpus: int = 2,
        module: str = "services.local_agent",
        environ: Mapping[str, str] | None = None,
        **keys: object,
    ) -> None:
        self._module = module
        self._environ = {**os.environ, **(environ or {})}
        self.state_dir = folder / "agent"
        self.stderr_file = folder / "agent.stderr"
        self._keys = {
            "controller": f"127.0.0.1:{controller_port}",
            "node_id": "node-1",
            "gpus": gpus,
            "state_dir": self.state_dir,
            "restart_backoff_s": 0.05,
            "stop_grace_s": 5,
            "drain_timeout_s": 5,
            # Requests come without a router here.
            "worker_env": "CHIRON_WORKER_REQUIRE_TICKETS=false",
            **keys,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._sessions: set[int] = set()

    async def start(self) -> dict[str, Any]:
        """Returns the line that the agent announces."""
        settings = [argument for key, value in self._keys.items() for argument in ("--set", f"{key}={value}")]
        with self.stderr_file.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                *settings,
                env=self._environ,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=_ROOT,
            )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    def memory(self) -> Memory:
        """What the agent's journal tells."""
        return JournalFile(self.state_dir / "journal").memory

    def records(self) -> dict[str, WorkerNoted]:
        """The workers that the agent has on record, by instance."""
        found = {name: one.worker for name, one in self.memory().instances.items() if one.worker is not None}
        self._sessions |= {record.pid for record in found.values() if record.pid}
        return found

    def log(self) -> str:
        return self.stderr_file.read_text()

    async def end(self) -> None:
        """Kills the agent and what it has on record."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        with contextlib.suppress(ConfigError):  # A test may have damaged the journal.
            self.records()
        self._sessions |= {found.pid for found in workers_below(self.state_dir / "instances")}
        for session in self._sessions:
            for member in session_members(session):
                os.kill(member.pid, signal.SIGKILL)
