"""What the soak test reads from the agents' journals."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiron.internal.v1 import control_pb2
from services.local_agent.journal_file import JournalFile
from services.local_agent.memory import Entry, TermSeen, Wanted
from tests.soak.journals import Journals


def wanted(generation: int, instance: str = "i") -> Wanted:
    return Wanted(control_pb2.DesiredInstance(instance_id=instance, generation=generation))


class Node:
    """An agent's journal, and who looks at it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "node-0" / "journal"
        self.file.parent.mkdir()
        self.journals = Journals([self.file], lambda text: None)

    def write(self, *entries: Entry) -> None:
        JournalFile(self.file).commit(entries)

    def write_anew(self, *entries: Entry) -> None:
        self.file.unlink()
        self.write(*entries)

    def breaches(self) -> list[str]:
        self.journals.look()
        return list(self.journals.breaches)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_journal_that_only_rises_is_right_however_often_it_is_read(node: Node) -> None:
    assert node.breaches() == []
    for step in range(1, 4):
        node.write(TermSeen(step), wanted(step), wanted(1, "other"))
        assert node.breaches() == []
    node.write_anew(TermSeen(3), wanted(3))
    assert node.breaches() == []


def test_a_generation_that_goes_back_is_found_once(node: Node) -> None:
    node.write(wanted(3))
    node.write(wanted(2))
    node.write(wanted(4))
    told = ["node-0: generation of i went back from 3 to 2"]
    assert node.breaches() == told
    assert node.breaches() == told


def test_a_term_that_goes_back_is_found_also_between_two_looks(node: Node) -> None:
    node.write(TermSeen(7))
    assert node.breaches() == []
    node.write_anew(TermSeen(6))
    assert node.breaches() == ["node-0: term went back from 7 to 6"]


def test_a_line_that_is_being_written_is_left_for_the_next_look(node: Node) -> None:
    node.write(TermSeen(7))
    with node.file.open("a") as file:
        file.write('00000000 [{"term":{"te')
    assert node.breaches() == []
