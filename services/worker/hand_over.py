"""Hand-over at a drain: this worker's running streams go on at other instances, as fast as these have room.

Which ones go is decided by `chiron.policy.hand_over.choose`. They end as batch work does that is handed back:
whoever reads them, router or SDK, has another instance go on from the delivered tokens, which counts as no
attempt and no resume. Without a grant, or when it has lapsed, the drain serves to the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from chiron.policy.hand_over import INTERVAL_S, Grant, HandOverRule, RunningStream, choose
from chiron.policy.snapshots import NEVER_S
from chiron.rpc.errors import ChironError, Reason, handed_back
from services.worker.live import LiveRequest, LiveRequests
from services.worker.state import DRAINING, WorkerState

_log = logging.getLogger(__name__)
_TEXT = "handed over: this worker drains, and other instances have room"


class Host(Protocol):
    """What of a worker is used here."""

    live: LiveRequests
    state: WorkerState

    async def end(self, requests: Sequence[LiveRequest]) -> None:
        """Ends requests whose `cut` says why."""
        ...


class HandOvers:
    """One worker's. All methods belong to its event loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._rule = HandOverRule()
        self._grant = Grant()
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None
        self.done = 0
        """Streams handed over since the start."""

    def granted(self, grant: Grant, valid_s: float) -> None:
        """From now on so much may go, for so many seconds; what was granted before holds no more."""
        self._grant, self._until = grant, time.monotonic() + valid_s
        if grant and self._may() and self._task is None:
            self._task = asyncio.create_task(self._run(), name="hand over")
            self._task.add_done_callback(self._ended)

    def close(self) -> None:
        """Hands nothing over any more."""
        if self._task is not None:
            self._task.cancel()

    def _may(self) -> bool:
        there = bool(self._grant) and time.monotonic() < self._until and len(self._host.live) > 0
        return there and self._host.state.value == DRAINING

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("streams are not handed over: the drain serves to the end", exc_info=error)

    async def _run(self) -> None:
        interactive = batch = tokens = 0.0
        while self._may():
            grant = self._grant
            most = grant.tokens_per_s * INTERVAL_S
            interactive += grant.interactive_per_s * INTERVAL_S
            batch += grant.batch_per_s * INTERVAL_S
            tokens += most
            chosen = choose(
                self._streams(),
                interactive=interactive,
                batch=batch,
                tokens=tokens,
                prefill_tokens_per_s=grant.prefill_tokens_per_s,
                rule=self._rule,
            )
            found = [self._host.live.get(str(key)) for key in chosen.request_ids]
            going = [one for one in found if one is not None]
            numbers: dict[str, float | str] = {"reason": chosen.reason, **chosen.numbers}
            _log.debug("hand over: %s", numbers)
            for one in going:
                one.cut = ChironError(
                    Reason.STREAM_INTERRUPTED, _TEXT, metadata=handed_back(one.pace.preemptions)
                )
                one.note("handed over", numbers)
                self.done += 1
                batch -= one.batch
                interactive -= not one.batch
            # What nobody could use is not kept: room is room now.
            interactive, batch, tokens = (
                min(interactive, 1.0),
                min(batch, 1.0),
                min(tokens - chosen.tokens, most),
            )
            if going:
                await self._host.end(going)
            await asyncio.sleep(INTERVAL_S)

    def _streams(self) -> list[RunningStream]:
        now = time.monotonic()
        return [_stream(one, now) for one in self._host.live if one.decoding and one.cut is None]


def _stream(one: LiveRequest, now: float) -> RunningStream:
    pace = one.pace
    return RunningStream(
        request_id=one.request_id,
        batch=one.batch,
        prompt_tokens=pace.computed_tokens - pace.tokens,
        delivered_tokens=pace.tokens,
        streaming_s=max(0.0, pace.since_door_ms - pace.ttft_ms) / 1e3,
        itl_slo_s=one.itl_slo_ms / 1e3 if one.itl_slo_ms else NEVER_S,
        resumable=one.resumable,
        moved_s=now - one.accepted_at if pace.resumed else NEVER_S,
    )
