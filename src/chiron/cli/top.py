"""`chiron top`: the cluster at work, on a terminal as one screen that moves, else a line for each change."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from rich.console import Console

from chiron.cli.at_work import KEPT, AtWork, Lines, Screen
from chiron.cli.runner import CliError
from chiron.cli.status import to_json
from chiron.cluster import ClusterAdmin
from chiron.v1 import cluster_pb2 as pb


async def show_top(controller: str, *, model: str, as_json: bool) -> int:
    """Shows the cluster until it is interrupted.

    Raises AdminError when no controller can be reached, and CliError for a model that is not there.
    """
    console = Console()
    if as_json:
        show: AtWork = _Json()
    elif console.is_terminal:
        show = Screen(console, whole=True)
    else:
        show = Lines(console)
    async with ClusterAdmin(controller) as admin:
        with show:
            following = [
                asyncio.create_task(_follow_decisions(admin, show, model)),
                asyncio.create_task(_follow_cluster(admin, show, model, whole=isinstance(show, Screen))),
            ]
            try:
                # The first one that fails says why.
                await asyncio.gather(*following)
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)
    return 0


async def _follow_cluster(admin: ClusterAdmin, show: AtWork, model: str, *, whole: bool) -> None:
    known = not model
    async with aclosing(admin.watch()) as snapshots:
        async for snapshot in snapshots:
            part = of_model(snapshot, model, whole=whole)
            # One that is deleted later is no slip.
            if not (known or part.models):
                raise CliError(f"there is no model {model!r}")
            known = True
            show.cluster(part)


async def _follow_decisions(admin: ClusterAdmin, show: AtWork, model: str) -> None:
    async with aclosing(admin.watch_decisions(newest=KEPT, model=model)) as decisions:
        async for decision in decisions:
            show.decision(decision)


def of_model(snapshot: pb.ClusterSnapshot, model: str, *, whole: bool = False) -> pb.ClusterSnapshot:
    """The snapshot with that model alone; with all of them where none is named.

    whole: it keeps the other models' instances, by which GPUs are counted.
    """
    if not model:
        return snapshot
    part = pb.ClusterSnapshot()
    part.CopyFrom(snapshot)
    del part.models[:]
    part.models.extend(one for one in snapshot.models if one.spec.name == model)
    if not whole:
        del part.instances[:]
        part.instances.extend(one for one in snapshot.instances if one.model == model)
    return part


class _Json:
    """A JSON object in each line: {"snapshot": …} or {"decision": …}."""

    def __enter__(self) -> _Json:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def cluster(self, snapshot: pb.ClusterSnapshot) -> None:
        print(f'{{"snapshot": {to_json(snapshot)}}}', flush=True)

    def decision(self, decision: pb.Decision) -> None:
        print(f'{{"decision": {to_json(decision)}}}', flush=True)
