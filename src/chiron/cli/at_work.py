"""How a cluster at work reaches the terminal: one screen that moves, or a line for each change."""

from __future__ import annotations

from collections import OrderedDict
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from chiron.cli.progress import LineProgress
from chiron.cli.top_view import decision_line, top_view
from chiron.v1 import cluster_pb2 as pb

KEPT = 100
"""Decisions that are held."""
_OTHER_LINES = 12
"""Lines of the screen that are not decisions', beside two for each model."""


class AtWork(Protocol):
    """Shows snapshots and decisions as they come."""

    def __enter__(self) -> AtWork:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        """The cluster has changed."""

    def decision(self, decision: pb.Decision) -> None:
        """A decision was made, or something has come of it."""


class View(AtWork, Protocol):
    """Shows a run of one's own beside the cluster."""

    @property
    def live(self) -> bool:
        """True when it redraws in place, so that frequent updates cost nobody's scroll-back."""

    def figures(self, text: str) -> None:
        """The run's own figures have changed."""

    def say(self, text: str) -> None:
        """Prints a line that stays."""


class Screen:
    """One screen, drawn again at each change."""

    live = True

    def __init__(self, console: Console, *, whole: bool) -> None:
        """Draws on the console, which must be a terminal.

        Args:
            console: the terminal.
            whole: take all of it and leave nothing behind; else what is said stays above the screen.
        """
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, screen=whole, transient=not whole, redirect_stdout=whole
        )
        self._snapshot = pb.ClusterSnapshot()
        self._decisions: OrderedDict[str, pb.Decision] = OrderedDict()
        self._figures = ""

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        """Redraws."""
        self._snapshot = snapshot
        self._draw()

    def decision(self, decision: pb.Decision) -> None:
        """Redraws."""
        self._decisions[decision.decision_id] = decision
        while len(self._decisions) > KEPT:
            self._decisions.popitem(last=False)
        self._draw()

    def figures(self, text: str) -> None:
        """Redraws, with the figures above the cluster."""
        self._figures = text
        self._draw()

    def say(self, text: str) -> None:
        """Prints above the screen."""
        self._live.console.print(text, highlight=False, markup=False)

    def _draw(self) -> None:
        room = self._console.height - _OTHER_LINES - 2 * len(self._snapshot.models)
        shown = min(KEPT, max(1, room))
        view: RenderableType = top_view(self._snapshot, list(self._decisions.values()), decisions_shown=shown)
        if self._figures:
            view = Group(Text(self._figures), Text(""), view)
        self._live.update(view, refresh=True)


class Lines:
    """A line for each change of the cluster, and for each decision and what comes of it."""

    live = False

    def __init__(self, console: Console) -> None:
        """Prints to the console."""
        self._progress = LineProgress(console)
        self._told: OrderedDict[str, str] = OrderedDict()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        """Prints what has changed since the last snapshot."""
        self._progress.update(snapshot)

    def decision(self, decision: pb.Decision) -> None:
        """Prints a decision that is new, or tells something new."""
        line = decision_line(decision)
        if self._told.get(decision.decision_id) == line:
            return
        self._told[decision.decision_id] = line
        while len(self._told) > KEPT:
            self._told.popitem(last=False)
        self._progress.say(line)

    def figures(self, text: str) -> None:
        """Prints them."""
        self._progress.say(text)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._progress.say(text)
