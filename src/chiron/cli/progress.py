"""How a local cluster's progress reaches the terminal: a live table, or a line for each change."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live

from chiron.cli.status import state_name, tables
from chiron.v1 import cluster_pb2 as pb


class Progress(Protocol):
    """Shows snapshots as they come."""

    @property
    def live(self) -> bool:
        """True when it redraws in place, so that frequent updates cost nobody's scroll-back."""

    def __enter__(self) -> Progress:
        """Takes the terminal."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""

    def update(self, snapshot: pb.ClusterSnapshot, figures: str = "") -> None:
        """Shows a snapshot, and figures above it."""

    def say(self, text: str) -> None:
        """Prints a line that stays."""


class LiveProgress:
    """A table that is redrawn in place."""

    live = True

    def __init__(self, console: Console) -> None:
        """Draws on the console, which must be a terminal."""
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, snapshot: pb.ClusterSnapshot, figures: str = "") -> None:
        """Redraws."""
        self._live.update(Group(figures, tables(snapshot)) if figures else tables(snapshot), refresh=True)

    def say(self, text: str) -> None:
        """Prints above the table."""
        self._live.console.print(text, highlight=False, markup=False)


class LineProgress:
    """A line for each instance that changes state and each model whose obstacle changes."""

    live = False

    def __init__(self, console: Console) -> None:
        """Prints to the console."""
        self._console = console
        self._instances: dict[str, str] = {}
        self._models: dict[str, str] = {}

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, snapshot: pb.ClusterSnapshot, figures: str = "") -> None:
        """Prints what has changed since the last snapshot, and the figures when there are any."""
        for instance in snapshot.instances:
            state = state_name(instance.state) + (f": {instance.reason}" if instance.reason else "")
            if self._instances.get(instance.instance_id) != state:
                self._instances[instance.instance_id] = state
                self.say(f"{instance.instance_id} on {instance.node_id} {state}")
        for gone in self._instances.keys() - {instance.instance_id for instance in snapshot.instances}:
            del self._instances[gone]
            self.say(f"{gone} is gone")
        for model in snapshot.models:
            if self._models.get(model.spec.name, "") != model.reason:
                self._models[model.spec.name] = model.reason
                if model.reason:
                    self.say(f"model {model.spec.name}: {model.reason}")
        if figures:
            self.say(figures)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def open_progress(console: Console, *, live: bool) -> Progress:
    """A live table when it is wanted and the console is a terminal, else lines."""
    return LiveProgress(console) if live and console.is_terminal else LineProgress(console)
