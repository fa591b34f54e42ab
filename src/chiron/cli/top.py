"""`chiron top`: the cluster at work, on a terminal as one screen that moves, else a line for each change."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import aclosing

from rich.console import Console
from rich.live import Live

from chiron.cli.progress import LineProgress
from chiron.cli.status import to_json
from chiron.cli.top_view import decision_line, top_view
from chiron.cluster import ClusterAdmin
from chiron.v1 import cluster_pb2 as pb

KEPT = 100
"""Decisions that are held for the screen."""
_SCREEN_LINES = 12
"""Lines of the screen that are not decisions', beside one for each model."""


async def show_top(controller: str, *, model: str, as_json: bool) -> int:
    """Shows the cluster until it is interrupted. Raises AdminError when no controller can be reached."""
    console = Console()
    if as_json:
        show: _Shown = _Json()
    elif console.is_terminal:
        show = _Screen(console, model)
    else:
        show = _Lines(console)
    async with ClusterAdmin(controller) as admin:
        with show:
            following = [
                asyncio.create_task(_follow_decisions(admin, show, model)),
                asyncio.create_task(_follow_cluster(admin, show, model)),
            ]
            try:
                # The first one that fails says why.
                await asyncio.gather(*following)
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)
    return 0


async def _follow_cluster(admin: ClusterAdmin, show: _Shown, model: str) -> None:
    async with aclosing(admin.watch()) as snapshots:
        async for snapshot in snapshots:
            show.cluster(of_model(snapshot, model))


async def _follow_decisions(admin: ClusterAdmin, show: _Shown, model: str) -> None:
    async with aclosing(admin.watch_decisions(newest=KEPT, model=model)) as decisions:
        async for decision in decisions:
            show.decision(decision)


def of_model(snapshot: pb.ClusterSnapshot, model: str) -> pb.ClusterSnapshot:
    """The snapshot with that model alone; with all of them where none is named."""
    if not model:
        return snapshot
    part = pb.ClusterSnapshot()
    part.CopyFrom(snapshot)
    del part.models[:]
    part.models.extend(one for one in snapshot.models if one.spec.name == model)
    return part


class _Shown:
    """What becomes of snapshots and decisions."""

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        raise NotImplementedError

    def decision(self, decision: pb.Decision) -> None:
        raise NotImplementedError


class _Screen(_Shown):
    """One screen, drawn again at each change."""

    def __init__(self, console: Console, model: str) -> None:
        self._console = console
        self._model = model
        self._live = Live(console=console, auto_refresh=False, screen=True)
        self._snapshot = pb.ClusterSnapshot()
        self._decisions: OrderedDict[str, pb.Decision] = OrderedDict()

    def __enter__(self) -> _Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        self._snapshot = snapshot
        self._draw()

    def decision(self, decision: pb.Decision) -> None:
        self._decisions[decision.decision_id] = decision
        while len(self._decisions) > KEPT:
            self._decisions.popitem(last=False)
        self._draw()

    def _draw(self) -> None:
        room = self._console.height - _SCREEN_LINES - 2 * len(self._snapshot.models)
        shown = min(KEPT, max(1, room))
        view = top_view(self._snapshot, list(self._decisions.values()), decisions_shown=shown)
        self._live.update(view, refresh=True)


class _Lines(_Shown):
    """A line for each change of the cluster, and for each decision and what comes of it."""

    def __init__(self, console: Console) -> None:
        self._progress = LineProgress(console)
        self._told: OrderedDict[str, str] = OrderedDict()

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        self._progress.update(snapshot)

    def decision(self, decision: pb.Decision) -> None:
        line = decision_line(decision)
        if self._told.get(decision.decision_id) == line:
            return
        self._told[decision.decision_id] = line
        while len(self._told) > KEPT:
            self._told.popitem(last=False)
        self._progress.say(line)


class _Json(_Shown):
    """A JSON object in each line: {"snapshot": …} or {"decision": …}."""

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        print(f'{{"snapshot": {to_json(snapshot)}}}', flush=True)

    def decision(self, decision: pb.Decision) -> None:
        print(f'{{"decision": {to_json(decision)}}}', flush=True)
