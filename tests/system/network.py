"""Two hosts on one machine: network namespaces joined by a virtual cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

import pytest

SERVER_ADDRESS = "10.77.0.1"
"""Reachable from the client's host."""
HIDDEN_ADDRESS = "10.78.0.1"
"""The server's too; packets from the client's host to it are dropped without an answer."""
_CLIENT_ADDRESS = "10.77.0.2"


def require_tools() -> None:
    """Fails, saying what to do, where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.fail("`ip` is missing: apt-get install iproute2 (Debian, Ubuntu)")
    if os.geteuid() != 0:
        pytest.fail("network namespaces need root: run `sudo make test-system`")


class TwoHosts:
    """A server's and a client's host."""

    def __init__(self) -> None:
        self.server = f"chiron-s-{os.getpid()}"
        self.client = f"chiron-c-{os.getpid()}"

    def __enter__(self) -> TwoHosts:
        for name in (self.server, self.client):
            _ip("netns", "add", name)
        try:
            _ip(
                "link",
                "add",
                "ch0",
                "netns",
                self.server,
                "type",
                "veth",
                "peer",
                "ch1",
                "netns",
                self.client,
            )
            for name, device, address in (
                (self.server, "ch0", SERVER_ADDRESS),
                (self.client, "ch1", _CLIENT_ADDRESS),
            ):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", self.server, "address", "add", f"{HIDDEN_ADDRESS}/32", "dev", "lo")
            # A next hop that no host answers for: connecting neither works nor fails at once.
            _ip(
                "-n",
                self.client,
                "neighbour",
                "add",
                "10.77.0.9",
                "lladdr",
                "02:00:00:00:00:09",
                "dev",
                "ch1",
            )
            _ip("-n", self.client, "route", "add", f"{HIDDEN_ADDRESS}/32", "via", "10.77.0.9")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in (self.client, self.server):
            subprocess.run(["ip", "netns", "del", name], check=False)


def on(host: str, *command: str) -> list[str]:
    """The command, run on a host."""
    return ["ip", "netns", "exec", host, *command]


def _ip(*arguments: str) -> None:
    run = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.fail(f"ip {' '.join(arguments)}: {run.stderr.strip()}")
