"""A batch queue that a test can take away for a while, and that counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from chiron.batch.contract import BatchQueue, UnavailableError

_WRITES = ("claim", "finish", "checkpoint", "put_back", "begin_session", "renew", "end_session", "sweep")
_CALLS = (*_WRITES, "units", "get", "now")


class FlakyQueue:
    """Passes everything on to a real queue while it is there."""

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue
        self.down = False
        """Every call fails, and changes nothing."""
        self.lose_answers = False
        """Every write happens, and its answer is lost."""
        self.calls: Counter[str] = Counter()
        """Those that were passed on."""
        self.failed: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.queue, name)
        if name not in _CALLS:
            return method

        async def call(*arguments: Any) -> Any:
            if self.down:
                self.failed[name] += 1
                raise UnavailableError("the test has taken the store away")
            self.calls[name] += 1
            answer = await method(*arguments)
            if self.lose_answers and name in _WRITES:
                self.failed[name] += 1
                raise UnavailableError("the test has lost the answer", uncertain=True)
            return answer

        return call
