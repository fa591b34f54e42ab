"""Runs trials side by side: in one process per core, or in this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from chiron.sim.processes import worker_pool

T = TypeVar("T")


class Crew:
    """A pool that starts with the first work that is worth it, and ends with the block."""

    def __init__(self, jobs: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
        """Has at most so many processes; 0: one per core. `progress` is told (done, known so far)."""
        self.width = jobs or len(os.sched_getaffinity(0))
        """How many work at once."""
        self.done = 0
        """Trials so far."""
        self._progress = progress
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def all_of(self, trials: Sequence[Callable[[], T]]) -> list[T]:
        """What each trial found, in their order. Raises what a trial raises."""
        total = self.done + len(trials)
        if self.width <= 1:
            found = []
            for trial in trials:
                found.append(trial())
                self._tell(total)
            return found
        if self._pool is None:
            self._pool = self._stack.enter_context(worker_pool(self.width))
        results: dict[int, T] = {}
        futures = {self._pool.submit(trial): number for number, trial in enumerate(trials)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            self._tell(total)
        return [results[number] for number in range(len(trials))]

    def _tell(self, total: int) -> None:
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, total)
