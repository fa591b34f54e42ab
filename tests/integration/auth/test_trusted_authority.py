"""`--ca` alone: the connection is encrypted, and an API key says who calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.auth import certs
from chiron.cli.identity import assume_identity, client_tls
from chiron.client import TlsConfig
from chiron.rpc.identity import Identity, Tls, assume, present
from chiron.rpc.servers import Server, open_channel

HEALTH = "grpc.health.v1.Health"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    certs.init(tmp_path, ["localhost", "127.0.0.1"], days=1, authority_days=1)
    yield tmp_path
    assume(Identity())


async def test_a_server_that_asks_for_no_certificate_is_reached_by_its_authority_alone(folder: Path) -> None:
    assume(Identity(Tls.read(folder / "ca.pem", folder / "router.pem", folder / "router.key")))
    server = Server([HEALTH])
    address = f"localhost:{server.bind('localhost:0')}"
    await server.start()
    try:
        assert assume_identity("ck_x", folder / "ca.pem", None, None) == ""
        assert present().api_key == "ck_x"
        assert client_tls() == TlsConfig(ca=(folder / "ca.pem").read_bytes())
        async with open_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        await server.grpc.stop(None)


def test_half_a_pair_is_refused_and_so_is_a_pair_without_its_authority(folder: Path) -> None:
    ca, cert, key = folder / "ca.pem", folder / "admin.pem", folder / "admin.key"
    for given in ((ca, cert, None), (ca, None, key), (None, cert, key)):
        assert "belong together" in assume_identity("", *given)
    assert assume_identity("", ca, cert, key) == ""
