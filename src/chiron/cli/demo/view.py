"""What a run of the demo looks like: the cluster and its decisions as in `chiron top`, and its figures."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from chiron.cli.progress import LineProgress
from chiron.cli.top_view import decision_line, top_view
from chiron.v1 import cluster_pb2 as pb

_DECISIONS_KEPT = 50
_OTHER_LINES = 12
"""Lines of the screen that are not decisions'."""


class View(Protocol):
    """Shows a run."""

    @property
    def live(self) -> bool:
        """True when it redraws in place, so that frequent updates cost nobody's scroll-back."""

    def __enter__(self) -> View:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        """The cluster has changed."""

    def figures(self, text: str) -> None:
        """The run's own figures have."""

    def decision(self, decision: pb.Decision) -> None:
        """A decision was made, or something has come of it."""

    def say(self, text: str) -> None:
        """Prints a line that stays."""


class LiveView:
    """One screen that is redrawn in place."""

    live = True

    def __init__(self, console: Console) -> None:
        """Draws on the console, which must be a terminal."""
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._snapshot = pb.ClusterSnapshot()
        self._decisions: dict[str, pb.Decision] = {}
        self._figures = ""

    def __enter__(self) -> LiveView:
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

    def figures(self, text: str) -> None:
        """Redraws."""
        self._figures = text
        self._draw()

    def decision(self, decision: pb.Decision) -> None:
        """Redraws."""
        self._decisions[decision.decision_id] = decision
        while len(self._decisions) > _DECISIONS_KEPT:
            del self._decisions[next(iter(self._decisions))]
        self._draw()

    def say(self, text: str) -> None:
        """Prints above the screen."""
        self._live.console.print(text, highlight=False, markup=False)

    def _draw(self) -> None:
        room = max(1, self._live.console.height - _OTHER_LINES)
        shown = top_view(self._snapshot, list(self._decisions.values()), decisions_shown=room)
        self._live.update(Group(Text(self._figures), Text(""), shown), refresh=True)


class LineView:
    """A line for each change of an instance, each decision, and the figures now and then."""

    live = False

    def __init__(self, console: Console) -> None:
        """Prints to the console."""
        self._lines = LineProgress(console)
        self._told: set[str] = set()

    def __enter__(self) -> LineView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        """Prints what has changed since the last snapshot."""
        self._lines.update(snapshot)

    def figures(self, text: str) -> None:
        """Prints them."""
        self._lines.say(text)

    def decision(self, decision: pb.Decision) -> None:
        """Prints a decision that is new; what comes of it shows in its instances."""
        if decision.decision_id not in self._told:
            self._told.add(decision.decision_id)
            self._lines.say(decision_line(decision))

    def say(self, text: str) -> None:
        """Prints a line."""
        self._lines.say(text)


def open_view(console: Console, *, live: bool) -> View:
    """A screen when it is wanted and the console is a terminal, else lines."""
    return LiveView(console) if live and console.is_terminal else LineView(console)
