"""Reads the history of the cluster's state in etcd while it is made, so that etcd need not keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from chiron.internal.etcd.v1 import etcd_pb2 as etcd
from chiron.store.etcd.keys import Keys, range_end
from chiron.store.etcd.methods import COMPACT, RANGE, WATCH
from tests.soak.history import Write
from tests.soak.until import until

_PAUSE_S = 0.2
_CALL_S = 3.0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # A member that is frozen is noticed; etcd takes no pings more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
)
_NEEDS_LEADER = (("hasleader", "true"),)
"""A member that loses its leader ends the watch, instead of leaving it silent."""


class HistoryWatch:
    """Every write below a prefix from etcd's beginning, in order, from one member after the other."""

    def __init__(self, endpoints: Sequence[str], prefix: str, log: Callable[[str], None]) -> None:
        """`endpoints` are host:port of the members; `run` follows them."""
        self.writes: list[Write] = []
        self.dropped = ""
        """What is missing because etcd dropped it before it was read; empty: nothing."""
        self._endpoints = endpoints
        self._base, self._keys = prefix.encode() + b"/", Keys(prefix)
        self._log = log
        self._next = 0
        """Index of the member that is asked next."""

    async def run(self) -> None:
        """Follows until cancelled, or until something has been dropped unread."""
        while not self.dropped:
            try:
                async with self._channel() as channel:
                    await self._follow(channel)
            except grpc.aio.AioRpcError as error:
                self._log(f"the watch of the history broke: {error.code().name} {error.details()}")
            await asyncio.sleep(_PAUSE_S)

    async def compact(self) -> int | None:
        """Drops everything that has been read but the present; the revision, or None where nobody did it."""
        revision = self._read_to()
        if not revision:
            return None
        for _ in self._endpoints:
            try:
                async with self._channel() as channel:
                    ask = channel.unary_unary(
                        COMPACT.path, COMPACT.request.SerializeToString, COMPACT.response.FromString
                    )
                    await ask(COMPACT.request(revision=revision), timeout=_CALL_S)
                    return revision
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    # An earlier attempt, whose answer was lost.
                    return revision
                self._log(f"not compacted: {error.code().name} {error.details()}")
        return None

    async def catch_up(self, within_s: float) -> bool:
        """Returns True once everything has been read that is written by now."""
        last = await until(self._last_commit, within_s)

        async def read() -> bool:
            return bool(self.dropped) or (last is not None and self._read_to() >= last)

        return bool(await until(read, within_s))

    def _read_to(self) -> int:
        return self.writes[-1].revision if self.writes else 0

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        watch = channel.stream_stream(WATCH.path, WATCH.request.SerializeToString, WATCH.response.FromString)(
            metadata=_NEEDS_LEADER
        )
        create = etcd.WatchCreateRequest(
            key=self._base,
            range_end=range_end(self._base),
            start_revision=self._read_to() + 1,
            watch_id=1,
        )
        await watch.write(etcd.WatchRequest(create_request=create))
        while (response := await watch.read()) is not grpc.aio.EOF:
            assert isinstance(response, etcd.WatchResponse)
            if response.compact_revision:
                self.dropped = f"etcd has dropped what came before its revision {response.compact_revision}"
                return
            if response.canceled:
                return
            self.writes += [
                Write(event.kv.mod_revision, event.kv.key, None if event.type else event.kv.value)
                for event in response.events
            ]

    async def _last_commit(self) -> int | None:
        """etcd's revision of the newest commit or term; None while nobody answers."""
        try:
            async with self._channel() as channel:
                ask = channel.unary_unary(
                    RANGE.path, RANGE.request.SerializeToString, RANGE.response.FromString
                )
                found: list[Any] = [
                    await ask(etcd.RangeRequest(key=key), timeout=_CALL_S)
                    for key in (self._keys.head, self._keys.term)
                ]
        except grpc.aio.AioRpcError:
            return None
        return max((kv.mod_revision for answer in found for kv in answer.kvs), default=None)

    def _channel(self) -> grpc.aio.Channel:
        """To the next member."""
        endpoint = self._endpoints[self._next]
        self._next = (self._next + 1) % len(self._endpoints)
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
