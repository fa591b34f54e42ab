"""Subscriptions to the workers' load, and the connections that requests take to them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.servers import open_channel
from services.router.request import OpenWatch

log = logging.getLogger(__name__)
_GENERATE = "/chiron.v1.InferenceService/Generate"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0

OnLoad = Callable[[str, int, worker_pb2.WatchLoadResponse], None]
OnLost = Callable[[str, int], None]


class WorkerLink:
    """The load subscription to one instance and the channel that carries requests to it."""

    def __init__(
        self,
        order: OpenWatch,
        subscriber: str,
        on_load: OnLoad,
        on_lost: OnLost,
        *,
        tell_ended: bool = False,
        prefixes: bool = False,
    ) -> None:
        self._order = order
        self._prefixes = prefixes
        self._subscriber = subscriber
        self._tell_ended = tell_ended
        self._on_load = on_load
        self._on_lost = on_lost
        self._streams = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None
        self._data = open_channel(order.address, "worker")
        # No serialisers: requests and responses pass as the bytes that they are.
        self.generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._data.unary_stream(_GENERATE)
        self._task = asyncio.create_task(self._watch(), name=f"watch {order.instance_id}")

    def enter(self) -> None:
        """Counts a stream on the channel."""
        self._streams += 1

    def leave(self) -> None:
        """Counts the end of a stream."""
        self._streams -= 1
        self._close_when_idle()

    def retire(self) -> None:
        """Ends the subscription; the channel closes once the streams on it have ended."""
        self._task.cancel()
        self._retired = True
        self._close_when_idle()

    async def close(self) -> None:
        """Ends the subscription and whatever still runs on the channel."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._data.close()

    def _close_when_idle(self) -> None:
        if self._retired and self._streams == 0 and self._closing is None:
            self._closing = asyncio.create_task(self.close())

    async def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        instance_id, watch = self._order.instance_id, self._order.watch
        request = worker_pb2.WatchLoadRequest(
            subscriber=self._subscriber, tell_ended=self._tell_ended, prefixes=self._prefixes
        )
        async with open_channel(self._order.address, "worker") as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            while True:
                call = stub.WatchLoad(request)
                try:
                    async for load in call:
                        if pause_s != 0:
                            # The first request must not wait for a connection.
                            self._data.get_state(try_to_connect=True)
                            pause_s = 0
                        self._on_load(instance_id, watch, load)
                except grpc.aio.AioRpcError as error:
                    log.debug("%s at %s: %s", instance_id, self._order.address, error.details())
                except Exception:
                    # A report that this router cannot read must not leave it with an old one for good.
                    log.exception("cannot use the load of %s at %s", instance_id, self._order.address)
                finally:
                    call.cancel()
                self._on_lost(instance_id, watch)
                pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
