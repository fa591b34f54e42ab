"""Batch work beside interactive work in one engine: it gives way, resumes, and is handed back.

- An interactive request that comes finds the slots and KV blocks that it needs: batch requests are preempted
  for it at once, by `chiron.policy.preemption.PreemptionRule`.
- They wait in the engine with their tokens and resume as soon as there is room.
- What has waited too long goes back to its router, which has another instance go on with it. What no other
  instance can go on with stays.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from chiron.policy.preemption import PreemptionRule, Victims
from chiron.rpc.errors import ChironError, Reason, handed_back
from chiron.v1 import types_pb2
from services.worker.config import PreemptionSettings
from services.worker.engines.base import Engine, EngineDeadError
from services.worker.live import LiveRequest, LiveRequests, Preempted
from services.worker.room import candidates, missing, plenty

_log = logging.getLogger(__name__)
_ROUNDS = 4
"""Choices for one request: a victim may have lost its slot before the engine could take it."""


class Host(Protocol):
    """What of a worker is used here."""

    engine: Engine | None
    live: LiveRequests
    role: types_pb2.Role.ValueType

    async def put_back(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Has the engine preempt requests; returns those that ran."""
        ...

    async def end(self, requests: Sequence[LiveRequest]) -> None:
        """Ends requests whose `cut` says why."""
        ...


class MixedWork:
    """One worker's. All methods belong to its event loop."""

    def __init__(self, settings: PreemptionSettings, host: Host) -> None:
        self._settings = settings
        self._rule = PreemptionRule(
            settings.max_preemptions, settings.min_progress_tokens, settings.deadline_resolution_s
        )
        self._host = host
        self._live = host.live
        self._pending_blocks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.preempted = 0
        """Batch requests that gave way since the start."""
        self.lost_tokens = 0
        """Tokens in their KV cache, to be computed again."""
        self.handed_back = 0
        """Batch requests handed back since the start."""

    def close(self) -> None:
        """Hands nothing back any more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._ending:
            task.cancel()

    # An interactive request comes.

    @property
    def enabled(self) -> bool:
        """Whether batch work gives way at all."""
        return self._settings.enabled

    def yielding(self, running: int) -> int:
        """Of so many slots of batch requests that run, those that would give way; 0 where nobody asks."""
        if not (running and self.enabled and self._host.role != types_pb2.ROLE_BATCH):
            return 0
        spared = sum(
            one.slots
            for one in self._live
            if one.batch and one.decoding and one.pace.preemptions >= self._settings.max_preemptions
        )
        return max(0, running - spared)

    def may_lack(self, request: LiveRequest, engine: Engine) -> bool:
        """Whether batch work may have to give way to a request that has just been accepted. O(1)."""
        if request.batch or not self.enabled:
            return False
        return not plenty(self._live, engine.stats(), engine.info, self._pending_blocks)

    async def make_room(self, request: LiveRequest, engine: Engine) -> None:
        """Preempts what must give way to an interactive request that the engine has been given already."""
        for _ in range(_ROUNDS):
            if request.has_output or request.done or request.cut is not None:
                return
            victims = self._choose(request, engine)
            if not victims or await self._take(victims, request, engine):
                return

    def _choose(self, request: LiveRequest, engine: Engine) -> list[LiveRequest]:
        info = engine.info
        need = missing(self._live, request, engine.stats(), info, self._pending_blocks)
        if not need:
            return []
        choice = self._rule.choose(candidates(self._live, info), need.slots, need.kv_blocks)
        _log.debug("%s: %s %s", request.request_id, choice.reason, choice.numbers)
        numbers: dict[str, float | str] = {"reason": choice.reason, **choice.numbers}
        if not isinstance(choice, Victims):
            request.note("no batch work gives way", numbers)
            return []
        request.note("batch work gives way", numbers)
        found = [self._live.get(str(key)) for key in choice.request_ids]
        return [one for one in found if one is not None]

    async def _take(self, victims: list[LiveRequest], request: LiveRequest, engine: Engine) -> bool:
        """Preempts them; False when one of them did not run."""
        size = engine.info.kv_block_size
        computed = {one.request_id: one.pace.computed_tokens for one in victims}
        blocks = sum(-(-tokens // size) for tokens in computed.values())
        self._pending_blocks += blocks
        # At once, so that whoever comes meanwhile counts on other slots.
        self.mark(victims, request)
        try:
            ran = set(await self._host.put_back(list(computed)))
        except (EngineDeadError, ChironError):
            # The engine is gone: it ends every stream, this one too.
            return True
        finally:
            self._pending_blocks -= blocks
        for one in victims:
            if one.request_id in ran:
                self.preempted += 1
                self.lost_tokens += computed[one.request_id]
                numbers: dict[str, float | str] = {
                    "for": request.request_id,
                    "tokens_lost": computed[one.request_id],
                    "preemptions": one.preempted.times if one.preempted else one.pace.preemptions,
                }
                one.note("preempted for an interactive request", numbers)
        return len(ran) == len(victims)

    # What waits.

    def mark(self, requests: Iterable[LiveRequest], by: LiveRequest | None = None) -> None:
        """Requests go back to the engine's queue, for another one or on command, and count as waiting."""
        now = time.monotonic()
        for one in requests:
            if not one.done:
                one.preempted = Preempted(now, by, one.pace.preemptions + 1)
        self._look_at(now + self._settings.hand_back_s)

    def accepted(self, request: LiveRequest) -> None:
        """A request has come; what does not begin soon is handed back."""
        if request.batch and self._host.role != types_pb2.ROLE_BATCH:
            self._look_at(request.accepted_at + self._settings.hand_back_s)

    def hand_back(self, waited_s: float) -> None:
        """Hands back what has waited for `waited_s` seconds, and looks again when the next one will have."""
        engine, now = self._host.engine, time.monotonic()
        if engine is None:
            return
        stats = engine.stats()
        waiting = self._live.waiting(
            engine_running=stats.running, engine_waiting=stats.waiting, batch_size=stats.batch_size
        )
        waits = {one.request_id for one in waiting}
        over: list[LiveRequest] = []
        due = math.inf
        for one in self._live:
            since = self._since(one)
            if since is None:
                continue
            if one.request_id not in waits:
                # It is about to run: its output will tell.
                due = min(due, now + self._settings.hand_back_s)
            elif since + waited_s <= now:
                over.append(one)
            else:
                due = min(due, since + waited_s)
        if over:
            self._give_up(over, now)
        if due < math.inf:
            self._look_at(due)

    def _since(self, request: LiveRequest) -> float | None:
        """Since when it waits, if it does, to be handed back one day; None: it is not to be.

        On a batch instance a request that has not begun waits behind others of its kind, and stays.
        """
        if not request.batch or request.done or request.cut is not None:
            return None
        if request.has_output:
            able = request.preempted is not None and request.resumable
            return request.preempted.at if able and request.preempted is not None else None
        if request.preempted is not None:
            return request.preempted.at
        return None if self._host.role == types_pb2.ROLE_BATCH else request.accepted_at

    def _give_up(self, requests: list[LiveRequest], now: float) -> None:
        for one in requests:
            waited_s = now - (self._since(one) or now)
            preemptions = max(one.pace.preemptions, one.preempted.times if one.preempted else 0)
            reason = Reason.STREAM_INTERRUPTED if one.has_output else Reason.RETRY_ELSEWHERE
            text = f"handed back after {waited_s:.1f} s without a slot: interactive work has the instance"
            one.cut = ChironError(reason, text, metadata=handed_back(preemptions))
            numbers: dict[str, float | str] = {"waited_s": waited_s, "preemptions": preemptions}
            one.note("handed back", numbers)
            self.handed_back += 1
        task = asyncio.create_task(self._host.end(requests), name="hand back")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _look_at(self, when: float) -> None:
        if not self.enabled:
            return
        loop = asyncio.get_running_loop()
        delay = max(0.0, when - time.monotonic())
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self.hand_back(self._settings.hand_back_s)
