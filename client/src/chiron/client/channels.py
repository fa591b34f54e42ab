"""Channels to routers and workers: shared, bounded in number, closed when nobody uses them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from types import TracebackType

import grpc

from chiron.client.errors import ClientClosed
from chiron.client.request import MAX_MESSAGE_BYTES
from chiron.client.security import TlsConfig
from chiron.v1 import batch_pb2_grpc, inference_pb2_grpc

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanishes without a word is noticed while a stream runs on it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it gRPC waits a minute for a ping's answer, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # This package decides what to try again, and where.
    ("grpc.enable_retries", 0),
    # The back-off of a connection that was given up must not slow down the next one to that address.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connection(Enum):
    """What became of an attempt to connect."""

    READY = "ready"
    REFUSED = "refused"
    """The attempt failed: refused, reset, unknown host, bad certificate."""
    TIMED_OUT = "timed out"
    """No answer in time."""


class _Entry:
    __slots__ = ("address", "channel", "stub", "users", "wanted")

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.users = 0
        self.wanted = True


class Lease:
    """One user's hold on a channel: `with` it, so that the channel stays open meanwhile."""

    def __init__(self, entry: _Entry, release: Callable[[_Entry], None]) -> None:
        self.address = entry.address
        self.stub = entry.stub
        self._entry = entry
        self._release = release

    @property
    def batches(self) -> batch_pb2_grpc.BatchServiceStub:
        """BatchService on the same connection."""
        return batch_pb2_grpc.BatchServiceStub(self._entry.channel)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release(self._entry)

    async def connect(self, timeout_s: float) -> Connection:
        """Waits up to `timeout_s` seconds for the connection."""
        channel = self._entry.channel
        try:
            async with asyncio.timeout(timeout_s):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return Connection.REFUSED
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            # A loop that was blocked for that long learns of both at once.
            if channel.get_state() is not grpc.ChannelConnectivity.READY:
                return Connection.TIMED_OUT
        return Connection.READY


class Channels:
    """Channels by address. Beyond `limit`, the least recently used ones that nobody holds are closed."""

    def __init__(self, limit: int, tls: TlsConfig | None) -> None:
        self._limit = limit
        self._options = list(_OPTIONS)
        self._credentials = tls.credentials() if tls else None
        if tls and tls.server_name:
            self._options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._alive: set[_Entry] = set()
        """Also those that were discarded while somebody held them."""
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Open channels."""
        return len(self._entries)

    def lease(self, address: str) -> Lease:
        """The channel to `address`, opened where there is none; it connects when it is used.

        Raises ClientClosed after `close`.
        """
        if self._closed:
            raise ClientClosed("the client is closed")
        entry = self._entries.get(address)
        if entry is None:
            entry = self._entries[address] = _Entry(address, self._open(address))
            self._alive.add(entry)
        self._entries.move_to_end(address)
        entry.users += 1
        self._trim()
        return Lease(entry, self._release)

    def discard(self, address: str) -> None:
        """Forgets the channel: who holds it keeps it, the next user connects anew."""
        entry = self._entries.pop(address, None)
        if entry is not None:
            self._drop(entry)

    async def close(self) -> None:
        """Closes every channel and ends the calls on them."""
        self._closed = True
        for entry in tuple(self._alive):
            self._close_soon(entry)
        self._entries.clear()
        while self._closing:
            await asyncio.gather(*self._closing)

    def _open(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._credentials, options=self._options)

    def _release(self, entry: _Entry) -> None:
        entry.users -= 1
        if not entry.users and not entry.wanted:
            self._close_soon(entry)
        self._trim()

    def _trim(self) -> None:
        excess = len(self._entries) - self._limit
        if excess > 0:
            idle = [entry for entry in self._entries.values() if not entry.users]
            for entry in idle[:excess]:
                del self._entries[entry.address]
                self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        entry.wanted = False
        if not entry.users:
            self._close_soon(entry)

    def _close_soon(self, entry: _Entry) -> None:
        if entry not in self._alive:
            return
        self._alive.remove(entry)
        task = asyncio.get_running_loop().create_task(entry.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
