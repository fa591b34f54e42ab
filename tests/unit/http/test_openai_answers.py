"""Whole answers and streamed ones are the same answer, however a stream is cut into messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import batch_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.answer import Answer
from services.router.http.chat import answer as chat_answer
from services.router.http.chat.stream import ChatChunks
from services.router.http.chunks import Chunks
from services.router.http.completions import answer as text_answer
from services.router.http.completions.stream import CompletionChunks
from services.router.http.head import Head, fingerprint
from tests.support.openai_streams import (
    CUTS,
    PIECES,
    USAGE,
    Choice,
    events,
    joined_chat,
    joined_text,
    messages,
)

HEAD = Head("id-1", 1_700_000_000, "m")
CHOICES = st.lists(
    st.builds(
        Choice,
        PIECES,
        st.sampled_from([pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH]),
        st.just(True),
    ),
    min_size=1,
    max_size=3,
)


async def collected(stream: list[pb.GenerateResponse], choices: int) -> batch_pb2.ItemOutput:
    answer = Answer(choices)
    for message in stream:
        await answer.write(message.SerializeToString())
    assert answer.complete
    return answer.output("m")


def told(writer: Chunks, stream: list[pb.GenerateResponse]) -> str:
    return "".join(writer.take(message) for message in stream)


@settings(deadline=None, max_examples=60)
@given(CHOICES, st.lists(CUTS, min_size=3, max_size=3))
async def test_a_streamed_chat_is_the_whole_one(choices: list[Choice], cuts: list[list[int]]) -> None:
    stream = messages(choices, cuts)
    whole = chat_answer.whole(await collected(stream, len(choices)), HEAD)
    official = ChatCompletion.model_validate(whole)
    streamed = joined_chat(told(ChatChunks(HEAD, choices=len(choices), logprobs=True), stream))
    for choice in official.choices:
        got = streamed[choice.index]
        wanted = choices[choice.index]
        assert choice.message.content == got["content"] == "".join(wanted.pieces)
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [each.token for each in choice.logprobs.content] == wanted.pieces
        assert [each.model_dump() for each in choice.logprobs.content] == got["logprobs"]
        assert choice.finish_reason == got["finish"]
    assert len(streamed) == len(official.choices) == len(choices)


@settings(deadline=None, max_examples=60)
@given(CHOICES, st.lists(CUTS, min_size=3, max_size=3))
async def test_a_streamed_text_is_the_whole_one(choices: list[Choice], cuts: list[list[int]]) -> None:
    stream = messages(choices, cuts)
    whole = text_answer.whole(await collected(stream, len(choices)), HEAD)
    streamed = joined_text(told(CompletionChunks(HEAD, choices=len(choices), logprobs=True), stream))
    for choice in Completion.model_validate(whole).choices:
        got = streamed[choice.index]
        assert choice.text == got["text"] == "".join(choices[choice.index].pieces)
        assert choice.logprobs is not None
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert getattr(choice.logprobs, name) == got[name]
        at = 0
        for token, offset in zip(got["tokens"], got["text_offset"], strict=True):
            assert offset == at
            at += len(token)


CALLS = [
    pb.ParsedDelta(content="I look. "),
    pb.ParsedDelta(tool_calls=[pb.ToolCallDelta(index=0, id="c0", name="weather")]),
    pb.ParsedDelta(tool_calls=[pb.ToolCallDelta(index=0, arguments='{"city":')]),
    pb.ParsedDelta(tool_calls=[pb.ToolCallDelta(index=0, arguments=' "Rome"}')]),
    pb.ParsedDelta(tool_calls=[pb.ToolCallDelta(index=1, id="c1", name="time", arguments="{}")]),
]


def output(*choices: batch_pb2.ItemChoice, **fields: Any) -> batch_pb2.ItemOutput:
    return batch_pb2.ItemOutput(choices=choices, usage=USAGE, spec_version=3, **fields)


@settings(deadline=None, max_examples=60)
@given(CUTS)
def test_calls_of_tools_are_streamed_in_pieces(cuts: list[int]) -> None:
    stream = messages([Choice(["<a>", "<b>", "c", "d", "e"], parsed=CALLS)], [cuts])
    got = joined_chat(told(ChatChunks(HEAD, parsed=True), stream))[0]
    assert got["content"] == "I look. "
    assert got["calls"] == {0: ["c0", "weather", '{"city": "Rome"}'], 1: ["c1", "time", "{}"]}
    assert got["finish"] == "tool_calls"


def test_calls_of_tools_are_part_of_a_whole_answer() -> None:
    parsed = pb.ParsedOutput(tool_calls=[pb.ToolCall(id="c0", name="weather", arguments="{}")])
    one = batch_pb2.ItemChoice(text="<raw>", finish_reason=pb.FINISH_REASON_STOP, parsed=parsed)
    whole = chat_answer.whole(output(one), HEAD)
    [choice] = ChatCompletion.model_validate(whole).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert whole["choices"][0]["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ]


def test_an_answer_without_calls_says_what_was_parsed_and_stops() -> None:
    one = batch_pb2.ItemChoice(
        text="<s>hi", finish_reason=pb.FINISH_REASON_STOP, parsed=pb.ParsedOutput(content="hi")
    )
    [choice] = ChatCompletion.model_validate(chat_answer.whole(output(one), HEAD)).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("hi", None, "stop")


def test_calls_that_are_cut_off_end_by_their_length() -> None:
    stream = messages([Choice(["a", "b"], pb.FINISH_REASON_LENGTH, parsed=CALLS[1:3])], [[]])
    assert joined_chat(told(ChatChunks(HEAD, parsed=True), stream))[0]["finish"] == "length"


def test_equal_choices_are_told_once_each() -> None:
    head = Head("id-1", 0, "m", copies=3)
    stream = messages([Choice(["a", "b", "c"])], [[1, 2]])
    got = joined_chat(told(ChatChunks(head, choices=3), stream))
    assert [got[index]["content"] for index in range(3)] == ["abc"] * 3
    one = output(batch_pb2.ItemChoice(text="abc", finish_reason=pb.FINISH_REASON_STOP))
    assert [each["text"] for each in text_answer.whole(one, head)["choices"]] == ["abc"] * 3
    whole = chat_answer.whole(one, head)
    assert [each["message"]["content"] for each in whole["choices"]] == ["abc"] * 3
    assert [each["index"] for each in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 3 * USAGE.completion_tokens


def test_choices_count_on_over_the_prompts() -> None:
    writer = CompletionChunks(HEAD, requests=2, choices=2, counts=True)
    one = messages([Choice(["a"]), Choice(["b"])], [[], []])
    two = messages([Choice(["c"]), Choice(["d"])], [[], []])
    text = ""
    for first, second in zip(one, two, strict=True):
        text += writer.take(second, 1)
        assert not writer.complete
        text += writer.take(first, 0)
    assert writer.complete
    assert {index: each["text"] for index, each in joined_text(text).items()} == {
        0: "a",
        1: "b",
        2: "c",
        3: "d",
    }
    *others, last = events(text)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 2 * USAGE.prompt_tokens
    assert all(each["usage"] is None for each in others)


def test_one_message_of_many_tokens_is_one_event() -> None:
    stream = messages([Choice(list("abcdefgh"))], [[2]])
    assert len(list(events(told(ChatChunks(HEAD), stream)))) == 2


def test_usage_comes_only_where_it_is_asked_for() -> None:
    stream = messages([Choice(["a", "b"])], [[1]])
    assert all("usage" not in each for each in events(told(ChatChunks(HEAD), stream)))
    *others, last = events(told(ChatChunks(HEAD, counts=True), stream))
    assert [each["usage"] for each in others] == [None, None]
    assert (last["choices"], last["usage"]) == (
        [],
        {
            "prompt_tokens": 7,
            "completion_tokens": 9,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    )


def test_every_event_has_the_head_of_the_answer() -> None:
    head = Head("id-1", 123, 'say "m"', tier="flex")
    stream = messages([Choice(["a", "b"])], [[1]])
    for each in events(told(ChatChunks(head, counts=True), stream)):
        assert (each["id"], each["created"], each["model"]) == ("id-1", 123, 'say "m"')
        assert (each["service_tier"], each["object"]) == ("flex", "chat.completion.chunk")
        assert each["system_fingerprint"] == fingerprint('say "m"', 3)


def test_the_fingerprint_is_that_of_the_version_of_the_spec() -> None:
    assert fingerprint("m", 3) == fingerprint("m", 3)
    assert len({fingerprint("m", 3), fingerprint("m", 4), fingerprint("n", 3)}) == 3
    one = batch_pb2.ItemChoice(text="a", finish_reason=pb.FINISH_REASON_STOP)
    assert chat_answer.whole(output(one), HEAD)["system_fingerprint"] == fingerprint("m", 3)
    assert text_answer.whole(output(one), HEAD)["system_fingerprint"] == fingerprint("m", 3)


def test_tokens_that_release_nothing_tell_nothing_but_the_first() -> None:
    stream = messages([Choice(["", "", "", "x"])], [[1, 2, 3]])
    contents = [each["choices"][0]["delta"] for each in events(told(ChatChunks(HEAD), stream))]
    assert contents == [{"role": "assistant", "content": ""}, {"content": "x"}]


@pytest.mark.parametrize("writer", [ChatChunks(HEAD), CompletionChunks(HEAD)])
def test_what_the_engine_gave_up_is_an_error(writer: Chunks) -> None:
    stream = messages([Choice(["a", "b"], pb.FINISH_REASON_ABORT)], [[1]])
    assert writer.take(stream[0])
    with pytest.raises(ChironError) as caught:
        writer.take(stream[1])
    assert caught.value.reason is Reason.ABORTED


@pytest.mark.parametrize("whole", [chat_answer.whole, text_answer.whole])
def test_a_whole_answer_that_the_engine_gave_up_is_an_error(whole: Any) -> None:
    with pytest.raises(ChironError):
        whole(output(batch_pb2.ItemChoice(text="a", finish_reason=pb.FINISH_REASON_ABORT)), HEAD)


def test_token_ids_come_where_they_are_asked_for() -> None:
    head = Head("id-1", 0, "m", token_ids=True)
    stream = messages([Choice(["", "a", "b"])], [[1, 2]])
    choices = [each["choices"][0] for each in events(told(ChatChunks(head), stream))]
    assert [each["token_ids"] for each in choices] == [[0], [1], [2]]
    one = batch_pb2.ItemChoice(text="a", token_ids=[5, 6], finish_reason=pb.FINISH_REASON_STOP)
    assert text_answer.whole(output(one), head)["choices"][0]["token_ids"] == [5, 6]


def test_tokens_may_be_named_by_their_ids() -> None:
    head = Head("id-1", 0, "m", tokens_as_ids=True)
    stream = messages([Choice(["a", "b"], logprobs=True)], [[]])
    got = joined_text(told(CompletionChunks(head, logprobs=True), stream))[0]
    assert got["tokens"] == ["token_id:0", "token_id:1"]
    assert got["top_logprobs"][0] == {"token_id:100": -0.5, "token_id:0": -1.0}


def test_the_sampled_token_is_among_the_likely_ones_once() -> None:
    found = pb.TokenLogprobs(
        logprob=-0.5, alternatives=[pb.TokenAlternative(token_id=7, logprob=-0.5, text="a")]
    )
    one = batch_pb2.ItemChoice(
        text="b", token_ids=[7], text_ends=[1], logprobs=[found], finish_reason=pb.FINISH_REASON_STOP
    )
    found.alternatives.add(token_id=8, logprob=-2.0, text="c")
    one.logprobs[0].CopyFrom(found)
    [choice] = text_answer.whole(output(one), HEAD)["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5, "c": -2.0}]


def test_a_probability_of_nothing_is_a_number_all_the_same() -> None:
    alternatives = [pb.TokenAlternative(token_id=1, logprob=float("-inf"), text="\N{REPLACEMENT CHARACTER}")]
    one = batch_pb2.ItemChoice(
        text="é",
        token_ids=[7],
        text_ends=[1],
        logprobs=[pb.TokenLogprobs(logprob=float("-inf"), alternatives=alternatives)],
        finish_reason=pb.FINISH_REASON_STOP,
    )
    [choice] = chat_answer.whole(output(one), HEAD)["choices"]
    [entry] = choice["logprobs"]["content"]
    json.dumps(choice, allow_nan=False)
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("é", -9999.0, [0xC3, 0xA9])
    assert entry["top_logprobs"][0]["bytes"] is None


def test_what_ended_a_choice_is_told_where_it_was_a_stop() -> None:
    one = batch_pb2.ItemChoice(text="a", finish_reason=pb.FINISH_REASON_STOP, stop_match="END")
    assert chat_answer.whole(output(one), HEAD)["choices"][0]["stop_reason"] == "END"
    assert text_answer.whole(output(one), HEAD)["choices"][0]["stop_reason"] == "END"
