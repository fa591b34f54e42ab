"""Where workers listen and where they are reached: a link for each port that a node's workers may get."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.soak.links import Link

_HOST = "127.0.0.1"
_FIRST, _LAST = 15_000, 32_000
"""Below the ports that the system gives to whoever asks for any."""
_TRIES = 100


def node_host(index: int) -> str:
    """Host at which the workers of a node are reached; they bind another."""
    return f"127.0.1.{1 + index}"


def free_range(count: int) -> range:
    """Ports in a row that nobody listens on now. Raises OSError when there are none."""
    for _ in range(_TRIES):
        first = random.randrange(_FIRST, _LAST - count)
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind((_HOST, port))
        except OSError:
            continue
        return range(first, first + count)
    raise OSError(f"no {count} free ports in a row")


def doors(node: int, ports: range) -> Iterator[Link]:
    """The links to the workers of a node: where each is reached, and from there to where it listens."""
    for port in ports:
        yield Link(door_of(port), f"{_HOST}:{port}", f"{node_host(node)}:{port}")


def door_of(port: int) -> str:
    """Name of the link to whoever listens on the port."""
    return f"worker-{port}"


def port_of(pid: int) -> int | None:
    """The port that a worker was told to listen on; None when the process is gone."""
    try:
        parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return None
    listens = (part.rpartition(":")[2] for part in parts if part.startswith("listen="))
    return next(map(int, listens), None)
