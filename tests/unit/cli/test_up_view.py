"""`chiron up` goes on while nobody can say how its cluster stands: what serves does not need that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
import pytest

from chiron.cli import up
from chiron.cli.progress import Progress
from chiron.cluster import AdminError, LocalCluster
from chiron.v1 import cluster_pb2 as pb


class Unseen:
    """A cluster whose controllers say nothing at first, and again after one snapshot."""

    def __init__(self) -> None:
        self.admin = self
        self.asked = 0

    async def watch(self) -> AsyncGenerator[pb.ClusterSnapshot]:
        self.asked += 1
        if self.asked in (1, 2, 4):
            raise AdminError("no controller leads", grpc.StatusCode.UNAVAILABLE, "")
        yield pb.ClusterSnapshot(revision=self.asked)
        if self.asked == 3:
            raise AdminError("no controller leads", grpc.StatusCode.UNAVAILABLE, "")
        await asyncio.Event().wait()


class Lines:
    """What is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.whole = asyncio.Event()

    def say(self, text: str) -> None:
        self.lines.append(text)

    def update(self, snapshot: pb.ClusterSnapshot) -> None:
        self.lines.append(f"revision {snapshot.revision}")
        if snapshot.revision == 5:
            self.whole.set()


async def test_the_view_ends_and_comes_back_while_the_cluster_runs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(up, "_LOOK_AGAIN_S", 0.0)
    shown = Lines()
    watching = asyncio.create_task(up._watch(cast(LocalCluster, cast(Any, Unseen())), cast(Progress, shown)))
    async with asyncio.timeout(10.0):
        await shown.whole.wait()
    assert not watching.done()
    watching.cancel()
    lost = "the cluster cannot be seen at present, what serves goes on: no controller leads"
    found = "the cluster can be seen again"
    assert shown.lines == [lost, found, "revision 3", lost, found, "revision 5"]
