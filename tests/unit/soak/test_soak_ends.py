"""What the soak test's judge lets pass, and what it does not."""

from __future__ import annotations

import dataclasses
from itertools import pairwise, starmap
from typing import Any

import pytest

from chiron.client import (
    Aborted,
    CannotResume,
    ChironError,
    Choice,
    Chunk,
    Completion,
    ConnectionLost,
    DeadlineExceeded,
    FinishReason,
    InternalError,
    NoInstance,
    ProtocolError,
    QueueFull,
    StreamInterrupted,
    Usage,
)
from tests.soak.ends import End, Fault, Reading
from tests.soak.expected import Answer, Written

WRITTEN = Written((7, 8, 9, 5), "ab cd", (1, 2, 4, 5), "length", "")
ANSWER = Answer((WRITTEN,), prompt_tokens=3)
USAGE = Usage(prompt_tokens=3, cached_prompt_tokens=0, completion_tokens=4)


def chunk(first: int, past: int, **changes: Any) -> Chunk:
    """The undisturbed answer's tokens from `first` up to `past`."""
    begin = WRITTEN.text_ends[first - 1] if first else 0
    whole = Chunk(
        text=WRITTEN.text[begin : WRITTEN.text_ends[past - 1]] if past else "",
        token_ids=WRITTEN.token_ids[first:past],
        choice=0,
        first_token_index=first,
        text_ends=WRITTEN.text_ends[first:past],
        logprobs=(),
        finish_reason=FinishReason.LENGTH if past == 4 else None,
        stop_match="",
        usage=USAGE if past == 4 else None,
        timing=None,
        request_id="r",
        attempts=1,
    )
    return dataclasses.replace(whole, **changes)


def read(*chunks: Chunk) -> Reading:
    reading = Reading(ANSWER)
    for each in chunks:
        reading.add(each)
    return reading


@pytest.mark.parametrize("seams", [(0, 4), (0, 1, 4), (0, 1, 2, 3, 4)])
def test_the_undisturbed_answer_passes_in_whatever_portions(seams: tuple[int, ...]) -> None:
    reading = read(*starmap(chunk, pairwise(seams)))
    assert reading.end(None) is End.FINISHED
    assert reading.faults == []


@pytest.mark.parametrize(
    ("chunks", "fault"),
    [
        ([chunk(0, 2), chunk(1, 4)], Fault.DUPLICATED),
        ([chunk(0, 2), chunk(2, 4), chunk(2, 4)], Fault.DUPLICATED),
        ([chunk(0, 4), chunk(4, 4, usage=USAGE)], Fault.DUPLICATED),
        ([chunk(0, 2), chunk(3, 4)], Fault.TOKEN),
        ([chunk(0, 4, token_ids=(7, 8, 9, 6))], Fault.TOKEN),
        ([chunk(0, 4, text="ab cD")], Fault.TOKEN),
        ([chunk(0, 2), chunk(2, 4, text="cd")], Fault.TOKEN),
        ([chunk(0, 4, text_ends=(1, 2, 4, 6))], Fault.TOKEN),
        ([chunk(0, 4, finish_reason=FinishReason.STOP)], Fault.TOKEN),
        ([chunk(0, 4, stop_match="d")], Fault.TOKEN),
        ([chunk(0, 2), chunk(2, 3, finish_reason=FinishReason.LENGTH)], Fault.TOKEN),
        ([chunk(0, 4, usage=Usage(3, 0, 2))], Fault.TOKEN),
        ([chunk(0, 4, usage=Usage(5, 0, 4))], Fault.TOKEN),
        ([chunk(0, 3)], Fault.TOKEN),
        ([], Fault.TOKEN),
    ],
)
def test_every_flaw_of_a_stream_is_found(chunks: list[Chunk], fault: Fault) -> None:
    reading = read(*chunks)
    reading.end(None)
    assert fault in {found for found, _ in reading.faults}


def test_a_reader_who_stops_early_has_lost_nothing() -> None:
    reading = read(chunk(0, 2))
    assert reading.end(None, cancelled=True) is End.CANCELLED
    assert reading.faults == []


def completion(tokens: tuple[int, ...] = WRITTEN.token_ids, text: str = WRITTEN.text) -> Completion:
    choice = Choice(0, text, tokens, (), FinishReason.LENGTH, "")
    return Completion("r", "m", (choice,), USAGE, timing=None, attempts=2)  # type: ignore[arg-type]


def test_a_whole_answer_is_judged_as_a_stream_is() -> None:
    right, wrong_token, wrong_text = Reading(ANSWER), Reading(ANSWER), Reading(ANSWER)
    right.add_whole(completion())
    wrong_token.add_whole(completion(tokens=(7, 8, 9, 6)))
    wrong_text.add_whole(completion(text="ab c"))
    assert (right.faults, right.attempts, right.end(None)) == ([], 2, End.FINISHED)
    assert wrong_token.faults
    assert wrong_text.faults


def error(kind: type[ChironError], reason: str) -> ChironError:
    return kind("why", reason=reason)


@pytest.mark.parametrize(
    ("failure", "before", "after"),
    [
        (error(NoInstance, "NO_INSTANCE"), End.REFUSED, End.LOST),
        (error(ConnectionLost, "UNAVAILABLE"), End.REFUSED, End.LOST),
        (error(QueueFull, "QUEUE_FULL"), End.REFUSED, End.LOST),
        (error(StreamInterrupted, "STREAM_INTERRUPTED"), End.LOST, End.LOST),
        (error(CannotResume, "CANNOT_RESUME"), End.LOST, End.LOST),
        (error(Aborted, "ABORTED"), End.LOST, End.LOST),
        (error(DeadlineExceeded, "DEADLINE_EXCEEDED"), End.LOST, End.LOST),
        (error(InternalError, "INTERNAL"), End.LOST, End.LOST),
        (TimeoutError(), End.LOST, End.LOST),
        (ZeroDivisionError(), End.LOST, End.LOST),
    ],
)
def test_which_ends_the_contract_allows(failure: Exception, before: End, after: End) -> None:
    assert Reading(ANSWER).end(failure) is before
    assert read(chunk(0, 2)).end(failure) is after


def test_only_what_cannot_be_resumed_may_end_for_that() -> None:
    failure = error(CannotResume, "CANNOT_RESUME")
    assert read(chunk(0, 2)).end(failure, resumable=False) is End.NOT_RESUMED
    assert read(chunk(0, 2)).end(failure, resumable=True) is End.LOST


def test_each_of_several_choices_is_judged_by_itself() -> None:
    usage = Usage(3, 0, 8)
    reading, wrong = Reading(Answer((WRITTEN, WRITTEN), 3)), Reading(Answer((WRITTEN, WRITTEN), 3))
    for each in (
        chunk(0, 2),
        chunk(0, 3, choice=1),
        chunk(2, 4, usage=None),
        chunk(3, 4, choice=1, usage=usage),
    ):
        reading.add(each)
    assert reading.faults == []
    assert (reading.end(None), reading.tokens) == (End.FINISHED, 8)
    wrong.add(chunk(0, 4, usage=None))
    assert wrong.faults == []
    assert wrong.end(None) is End.FINISHED
    assert wrong.faults


@pytest.mark.parametrize(
    ("text", "fault"), [("token repeated: …", Fault.DUPLICATED), ("token skipped: …", Fault.TOKEN)]
)
def test_what_the_client_itself_refuses_counts_too(text: str, fault: Fault) -> None:
    reading = read(chunk(0, 2))
    assert reading.end(ProtocolError(text)) is End.LOST
    assert [found for found, _ in reading.faults] == [fault]


@pytest.mark.parametrize("kind", [StreamInterrupted, CannotResume])
def test_an_error_that_tells_of_other_tokens_is_a_flaw(
    kind: type[StreamInterrupted] | type[CannotResume],
) -> None:
    failure = kind("cut", reason="R")
    failure.delivered = (Choice(0, "ab", (7, 8), (), None, ""),)
    right, wrong = read(chunk(0, 2)), read(chunk(0, 3))
    for reading in (right, wrong):
        reading.end(failure)
    assert right.faults == []
    assert wrong.faults
