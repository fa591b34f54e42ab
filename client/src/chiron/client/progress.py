"""What a request waits for in a router, told while it waits."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from chiron.client.output import Progress
from chiron.client.own_clock import ends_in_time
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

OnProgress = Callable[[Progress], None]


def tell(on_progress: OnProgress | None, message: pb.Progress) -> None:
    """Calls back, if somebody wants to know."""
    if on_progress is not None:
        on_progress(
            Progress(
                text=message.text,
                position=message.position,
                waiting=message.waiting,
                waited_ms=message.waited_ms,
                instance_id=message.instance_id,
                loading_ms=message.loading_ms,
                ready_in_ms=message.ready_in_ms if message.HasField("ready_in_ms") else None,
            )
        )


async def watch_route(
    stub: inference_pb2_grpc.InferenceServiceStub,
    route: pb.RouteRequest,
    on_progress: OnProgress,
    *,
    timeout_s: float | None,
    silence_s: float | None,
    told_late: str,
    metadata: tuple[tuple[str, str], ...],
) -> pb.RouteResponse | None:
    """The answer of `Route`, and on the way to it what the request waits for.

    Returns None where the router is older than this call. Raises AioRpcError, DeadlineExceeded,
    which says `told_late`, and what `on_progress` raises.
    """
    call = stub.WatchRoute(pb.WatchRouteRequest(request=route), timeout=timeout_s, metadata=metadata)
    answer: pb.RouteResponse | None = None
    try:
        with ends_in_time(call, timeout_s, told_late, silence_s=silence_s) as listening:
            async for message in call:
                listening.waits()
                if message.HasField("route"):
                    answer = message.route
                elif message.HasField("progress"):
                    tell(on_progress, message.progress)
    except grpc.aio.AioRpcError as error:
        # Whoever is lost after the answer owes nothing more.
        if answer is None and error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
    finally:
        call.cancel()
    return answer
