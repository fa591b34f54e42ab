"""What one reader was given, kept so that it can be judged against more than one right answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chiron.client import Chunk, Completion
from tests.soak.ends import End, Reading
from tests.soak.expected import Answer


class Transcript:
    """The chunks of a stream, or a whole answer, in the order of their coming."""

    def __init__(self) -> None:
        self._parts: list[Chunk | Completion] = []

    def add(self, part: Chunk | Completion) -> None:
        """Takes in what has come."""
        self._parts.append(part)

    def read(self, answer: Answer) -> Reading:
        """All of it, as somebody would read it who expects this answer."""
        reading = Reading(answer)
        for part in self._parts:
            if isinstance(part, Chunk):
                reading.add(part)
            else:
                reading.add_whole(part)
        return reading


def fitting(
    transcript: Transcript, answers: Iterable[Answer], ends: Callable[[Reading], End]
) -> tuple[Reading, End] | None:
    """The reading against the first answer that has no fault, and how it ends; None: there is none.

    What mixes two answers fits neither.
    """
    for answer in answers:
        reading = transcript.read(answer)
        end = ends(reading)
        if not reading.faults:
            return reading, end
    return None
