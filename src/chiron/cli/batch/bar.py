"""How a batch's way reaches the terminal: a bar, or a line now and then; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from chiron.cli.batch.telling import line_of, outlook_of
from chiron.client import Batch, BatchState

_LINE_EVERY_S = 10.0


class Telling(Protocol):
    """Shows how far it is."""

    def __enter__(self) -> Telling:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""

    def sent(self, items: int) -> None:
        """So many items have been sent."""

    def update(self, batch: Batch) -> None:
        """The batch stands like this."""


class Bar:
    """A bar that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("sending", total=None, more="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def sent(self, items: int) -> None:
        """Redraws."""
        self._progress.update(self._task, completed=items)

    def update(self, batch: Batch) -> None:
        """Redraws."""
        progress = batch.progress
        more = outlook_of(batch, datetime.now(UTC))
        wrong = progress.failed + progress.expired + progress.cancelled
        self._progress.update(
            self._task,
            description=batch.state.value,
            completed=progress.ended,
            total=progress.items_received,
            more=f"{wrong} without an answer; {more}" if wrong else more,
        )


class Lines:
    """A line for each change of state, and one now and then between."""

    def __init__(self, say: Callable[[str], None], time_s: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._time_s = time_s
        self._said_s = time_s()
        self._state: BatchState | None = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def sent(self, items: int) -> None:
        """Prints a line when the last one is a while ago."""
        if self._due():
            self._say(f"{items} items sent")

    def update(self, batch: Batch) -> None:
        """Prints a line when the state has changed or the last one is a while ago."""
        if batch.state is not self._state or self._due():
            self._state, self._said_s = batch.state, self._time_s()
            self._say(line_of(batch, datetime.now(UTC)))

    def _due(self) -> bool:
        due = self._time_s() - self._said_s >= _LINE_EVERY_S
        if due:
            self._said_s = self._time_s()
        return due


def open_telling(*, live: bool) -> Telling:
    """A bar where it is wanted and stderr is a terminal, else lines."""
    console = Console(stderr=True)
    if live and console.is_terminal:
        return Bar(console)
    return Lines(say)


def say(text: str) -> None:
    """A line on stderr: stdout is for ids and results."""
    print(text, file=sys.stderr, flush=True)
