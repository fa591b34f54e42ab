"""Reads requests' inputs: short ones at once, long ones in a thread, one at a time, beside the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chiron.v1 import inference_pb2 as pb

T = TypeVar("T")

_LONG_INPUT_BYTES = 32 * 1024
"""Size of a request from which on its input is read in the thread: a text of megabytes takes seconds."""


class Inputs:
    """Has an engine read what requests hold."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="long-inputs")

    async def read(self, reads: Callable[[pb.GenerateRequest], T], request: pb.GenerateRequest) -> T:
        """What a method of the engine makes of a request. Raises what it raises."""
        if request.ByteSize() <= _LONG_INPUT_BYTES:
            return reads(request)
        return await asyncio.get_running_loop().run_in_executor(self._thread, reads, request)

    def close(self) -> None:
        """Nobody waits any more for what has not been read."""
        self._thread.shutdown(wait=False, cancel_futures=True)
