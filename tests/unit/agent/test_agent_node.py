"""Terms, revisions and GPU health of a node, without any worker."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from chiron.internal.v1 import control_pb2
from chiron.v1 import types_pb2
from services.local_agent import procfs
from services.local_agent.config import AgentConfig
from services.local_agent.gpus import DeclaredGpus
from services.local_agent.journal_file import JournalFile
from services.local_agent.memory import Wanted, WorkerNoted
from services.local_agent.node import Node
from services.local_agent.process import WorkerProcess
from services.local_agent.records import StateDir
from services.local_agent.terms import StaleTerm
from tests.support.wait import eventually


class Changes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
async def node(tmp_path: Path, changes: Changes) -> AsyncIterator[Node]:
    async with a_node(tmp_path, changes) as node:
        yield node


@contextlib.asynccontextmanager
async def a_node(tmp_path: Path, changes: Changes, *, memory_errors: int = 0) -> AsyncIterator[Node]:
    inventory = DeclaredGpus(2)
    first, *others = inventory.read()
    node = Node(
        AgentConfig(state_dir=tmp_path),
        node_id="n",
        state=StateDir(tmp_path),
        socket_dir=tmp_path,
        inventory=inventory,
        gpus=[replace(first, uncorrected_errors=memory_errors), *others],
        on_change=changes,
    )
    try:
        yield node
    finally:
        await node.close()


def level(term: int, revision: int, *stopped: str) -> control_pb2.DesiredNode:
    return control_pb2.DesiredNode(
        term=term,
        revision=revision,
        instances=[
            control_pb2.DesiredInstance(instance_id=name, state=control_pb2.DESIRED_STATE_STOPPED)
            for name in stopped
        ],
    )


def listed(node: Node) -> dict[str, bool]:
    return {report.status.instance_id: report.known for report in node.reports()}


async def test_a_higher_term_is_on_disk_before_it_counts(node: Node, tmp_path: Path) -> None:
    await node.accept_term(5)
    assert (node.highest_term, JournalFile(tmp_path / "journal").memory.term) == (5, 5)
    with pytest.raises(StaleTerm, match="term 4 is over: this node has seen term 5"):
        await node.apply(level(4, 9, "a"))
    assert listed(node) == {}


async def test_an_older_revision_of_the_same_term_is_passed_over(node: Node) -> None:
    await node.apply(level(1, 3, "a"))
    await node.apply(level(1, 2, "b"))
    assert listed(node) == {"a": True}
    assert node.applied_revision == 3


async def test_a_new_term_starts_its_revisions_afresh_and_knows_nothing_yet(node: Node) -> None:
    await node.apply(level(1, 3, "a"))
    await node.accept_term(2)
    assert node.applied_revision == 0
    assert listed(node) == {"a": False}
    await node.apply(level(2, 1, "a"))
    assert node.applied_revision == 1
    assert listed(node) == {"a": True}


async def test_a_bad_id_is_reported_and_never_becomes_a_folder(node: Node, tmp_path: Path) -> None:
    await node.apply(level(1, 1, "../../evil"))
    (report,) = node.reports()
    assert report.status.state == types_pb2.INSTANCE_STATE_FAILED
    assert report.status.reason.startswith("instance_id: '../../evil' is not")
    assert list((tmp_path / "instances").iterdir()) == []


async def survivor(tmp_path: Path) -> WorkerProcess:
    """A worker process that an earlier agent has on record."""
    process = await WorkerProcess.spawn(["sleep", "600"], os.environ, tmp_path / "log")
    worker = WorkerNoted("m-1", 1, 1, (0,), "0", procfs.boot_id(), process.pid, process.start_time)
    level = control_pb2.DesiredInstance(
        instance_id="m-1", state=control_pb2.DESIRED_STATE_STOPPED, spec_version=1, gpu_indexes=[0]
    )
    JournalFile(tmp_path / "journal").commit([Wanted(level), worker])
    return process


async def test_a_worker_that_is_gone_is_reported_even_if_the_journal_cannot_be_written(
    tmp_path: Path, changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await survivor(tmp_path)

    def refuse(self: JournalFile, entries: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JournalFile, "commit", refuse)
    async with a_node(tmp_path, changes) as node:
        await node.adopt()

        def states() -> list[int]:
            return [report.status.state for report in node.reports()]

        await eventually(lambda: states() == [types_pb2.INSTANCE_STATE_STOPPED])


async def test_a_sick_gpu_is_reported_at_once_and_an_unchanged_one_is_not(
    node: Node, changes: Changes
) -> None:
    good, bad = DeclaredGpus(2).read()
    node.set_gpus([good, bad])
    assert changes.count == 0
    node.set_gpus([good, replace(bad, healthy=False, reason="lost")])
    assert changes.count == 1
    assert [(gpu.healthy, gpu.reason) for gpu in node.gpus()] == [(True, ""), (False, "lost")]


async def test_a_gpu_that_is_found_at_fault_is_cordoned_from_the_start(
    tmp_path: Path, changes: Changes
) -> None:
    async with a_node(tmp_path, changes, memory_errors=3) as node:
        first, second = node.gpus()
        assert (first.cordoned, first.reason) == (
            True,
            "cordoned: 3 memory errors that ECC could not correct",
        )
        assert second.healthy
