"""Certificates between real processes: who may talk to whom, and who is turned away where."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import openai
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chiron.auth import certs
from chiron.auth.credentials import TENANT_URI
from chiron.client import Client, PermissionDenied, TlsConfig, Unauthenticated, Unavailable
from chiron.cluster import AdminError, LocalCluster
from chiron.cluster.access_admin import AccessAdmin
from chiron.internal.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from chiron.rpc.errors import reason_of
from chiron.rpc.identity import Identity, Tls, assume
from chiron.rpc.servers import open_channel, open_control_channel
from chiron.v1 import access_pb2, cluster_pb2, inference_pb2_grpc
from tests.support.http_door import openai_at
from tests.support.wait import eventually
from tests.support.worker_process import failure, read_all, request

pytestmark = pytest.mark.asyncio(loop_scope="module")
DENIED, UNAUTHENTICATED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
HANDSHAKE = grpc.StatusCode.UNAVAILABLE
HOSTS = ["localhost", "127.0.0.1"]


def files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"


@contextmanager
def being(folder: Path, name: str, *, ca: Path | None = None) -> Iterator[None]:
    """Channels opened within are those of this certificate's holder."""
    trusted, cert, key = files(folder, name)
    assume(Identity(Tls.read(ca or trusted, cert, key)))
    try:
        yield
    finally:
        assume(Identity())


def issue_for_tenants(folder: Path, name: str, tenants: list[str]) -> None:
    """A certificate that names several tenants, as other authorities' tools may make them."""
    authority, key = certs.Authority.load(folder), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.UniformResourceIdentifier(TENANT_URI + tenant) for tenant in tenants]
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.cert.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    plain = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, plain[1], plain[0]))


class Fenced:
    """A cluster in which every connection is mutual TLS."""

    def __init__(self, cluster: LocalCluster, folder: Path, strangers: Path) -> None:
        self.cluster, self.folder, self.strangers = cluster, folder, strangers

    def client(self, name: str, *, lookaside: bool = True) -> Client:
        ca, cert, key = files(self.folder, name)
        return Client(self.cluster.router_addresses, tls=TlsConfig(ca, cert, key), lookaside=lookaside)

    async def worker(self) -> str:
        with being(self.folder, "admin"):
            async with AccessAdmin(self.cluster.controller_address) as admin:
                return (await admin.snapshot()).instances[0].address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fenced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fenced]:
    folder, strangers = tmp_path_factory.mktemp("certs"), tmp_path_factory.mktemp("strangers")
    for each in (folder, strangers):
        certs.init(each, HOSTS, days=1, authority_days=1)
    certs.issue(folder, "acme", roles=[], tenant="acme", hosts=[], days=1)
    issue_for_tenants(folder, "both", ["acme", "lab"])

    def keys(name: str) -> dict[str, str]:
        named = zip(("tls.ca", "tls.cert", "tls.key"), map(str, files(folder, name)), strict=True)
        return {**dict(named), "tls.mutual": "true"}

    _, worker_cert, worker_key = files(folder, "worker")
    cluster = LocalCluster(
        nodes=1,
        gpus=1,
        directory=tmp_path_factory.mktemp("run"),
        http_port=0,
        settings={
            "controller": keys("controller") | {"auth.require": "true"},
            "router": keys("router") | {"auth.require": "true", "auth.key_file": ""},
            "agent": keys("agent")
            | {"auth.key_file": "", "worker_cert": str(worker_cert), "worker_key": str(worker_key)},
        },
    )
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args.update({"load_time_s": 0})
    try:
        with being(folder, "admin"):
            await cluster.__aenter__()
            await cluster.apply([spec])
            await cluster.wait_ready()
            async with AccessAdmin(cluster.controller_address) as admin:
                await admin.apply_tenant(access_pb2.Tenant(name="acme", models=["toy"]))
        yield Fenced(cluster, folder, strangers)
    finally:
        await cluster.stop()


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_a_tenant_s_certificate_is_served(fenced: Fenced, lookaside: bool) -> None:
    async with fenced.client("acme", lookaside=lookaside) as client:

        async def answered() -> bool:
            try:
                answer = await client.complete(model="toy", prompt="Hello.", max_tokens=4, timeout_s=10.0)
            except PermissionDenied as error:
                # The router has not heard of the tenant yet.
                if error.reason != "TENANT_UNKNOWN":
                    raise
                return False
            return bool(answer.text)

        await eventually(answered)
        assert (client.open_worker_channels > 0) is lookaside


async def test_a_certificate_without_a_tenant_is_nobody_at_a_router(fenced: Fenced) -> None:
    async with fenced.client("worker") as client:
        with pytest.raises(Unauthenticated) as caught:
            await client.complete(model="toy", prompt="Hello.", max_tokens=4, timeout_s=10.0)
    assert caught.value.reason == "CREDENTIALS_MISSING"


async def test_a_certificate_of_two_tenants_is_refused_at_both_doors(fenced: Fenced) -> None:
    told = r"this client certificate stands for 2 tenants \('acme', 'lab'\), and a call has one"
    async with fenced.client("both") as client:
        with pytest.raises(PermissionDenied, match=told) as caught:
            await client.complete(model="toy", prompt="Hello.", max_tokens=4, timeout_s=10.0)
    assert caught.value.reason == "NOT_ALLOWED"

    ca, cert, key = files(fenced.folder, "both")
    shown = ssl.create_default_context(cafile=str(ca))
    shown.load_cert_chain(cert, key)
    async with (
        openai.DefaultAsyncHttpxClient(verify=shown) as http,
        openai_at(fenced.cluster.http_urls[0], http_client=http) as client,
    ):
        with pytest.raises(openai.PermissionDeniedError, match=told) as refused:
            await client.models.list()
    assert refused.value.code == "permission_denied"


async def admins_call(fenced: Fenced) -> None:
    async with AccessAdmin(fenced.cluster.controller_address, timeout_s=3.0) as admin:
        await admin.snapshot()


async def connect(fenced: Fenced, role: str) -> grpc.aio.AioRpcError:
    """How the controller ends a stream that is opened as an agent or a router."""
    async with open_control_channel(fenced.cluster.controller_address) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        if role == "agent":
            call = stub.ConnectAgent(
                iter([control_pb2.ConnectAgentRequest(hello={"node_id": "x", "state_id": "x"})])
            )
        else:
            call = stub.ConnectRouter(iter([control_pb2.ConnectRouterRequest(hello={"router_id": "x"})]))
        code = await call.code()
        return grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


@pytest.mark.parametrize("name", ["router", "agent", "worker", "controller", "acme"])
async def test_only_an_administrator_s_certificate_administers(fenced: Fenced, name: str) -> None:
    with being(fenced.folder, name), pytest.raises(AdminError) as caught:
        await admins_call(fenced)
    assert caught.value.code is (UNAUTHENTICATED if name == "acme" else DENIED)
    assert caught.value.reason == ("CREDENTIALS_MISSING" if name == "acme" else "NOT_ALLOWED")


@pytest.mark.parametrize(("name", "role"), [("agent", "router"), ("router", "agent"), ("worker", "agent")])
async def test_a_wrong_role_s_certificate_gets_no_ticket_keys(fenced: Fenced, name: str, role: str) -> None:
    with being(fenced.folder, name):
        error = await connect(fenced, role)
    assert (error.code(), reason_of(error)) == (DENIED, "NOT_ALLOWED")


async def test_a_certificate_of_another_authority_fails_at_the_handshake(fenced: Fenced) -> None:
    # It trusts the cluster's authority, so that the refusal is the controller's own.
    with being(fenced.strangers, "admin", ca=fenced.folder / "ca.pem"), pytest.raises(AdminError) as caught:
        await admins_call(fenced)
    assert caught.value.code is HANDSHAKE
    with being(fenced.strangers, "agent", ca=fenced.folder / "ca.pem"):
        assert (await connect(fenced, "agent")).code() is HANDSHAKE
    ca, cert, key = fenced.folder / "ca.pem", *files(fenced.strangers, "router")[1:]
    async with Client(fenced.cluster.router_addresses, tls=TlsConfig(ca, cert, key)) as client:
        with pytest.raises(Unavailable):
            await client.complete(model="toy", prompt="x", timeout_s=5.0)


async def test_a_caller_who_trusts_another_authority_hangs_up(fenced: Fenced) -> None:
    with being(fenced.folder, "admin", ca=fenced.strangers / "ca.pem"), pytest.raises(AdminError) as caught:
        await admins_call(fenced)
    assert caught.value.code is HANDSHAKE


async def test_without_encryption_nobody_gets_through(fenced: Fenced) -> None:
    with pytest.raises(AdminError) as caught:
        await admins_call(fenced)
    assert caught.value.code is HANDSHAKE


async def test_a_worker_cannot_pass_for_a_controller(fenced: Fenced) -> None:
    address = await fenced.worker()
    with being(fenced.folder, "admin"), pytest.raises(AdminError) as caught:
        async with AccessAdmin(address, timeout_s=3.0) as admin:
            await admin.snapshot()
    assert caught.value.code is HANDSHAKE


async def test_a_worker_takes_a_router_s_word_and_nobody_else_s(fenced: Fenced) -> None:
    address = await fenced.worker()
    for name, reason in (("acme", "TICKET_REQUIRED"), ("agent", "TICKET_REQUIRED"), ("router", "")):
        with being(fenced.folder, name):
            channel = open_channel(address, "worker")
        async with channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request())
            if reason:
                error = await failure(call)
                assert (error.code(), reason_of(error)) == (UNAUTHENTICATED, reason)
            else:
                assert (await read_all(call))[-1].usage.completion_tokens == 8


async def test_a_worker_tells_its_load_to_routers_alone(fenced: Fenced) -> None:
    address = await fenced.worker()
    watch = worker_pb2.WatchLoadRequest(subscriber="test")
    for name, allowed in (("acme", False), ("router", True)):
        with being(fenced.folder, name):
            channel = open_channel(address, "worker")
        async with channel:
            call = worker_pb2_grpc.WorkerServiceStub(channel).WatchLoad(watch)
            if allowed:
                assert (await call.read()).instance_id
                call.cancel()
            else:
                error = await failure(call)
                assert (error.code(), reason_of(error)) == (DENIED, "NOT_ALLOWED")
