"""The journal: what a crash at any byte leaves, what damage is told, what a full disk stops."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chiron.config import ConfigError
from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2
from services.local_agent import journal_file
from services.local_agent.journal import Journal, JournalError
from services.local_agent.journal_file import JournalFile
from services.local_agent.memory import (
    Entry,
    Forgotten,
    Memory,
    Tally,
    TermSeen,
    Wanted,
    WorkerEnded,
    WorkerNoted,
    decode,
    encode,
)
from tests.support.wait import eventually

NAMES = st.sampled_from(["a", "b"])
LEVELS = st.builds(
    lambda name, generation: control_pb2.DesiredInstance(
        instance_id=name,
        generation=generation,
        spec=cluster_pb2.ModelSpec(name='m\n"é', engine="sim"),
        gpu_indexes=[0, 3],
        drain_timeout_s=2.5,
    ),
    NAMES,
    st.integers(0, 2**63),
)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(TermSeen, st.integers(1, 2**40)),
    st.builds(Wanted, LEVELS, st.booleans()),
    st.builds(
        WorkerNoted,
        NAMES,
        st.integers(1, 9),
        st.integers(0, 9),
        st.just((0, 3)),
        st.just("0,3"),
        st.just("boot"),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from(["", "h:1"]),
    ),
    st.builds(WorkerEnded, NAMES),
    st.builds(Tally, NAMES, st.integers(0, 9), last_failure=st.text(), gave_up=st.booleans()),
    st.builds(Forgotten, NAMES),
)
WRITES = st.lists(st.lists(ENTRIES, min_size=1, max_size=3), min_size=1, max_size=6)
FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def memory_of(writes: list[list[Entry]]) -> Memory:
    memory = Memory()
    for entry in (entry for write in writes for entry in write):
        memory.take(entry)
    return memory


def fresh(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    return path


def written(path: Path, writes: list[list[Entry]]) -> bytes:
    journal = JournalFile(path)
    for write in writes:
        journal.commit(write)
    return path.read_bytes()


@given(ENTRIES)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert decode(encode(entry)) == entry


@given(WRITES)
def test_the_fewest_entries_lead_to_the_same_state(writes: list[list[Entry]]) -> None:
    memory = memory_of(writes)
    assert memory_of([memory.entries()]) == memory


@FOLDER
@given(writes=WRITES, cuts=st.lists(st.floats(0, 1), min_size=5, max_size=20))
def test_a_crash_at_any_byte_leaves_what_was_written_before(
    tmp_path: Path, writes: list[list[Entry]], cuts: list[float]
) -> None:
    path = fresh(tmp_path)
    data = written(path, writes)
    begun = len(b"\n".join(data.split(b"\n")[:2])) + 1
    for cut in (round(begun + share * (len(data) - begun)) for share in cuts):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n") - 1
        assert JournalFile(path).memory == memory_of(writes[:whole])


@FOLDER
@given(writes=WRITES, where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_damage_is_told_with_its_line_and_never_passed_over(
    tmp_path: Path, writes: list[list[Entry]], where: float, flip: int
) -> None:
    path = fresh(tmp_path)
    data = bytearray(written(path, writes))
    place = int(where * len(data))
    data[place] ^= flip
    path.write_bytes(data)
    if place == len(data) - 1:
        assert JournalFile(path).memory == memory_of(writes[:-1])
        return
    line = bytes(data[:place]).count(b"\n") + 1
    with pytest.raises(ConfigError, match=rf"state_dir: {path}, line {line}: .*restore the file"):
        JournalFile(path)


def test_a_write_after_one_that_was_cut_off_makes_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = written(path, [[TermSeen(1)], [TermSeen(2)]])
    path.write_bytes(data[:-3])
    journal = JournalFile(path)
    assert journal.memory.term == 1
    journal.commit([Forgotten("a")])
    assert JournalFile(path).memory.term == 1


def test_a_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(journal_file._wrap([{"journal": 2}]))
    with pytest.raises(ConfigError, match="line 1: this version reads format 1"):
        JournalFile(path)


def test_an_entry_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(journal_file._wrap([{"journal": 1}]) + journal_file._wrap([{"colour": {}}]))
    with pytest.raises(ConfigError, match="line 2: not an entry of this version"):
        JournalFile(path)


def test_the_file_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "_REWRITE_BYTES", 1000)
    journal = JournalFile(tmp_path / "journal")
    for number in range(1, 500):
        journal.commit([TermSeen(number), Tally("a", number)])
        assert journal.path.stat().st_size < 1200
    memory = JournalFile(tmp_path / "journal").memory
    assert (memory.term, memory.instances["a"].tally) == (499, Tally("a", 499))


def test_a_crash_amid_a_rewrite_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalFile(tmp_path / "journal")
    journal.commit([TermSeen(1)])

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            journal._rewrite()
    assert JournalFile(tmp_path / "journal").memory.term == 1


class Disk:
    """Lets so many bytes through, then is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self.synced = 0
        self._write_through = os.write
        monkeypatch.setattr(journal_file.os, "write", self._write)

    def _write(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # The last write before the end is cut short, as a file system does it.
        count = self._write_through(descriptor, data[: self.room])
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 1, 30, 100])
def test_what_a_full_disk_refused_is_written_with_the_next_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    disk = Disk(monkeypatch)
    path = tmp_path / "journal"
    journal = JournalFile(path)
    journal.commit([TermSeen(1)])
    disk.room = room
    with pytest.raises(OSError, match="No space left"):
        journal.commit([Tally("a", 2, last_failure="a reason longer than what is left of the disk")])
    refused = journal.memory.instances["a"].tally
    disk.room = 0
    on_disk = JournalFile(path).memory
    assert on_disk.term == 1, "what was written stays readable"
    with pytest.raises(OSError, match="No space left"):
        journal.commit([Tally("b", 1)])
    assert {entry.name for entry in tmp_path.iterdir()} == {"journal"}
    disk.room = 10**9
    journal.commit([TermSeen(5)])
    memory = JournalFile(path).memory
    assert (memory.term, memory.instances["a"].tally) == (5, refused)
    assert memory.instances["b"].tally == Tally("b", 1)


def test_a_journal_too_long_for_a_full_disk_to_rewrite_is_still_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "_REWRITE_BYTES", 0)
    monkeypatch.setattr(journal_file, "_REWRITE_GROWTH", 1)
    path = tmp_path / "journal"
    journal = JournalFile(path)
    journal.commit([Tally("a", 1, last_failure="x" * 500)])
    journal.commit([TermSeen(1)])

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        journal.commit([TermSeen(2)])
    assert JournalFile(path).memory.term == 2


async def test_a_write_returns_when_it_is_on_disk_and_those_together_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JournalFile(tmp_path / "journal")
    commits: list[list[Entry]] = []
    commit = file.commit

    def counted(entries: list[Entry]) -> None:
        commits.append(list(entries))
        commit(entries)

    monkeypatch.setattr(file, "commit", counted)
    journal = Journal(file, lambda: None)
    await asyncio.gather(*(journal.write(TermSeen(number)) for number in range(1, 50)))
    assert JournalFile(tmp_path / "journal").memory.term == 49
    assert len(commits) <= 2
    assert [entry for batch in commits for entry in batch] == [TermSeen(number) for number in range(1, 50)]
    journal.note(TermSeen(99))
    await journal.close()
    assert JournalFile(tmp_path / "journal").memory.term == 99


async def test_a_refused_write_is_told_to_who_waits_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    disk.room = 0
    seen: list[str] = []
    journal = Journal(JournalFile(tmp_path / "journal"), lambda: seen.append(journal.problem), retry_s=0.01)
    with pytest.raises(JournalError, match=r"journal cannot be written: No space left on device"):
        await journal.write(TermSeen(3))
    journal.note(Tally("a", 1))
    assert "No space left" in journal.problem
    disk.room = 10**9
    await eventually(lambda: not journal.problem)
    assert len(seen) == 2
    memory = JournalFile(tmp_path / "journal").memory
    assert (memory.term, memory.instances["a"].tally) == (3, Tally("a", 1))
    await journal.close()
