"""What a worker makes of an engine's parser: pieces by token, ids, one call, failures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chiron.client.parsed import ParsedParts
from chiron.v1 import inference_pb2 as pb
from services.worker.call_reader import CallReader, join
from services.worker.engines.base import ChoiceDelta
from services.worker.engines.calls import CallParser, Calls
from services.worker.engines.sim.call_parser import HermesParser

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


class Recorder(CallParser):
    """Keeps what it is fed; everything is content."""

    def __init__(self) -> None:
        self.fed: list[tuple[tuple[int, ...], str, bool]] = []

    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        self.fed.append((tuple(token_ids), text, finished))
        if text == "bad":
            raise ValueError("no\nway")
        return pb.ParsedDelta(content=text)


class Numbered(CallParser):
    """Writes a call for each token, with the engine's own id."""

    def __init__(self, own_id: str) -> None:
        self.own_id, self.calls = own_id, 0

    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        piece = pb.ToolCallDelta(index=self.calls, id=self.own_id, name="f", arguments=text)
        self.calls += 1
        return pb.ParsedDelta(tool_calls=[piece])


def reader(*parsers: CallParser, one_call: bool = False, request_id: str = "r", **more) -> CallReader:
    made = iter(parsers)
    calls = Calls(pb.SamplingParams(), lambda prompt: next(made))
    return CallReader(calls, [1], request_id=request_id, choices=len(parsers), one_call=one_call, **more)


def delta(
    *tokens: tuple[str, int],
    rest: str = "",
    choice: int = 0,
    finish: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED,
) -> ChoiceDelta:
    """Tokens by what they release and where the text then ends; `rest` comes without a token."""
    text = "".join(released for released, _ in tokens) + rest
    return ChoiceDelta(
        choice, list(range(len(tokens))), text, [end for _, end in tokens], finish_reason=finish
    )


STOP = pb.FINISH_REASON_STOP


def test_each_token_is_fed_with_its_own_text() -> None:
    parser = Recorder()
    read = reader(parser)
    read.read(delta(("a", 1), ("", 1), ("bc", 3)))
    read.read(delta(("d", 4), finish=STOP))
    assert parser.fed == [
        ((0,), "a", False),
        ((1,), "", False),
        ((2,), "bc", False),
        ((0,), "d", True),
    ]


def test_text_without_a_token_comes_last_and_ends_the_output() -> None:
    parser = Recorder()
    read = reader(parser)
    read.read(delta(("a", 1), ("b", 2), rest="held", finish=STOP))
    assert parser.fed == [((0,), "a", False), ((1,), "b", False), ((), "held", True)]
    other = Recorder()
    reader(other).read(delta(finish=pb.FINISH_REASON_ABORT))
    assert other.fed == [((), "", True)]


def test_a_choices_last_delta_is_parsed_even_if_it_brings_nothing() -> None:
    read = reader(HermesParser())
    assert read.read(delta(("", 0))) is None
    found = read.read(delta(("", 0), finish=STOP))
    assert found == pb.ParsedDelta()


def test_each_choice_has_its_own_parser_and_its_own_ids() -> None:
    read = reader(HermesParser(), HermesParser())
    ids = set()
    for choice in (0, 1):
        found = read.read(delta((CALL, len(CALL)), (CALL, 2 * len(CALL)), choice=choice, finish=STOP))
        assert found is not None
        names = [piece.id for piece in found.tool_calls if piece.name]
        assert len(names) == 2
        ids |= set(names)
    assert len(ids) == 4
    assert all(one.startswith("call_") for one in ids)


def test_ids_depend_on_request_choice_and_call_alone() -> None:
    def ids(request_id: str) -> list[str]:
        found = reader(HermesParser(), request_id=request_id).read(delta((CALL + CALL, 2 * len(CALL))))
        assert found is not None
        return [piece.id for piece in found.tool_calls if piece.id]

    assert ids("r") == ids("r")
    assert not set(ids("r")) & set(ids("s"))
    # Request r/1, choice 0 and request r, choice 1/0 are different things.
    assert len({*ids("r"), *ids("r/0"), *ids("r/1")}) == 6


@pytest.mark.parametrize("own_id", ["abcDEF123", "chatcmpl-tool-5f", "functions.f:3", ""])
def test_an_id_has_the_form_that_the_engines_template_needs(own_id: str) -> None:
    found = reader(Numbered(own_id)).read(delta(("x", 1), ("y", 2)))
    assert found is not None
    first, second = (piece.id for piece in found.tool_calls)
    if own_id == "functions.f:3":
        assert first == own_id
    else:
        assert first != second
        assert first not in ("", own_id)
        if own_id == "abcDEF123":
            assert len(first) == 9
            assert first.isalnum()


class Unruly(CallParser):
    """Yields prepared pieces, one a token."""

    def __init__(self, *pieces: pb.ToolCallDelta) -> None:
        self.pieces = list(pieces)

    def feed(self, token_ids: Sequence[int], text: str, *, finished: bool) -> pb.ParsedDelta:
        return pb.ParsedDelta(tool_calls=[self.pieces.pop(0)])


def test_calls_begin_with_their_name_and_follow_each_other_however_a_parser_counts() -> None:
    parser = Unruly(
        pb.ToolCallDelta(index=1, arguments="{"),
        pb.ToolCallDelta(index=1, name="f", arguments='"x"'),
        pb.ToolCallDelta(index=1, name="f", arguments=": 1"),
        pb.ToolCallDelta(index=5, name="g", arguments="{}"),
        pb.ToolCallDelta(index=1, arguments="}"),
    )
    found = reader(parser).read(delta(*[("", 0)] * 5))
    parts = ParsedParts()
    assert found is not None
    parts.add(found)
    calls = parts.so_far().tool_calls
    assert [(call.name, call.arguments) for call in calls] == [("f", '{"x": 1}'), ("g", "{}")]
    assert [(piece.index, bool(piece.id), piece.name) for piece in found.tool_calls] == [
        (0, True, "f"),
        (1, True, "g"),
        (0, False, ""),
    ]


def test_of_one_call_the_others_are_left_out() -> None:
    text = f"a{CALL}b{CALL}c"
    found = reader(HermesParser(), one_call=True).read(delta((text, len(text)), finish=STOP))
    assert found is not None
    assert found.content == "abc"
    assert {piece.index for piece in found.tool_calls} == {0}
    assert "".join(piece.arguments for piece in found.tool_calls) == '{"x": 1}'


def test_a_parser_that_fails_leaves_the_rest_as_content_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parser = Recorder()
    read = reader(parser)
    parts = ParsedParts()
    for each in (
        delta(("a", 1), ("bad", 4), ("b", 5)),
        delta(("c", 6), finish=STOP),
    ):
        found = read.read(each)
        assert found is not None
        parts.add(found)
    assert parts.so_far().content == "abadbc"
    assert parts.so_far().error == "the parser of tool calls failed: ValueError: no way"
    assert len(parser.fed) == 2
    assert "the parser of tool calls failed" in caplog.text
    assert parts.whole("abadbc") == pb.ParsedOutput(content="abadbc", error=parts.so_far().error)


def test_what_was_delivered_is_gone_through_and_not_told_again() -> None:
    whole = f"Look. {CALL} So."
    plain = reader(HermesParser()).read(delta(*((c, i) for i, c in enumerate(whole, 1)), finish=STOP))
    assert plain is not None
    for cut in range(1, len(whole)):
        first, rest = whole[:cut], whole[cut:]
        head = delta(*((c, i) for i, c in enumerate(first, 1)))
        told = reader(HermesParser()).read(head) or pb.ParsedDelta()
        go_on = reader(HermesParser(), delivered=head)
        tail = delta(*((c, i) for i, c in enumerate(rest, cut + 1)), finish=STOP)
        more = go_on.read(tail)
        assert more is not None
        join(told, more)
        assert told == plain, cut


def test_pieces_of_a_call_are_joined_and_calls_are_not() -> None:
    out = pb.ParsedDelta()
    for piece in (
        pb.ToolCallDelta(index=0, id="1", name="f", arguments="{"),
        pb.ToolCallDelta(index=0, arguments="}"),
        pb.ToolCallDelta(index=1, id="2", name="g"),
    ):
        join(out, pb.ParsedDelta(content="x", reasoning="y", tool_calls=[piece]))
    join(out, pb.ParsedDelta(error="first"))
    join(out, pb.ParsedDelta(error="second"))
    assert (out.content, out.reasoning, out.error) == ("xxx", "yyy", "first")
    assert [(piece.id, piece.arguments) for piece in out.tool_calls] == [("1", "{}"), ("2", "")]
