"""gRPC servers and channels with the options that all services use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chiron.rpc.bearer import showing
from chiron.rpc.identity import SERVER_NAME, present

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest request or response; a prompt of four million characters fits."""

_COMMON: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it gRPC waits a minute for a ping's answer, whatever the line above says: a peer that is frozen,
    # or whose host is gone, would go unnoticed for as long.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_PINGS_APART_MS = 1_000
"""Shortest time between two pings that a server takes; beyond it, it ends the connection."""
_SERVER = [
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _PINGS_APART_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_APART_MS),
    # Above these, gRPC itself cancels calls at random before a servicer has seen them. A burst must reach the
    # queue, which refuses with a reason and a retry delay; the limit is for memory, not for admission.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # And those that have waited for a servicer this long, in seconds; gRPC's own is 30, which a burst on a
    # busy host exceeds. A caller who cannot wait sends a deadline.
    ("grpc.server_max_unrequested_time_in_server", 3_600),
    # A second server on a taken port must fail, not share it.
    ("grpc.so_reuseport", 0),
]
_CHANNEL = [
    *_COMMON,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Not a pause: how long one attempt to connect may take, which a busy peer needs.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Retries are decided where the request is understood.
    ("grpc.enable_retries", 0),
    # Two channels to one address (data and control) must not share a congested connection.
    ("grpc.use_local_subchannel_pool", 1),
]
_CONTROL = [
    *{
        **dict(_CHANNEL),
        # Shorter than a liveness timeout: who is tied to a controller that has frozen must find the next
        # leader before that one takes it for dead.
        "grpc.keepalive_time_ms": 2_000,
        "grpc.keepalive_timeout_ms": 2_000,
        "grpc.http2.ping_timeout_ms": 2_000,
    }.items()
]

HOST_PORT = re.compile(r"(?:[^:\[\]\s]+|\[[^\[\]\s]+\]):([0-9]{1,5})")
"""An IPv6 host stands in brackets."""


class BindError(Exception):
    """An address could not be bound; the text names it."""


class Server:
    """A grpc.aio server with health and reflection; NOT_SERVING until `set_serving(True)`."""

    def __init__(
        self,
        service_names: Sequence[str],
        *,
        maximum_concurrent_rpcs: int | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """Makes the server; register servicers on `.grpc`, then `bind` and `start`.

        Args:
            service_names: full names, e.g. `chiron.v1.InferenceService`.
            maximum_concurrent_rpcs: calls beyond it get RESOURCE_EXHAUSTED; None: no limit.
            interceptors: see every call, in this order.
        """
        self.grpc = grpc.aio.server(
            options=_SERVER, maximum_concurrent_rpcs=maximum_concurrent_rpcs, interceptors=interceptors
        )
        self._names = [*service_names, ""]
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc
        )

    def bind(self, address: str, *, mutual: bool | None = None) -> int:
        """Listens on `host:port` (port 0: any) and returns the port. Raises BindError.

        Args:
            address: where.
            mutual: ask callers for a certificate, where this process has one itself; None: as it is set up.
        """
        parts = HOST_PORT.fullmatch(address)
        if parts is None or int(parts[1]) > 65_535:
            raise BindError(f"cannot listen on {address}: expected host:port")
        try:
            if (tls := present().tls) is None:
                port = self.grpc.add_insecure_port(address)
            else:
                credentials = tls.for_servers(mutual=tls.mutual if mutual is None else mutual)
                port = self.grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise BindError(f"cannot listen on {address}: is the port in use?") from error
        if port == 0:
            raise BindError(f"cannot listen on {address}: is the port in use?")
        return port

    def bind_unix(self, path: Path) -> None:
        """Listens on a Unix socket that only this user can open (mode 0600). Raises BindError."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        try:
            self.grpc.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise BindError(f"cannot listen on unix:{path}") from error
        path.chmod(0o600)

    async def start(self) -> None:
        """Starts to serve; health says NOT_SERVING."""
        await self.set_serving(False)
        await self.grpc.start()

    async def set_serving(self, serving: bool) -> None:
        """Sets what the health service answers for every service."""
        for name in self._names:
            await self.set_health(name, serving)

    async def set_health(self, name: str, serving: bool) -> None:
        """Sets what the health service answers for one name."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones finish for `grace_s` seconds, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)


def open_channel(address: str, server_role: str = "") -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path` with Chiron's options; connects lazily.

    Args:
        address: where to.
        server_role: where connections are encrypted, the server must be of this role (`controller`, `router`,
            `worker`); empty: it must be named after the host that is dialled.
    """
    return _open(address, _CHANNEL, server_role, "")


def open_control_channel(address: str, *, api_key: str = "") -> grpc.aio.Channel:
    """A channel to a controller: like `open_channel`, but one that is silent is noticed within 4 s.

    Args:
        address: where to.
        api_key: shown with every unary call.
    """
    return _open(address, _CONTROL, "controller", api_key)


def _open(
    address: str, options: Sequence[tuple[str, int | str]], server_role: str, api_key: str
) -> grpc.aio.Channel:
    interceptors, tls = showing(api_key), present().tls
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    if server_role:
        options = [*options, ("grpc.ssl_target_name_override", SERVER_NAME.format(server_role))]
    return grpc.aio.secure_channel(address, tls.for_channels(), options=options, interceptors=interceptors)
