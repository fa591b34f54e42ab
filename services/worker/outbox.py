"""What one request's reader has not been sent yet: merged, so that it is bounded by max_tokens."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from chiron.v1 import inference_pb2 as pb
from services.worker.call_reader import join

_MOST_TOKENS = 1024
"""Tokens of one message: with the most logprobs, far below the largest message that a client takes."""
_TICKS_S = (0.02, 0.01, 0.005)
"""Messages that are held leave at multiples of one of these, so that those of many streams leave together.
Each is a multiple of the next: streams whose intervals differ share ticks too."""
_EARLY_S = 0.001
"""Timers count in milliseconds: one may fire so much before its time."""


def leaves_at(now: float, interval_s: float) -> float:
    """When the message after one that leaves now is due: a tick, where the interval has two of them or more.

    Whoever passes on the messages of many streams wakes once for those that come together. The ticks are
    therefore further apart where messages are: 5 to 20 ms, at most a quarter of an interval of 20 ms or more.

    Args:
        now: monotonic, in seconds, as is the answer.
        interval_s: how far apart the messages may be, in seconds; a timer's millisecond may add to it.
    """
    due = now + interval_s
    tick_s = next((tick_s for tick_s in _TICKS_S if interval_s >= 4 * tick_s), _TICKS_S[-1])
    if interval_s < 2 * tick_s:
        return due
    return (due + _EARLY_S) // tick_s * tick_s


class Outbox:
    """Stands between the engine, which never waits for a reader, and the writes to that reader.

    The first tokens leave at once. Later ones leave when the last message is `interval_s` ago, or at the tick
    before (see `leaves_at`), the end and a failure at once; what comes meanwhile, or while a write is under
    way, travels in one message.
    """

    def __init__(self, interval_s: Callable[[], float]) -> None:
        """Empty. `interval_s` tells how far apart messages are to be now, in seconds."""
        self._interval_s = interval_s
        self._messages: deque[pb.GenerateResponse] = deque()
        self._deltas: dict[int, pb.OutputDelta] = {}
        """Those of the newest message, by choice."""
        self._tokens = 0
        """Of the newest message."""
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ready = asyncio.Event()
        self._closed = False
        self._error: BaseException | None = None

    def put(self, delta: pb.OutputDelta) -> None:
        """Adds what a choice gained after all that was put before."""
        waiting = self._deltas.get(delta.choice) if self._messages else None
        if waiting is None or self._tokens >= _MOST_TOKENS:
            self._add(delta)
        else:
            waiting.token_ids.extend(delta.token_ids)
            waiting.text += delta.text
            waiting.text_ends.extend(delta.text_ends)
            waiting.logprobs.extend(delta.logprobs)
            waiting.finish_reason, waiting.stop_match = delta.finish_reason, delta.stop_match
            if delta.HasField("parsed"):
                join(waiting.parsed, delta.parsed)
        self._tokens += len(delta.token_ids)

    def _add(self, delta: pb.OutputDelta) -> None:
        if not self._messages or self._tokens >= _MOST_TOKENS:
            self._messages.append(pb.GenerateResponse())
            self._deltas.clear()
            self._tokens = 0
        added = self._messages[-1].deltas.add()
        added.CopyFrom(delta)
        self._deltas[delta.choice] = added

    def send(self) -> None:
        """What was put may leave, at once or when it is time."""
        if self._ready.is_set() or self._timer is not None:
            return
        wait_s = self._due_at - time.monotonic()
        if wait_s <= 0:
            self._ready.set()
        else:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._ready.set)

    def close(self, usage: pb.Usage, timing: pb.Timing) -> None:
        """The output is complete: its last message leaves at once."""
        last = self._messages[-1].deltas[-1]
        last.usage.CopyFrom(usage)
        last.timing.CopyFrom(timing)
        self._closed = True
        self._ready.set()

    def fail(self, error: BaseException) -> None:
        """The output ends with this; what was put before leaves first."""
        self._error = error
        self._ready.set()

    async def take(self) -> pb.GenerateResponse | None:
        """The next message; None after the last. Raises what the output ended with."""
        await self._ready.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._messages:
            if self._error is not None:
                raise self._error
            return None
        message = self._messages.popleft()
        self._due_at = leaves_at(time.monotonic(), self._interval_s())
        if not (self._messages or self._closed or self._error is not None):
            self._ready.clear()
        return message

    def drop(self) -> None:
        """Nobody takes anything more."""
        if self._timer is not None:
            self._timer.cancel()


class Spacing:
    """How far apart each stream's messages are, so that all together take a bounded share of a core.

    A message costs much the same whatever it holds. With few streams each token leaves by itself; with more
    of them the interval grows until `longest_s` is reached.
    """

    def __init__(self, messages_per_s: float, longest_s: float, streams: Callable[[], int]) -> None:
        """Spaces the messages of `streams()` streams to `messages_per_s` in all."""
        self._each_s = 1.0 / messages_per_s
        self._longest_s = longest_s
        self._streams = streams

    def interval_s(self, itl_slo_ms: float) -> float:
        """For a stream with this ITL SLO (0: none), of which its messages' interval takes half at most."""
        interval_s = min(self._streams() * self._each_s, self._longest_s)
        return min(interval_s, itl_slo_ms / 2000) if itl_slo_ms else interval_s
