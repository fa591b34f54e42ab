"""What one request has produced and nobody has read yet."""

from __future__ import annotations

import asyncio

from services.worker.engines.base import ChoiceDelta, EngineDeadError, EngineOutput
from services.worker.engines.sim.choice import Choice


class Stream:
    """One request: its choices, and its unread output merged into one and so bounded by max_tokens."""

    def __init__(
        self,
        request_id: str,
        choices: dict[int, Choice],
        prompt_tokens: int,
        arrival: float,
        blocks: tuple[int, ...],
    ) -> None:
        self.request_id = request_id
        self.choices = choices
        """Engine model's handle → the choice that runs under it."""
        self.prompt_tokens = prompt_tokens
        self.arrival = arrival
        self.blocks = blocks
        """Names of its full KV blocks."""
        self.queue_s: float | None = None
        self.cached_prompt_tokens = 0
        self.preemptions = 0
        self._pending: dict[int, ChoiceDelta] = {}
        self._time = arrival
        self._ready = asyncio.Event()
        self._death = ""

    @property
    def finished(self) -> bool:
        """True once every choice has ended."""
        return all(choice.finished for choice in self.choices.values())

    @property
    def drained(self) -> bool:
        """True while nothing waits to be read."""
        return not self._pending

    def put(self, delta: ChoiceDelta, time: float) -> None:
        """Adds what one choice gained at `time`."""
        waiting = self._pending.get(delta.choice)
        if waiting is None:
            self._pending[delta.choice] = delta
        else:
            waiting.token_ids = [*waiting.token_ids, *delta.token_ids]
            waiting.text_ends = [*waiting.text_ends, *delta.text_ends]
            waiting.logprobs = [*waiting.logprobs, *delta.logprobs]
            waiting.text += delta.text
            waiting.finish_reason, waiting.stop_match = delta.finish_reason, delta.stop_match
        self._time = time
        self._ready.set()

    def kill(self, reason: str) -> None:
        """Makes every later `take` raise EngineDeadError."""
        self._death = reason
        self._ready.set()

    async def take(self) -> EngineOutput:
        """All that has come since the last call; waits for something. Raises EngineDeadError."""
        await self._ready.wait()
        self._ready.clear()
        if self._death:
            raise EngineDeadError(self._death)
        deltas, self._pending = list(self._pending.values()), {}
        return EngineOutput(
            deltas, self._time, self.cached_prompt_tokens, self.preemptions, self.queue_s or 0.0
        )
