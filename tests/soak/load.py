"""Sends the load through the real SDK and judges every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing

from chiron.client import Client
from chiron.client.options import RequestOptions
from tests.soak.asks import Ask, Rates, Way, asks
from tests.soak.ends import End, Fault, Reading, describe
from tests.soak.expected import Answer, Oracle
from tests.soak.transcript import Transcript, fitting
from tests.soak.versions import Versions

TIMEOUT_S = 240.0
"""What each request is given: far more than a fault and a return take, on a busy machine too."""
_GRACE_S = 10.0
_MOST_OUTSTANDING = 100
_STOP_LENGTH = 6
_FALLBACK_MEMORY_S = 5.0
"""Short, so that what goes round a worker that cannot be reached soon goes straight to it again."""
_OTHER_WEIGHTS = "no instance serves those weights any more"


class Load:
    """One run's requests; `run` sends them, the counts may be read at any time."""

    def __init__(
        self, oracle: Oracle, versions: Versions, seed: int, rates: Rates, log: Callable[[str], None]
    ) -> None:
        self._oracle = oracle
        self._versions = versions
        self._seed = seed
        self._rates = rates
        self._log = log
        self.requests = 0
        """Sent."""
        self.ends: Counter[End] = Counter()
        self.faulty: Counter[Fault] = Counter()
        """Requests with at least one fault of this kind."""
        self.retried = 0
        """Requests that took more than one attempt."""
        self.resumed = 0
        """Streams that this side saw break and go on; routers do the same unseen."""
        self.shed = 0
        """Not sent, because too many were under way."""
        self.tokens = 0
        self.outstanding = 0

    async def run(self, routers: Sequence[str], over: asyncio.Event) -> None:
        """Sends until `over` is set and returns when every request has ended, or its time has passed."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with AsyncExitStack() as stack:
            clients = {
                way: await stack.enter_async_context(
                    Client(
                        # So that each router has requests while nothing is wrong.
                        routers if way is Way.LOOKASIDE else routers[::-1],
                        lookaside=way is Way.LOOKASIDE,
                        timeout_s=TIMEOUT_S,
                        fallback_memory_s=_FALLBACK_MEMORY_S,
                    )
                )
                for way in Way
            }
            async with asyncio.TaskGroup() as group:
                for ask in asks(self._seed, self._versions.models, self._rates):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(over.wait(), max(0.0, begin + ask.at_s - loop.time()))
                    if over.is_set():
                        break
                    if self.outstanding >= _MOST_OUTSTANDING:
                        self.shed += 1
                        continue
                    self.requests += 1
                    self.outstanding += 1
                    group.create_task(self._one(clients[ask.way], ask))
            self.resumed = sum(client.stats.resumed for client in clients.values())

    async def _one(self, client: Client, ask: Ask) -> None:
        model = str(ask.options["model"])
        live, newest = self._versions.live(model), self._versions.newest(model)
        options, answer = await self._prepared(ask, newest)
        reading, transcript = Reading(answer), Transcript()
        error: BaseException | None = None
        cancelled = False
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(TIMEOUT_S + _GRACE_S):
                if ask.whole:
                    whole = await client.complete(**options)
                    transcript.add(whole)
                    reading.add_whole(whole)
                else:
                    cancelled = await _read(client, options, ask.cancel_after, reading, transcript)
        except Exception as caught:
            error = caught
        versions = self._versions.since(model, live, newest)
        # A stream goes on at the weights that it began on, or not at all.
        resumable = ask.resumable and not (len(versions) > 1 and _OTHER_WEIGHTS in str(error))

        def ends(reading: Reading) -> End:
            return reading.end(error, cancelled=cancelled, resumable=resumable)

        end = ends(reading)
        if reading.faults:
            answers = [await self._oracle.answer(options, version) for version in versions]
            reading, end = fitting(transcript, answers, ends) or (reading, end)
        self._count(ask, reading, end, error, begin)

    async def _prepared(self, ask: Ask, version: int) -> tuple[RequestOptions, Answer]:
        answer = await self._oracle.answer(ask.options, version)
        text = answer.choices[0].text
        if ask.stop_at is None or not text:
            return ask.options, answer
        begin = int(ask.stop_at * len(text))
        options: RequestOptions = {**ask.options, "stop": [text[begin : begin + _STOP_LENGTH]]}
        return options, await self._oracle.answer(options, version)

    def _count(self, ask: Ask, reading: Reading, end: End, error: BaseException | None, begin: float) -> None:
        self.outstanding -= 1
        self.ends[end] += 1
        self.tokens += reading.tokens
        self.retried += reading.attempts > 1
        self.faulty.update({fault for fault, _ in reading.faults})
        if reading.faults or end not in (End.FINISHED, End.CANCELLED):
            took_s = asyncio.get_running_loop().time() - begin
            self._log(
                f"request {ask.options['request_id']} ({ask.way}, {ask.options['model']}) {end} after "
                f"{took_s:.1f} s and {reading.tokens} tokens"
                + (f": {describe(error)}" if error is not None else "")
                + (f"; faults: {json.dumps(reading.faults[:5])}" if reading.faults else "")
            )


async def _read(
    client: Client, options: RequestOptions, most: int | None, reading: Reading, transcript: Transcript
) -> bool:
    """Reads a stream; True when it was given up after `most` tokens."""
    async with aclosing(client.generate(**options)) as stream:
        async for chunk in stream:
            transcript.add(chunk)
            reading.add(chunk)
            if most is not None and reading.tokens >= most and chunk.usage is None:
                return True
    return False
