"""What an accepted request came to, as routers that record are told. Pure."""

from __future__ import annotations

import asyncio

from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import ChironError
from services.worker.core import GIVEN_UP
from services.worker.live import LiveRequest
from services.worker.pace import Pace

_Ended = worker_pb2.EndedRequest


def came_to(
    live: LiveRequest, pace: Pace, raised: BaseException | None, instance_id: str
) -> worker_pb2.EndedRequest:
    """The end of a request.

    Args:
        live: the request.
        pace: what it had so far.
        raised: what ended it; None: its answer was read whole.
        instance_id: of this worker.
    """
    told = _Ended(
        request_id=live.request_id,
        attempt=live.attempt,
        ending=_ending(live, pace, raised),
        usage=pace.usage(),
        timing=pace.timing(instance_id),
    )
    told.timing.itl_mean_ms = pace.whole_itl_ms
    return told


def _ending(live: LiveRequest, pace: Pace, raised: BaseException | None) -> _Ended.Ending.ValueType:
    if live.answered:
        return _Ended.ENDING_FAILED if "abort" in pace.finish_reasons else _Ended.ENDING_WHOLE
    cause = live.cut or raised
    if isinstance(cause, ChironError) and cause.reason in GIVEN_UP:
        return _Ended.ENDING_GIVEN_UP
    return _Ended.ENDING_CANCELLED if isinstance(cause, asyncio.CancelledError) else _Ended.ENDING_FAILED
