"""What an item has been answered: results, checkpoints, and going on from one."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from chiron.internal.v1 import batch_pb2 as internal_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.answer import Answer, read_checkpoint


def delta(text: str, *tokens: int, choice: int = 0, **fields) -> bytes:
    logprobs = [pb.TokenLogprobs(logprob=-float(token)) for token in tokens]
    one = pb.OutputDelta(choice=choice, text=text, token_ids=tokens, logprobs=logprobs, **fields)
    return pb.GenerateResponse(deltas=[one]).SerializeToString()


LAST = {
    "finish_reason": pb.FINISH_REASON_STOP,
    "stop_match": "end",
    "usage": pb.Usage(prompt_tokens=3, completion_tokens=4),
    "timing": pb.Timing(total_ms=9.0),
}
ORIGIN = pb.StreamOrigin(spec_version=7, ttft_ms=5.0)


async def test_a_result_has_all_of_the_stream() -> None:
    answer = Answer(1)
    await answer.write(delta("é", 1, origin=ORIGIN))
    await answer.write(delta("bc", 2, 3))
    assert not answer.complete
    await answer.write(delta("d", 4, **LAST))
    assert answer.complete
    output = answer.output("m")
    [choice] = output.choices
    assert (choice.text, list(choice.token_ids), choice.stop_match) == ("ébcd", [1, 2, 3, 4], "end")
    assert [each.logprob for each in choice.logprobs] == [-1.0, -2.0, -3.0, -4.0]
    assert (output.model, output.spec_version, output.usage.completion_tokens) == ("m", 7, 4)
    assert output.timing.total_ms == 9.0


async def test_whoever_goes_on_from_a_checkpoint_has_the_same_result() -> None:
    before = Answer(1)
    await before.write(delta("é", 1, origin=ORIGIN))
    await before.write(delta("bc", 2, 3))
    kept = read_checkpoint(before.checkpoint())
    assert kept is not None
    assert (list(kept.resume.delivered_token_ids), kept.resume.delivered_text_length) == ([1, 2, 3], 3)
    assert kept.resume.origin == ORIGIN
    after = Answer(1, kept)
    assert (after.begun_with, after.tokens) == (3, 3)
    assert after.checkpoint() == before.checkpoint()
    await after.write(delta("d", 4, **LAST))
    whole = Answer(1)
    for message in (delta("é", 1, origin=ORIGIN), delta("bc", 2, 3), delta("d", 4, **LAST)):
        await whole.write(message)
    assert after.output("m") == whole.output("m")


async def test_which_token_released_what_is_kept_beside_log_probabilities_also_over_a_checkpoint() -> None:
    before = Answer(1)
    await before.write(delta("é", 1, text_ends=[1], origin=ORIGIN))
    await before.write(delta("bc", 2, 3, text_ends=[1, 3]))
    after = Answer(1, read_checkpoint(before.checkpoint()))
    await after.write(delta("d", 4, text_ends=[4], **LAST))
    assert list(after.output("m").choices[0].text_ends) == [1, 1, 3, 4]


async def test_results_without_log_probabilities_do_not_keep_which_token_released_what() -> None:
    answer = Answer(1)
    one = pb.OutputDelta(text="ab", token_ids=[1, 2], text_ends=[1, 2], **LAST)
    await answer.write(pb.GenerateResponse(deltas=[one]).SerializeToString())
    [choice] = answer.output("m").choices
    assert (list(choice.token_ids), list(choice.text_ends)) == ([1, 2], [])


def parsed(content: str = "", *pieces: pb.ToolCallDelta, **fields: str) -> pb.ParsedDelta:
    return pb.ParsedDelta(content=content, tool_calls=pieces, **fields)


CALL = (
    delta("<call>", 1, parsed=parsed("Look. ", pb.ToolCallDelta(index=0, id="c0", name="f", arguments="{"))),
    delta("x", 2, parsed=parsed("", pb.ToolCallDelta(index=0, arguments="}"))),
    delta("<call>", 3, parsed=parsed("", pb.ToolCallDelta(index=1, id="c1", name="g", arguments="{}"))),
    delta("", 4, parsed=parsed("So."), **LAST),
)
PARSED = pb.ParsedOutput(
    content="Look. So.",
    tool_calls=[
        pb.ToolCall(id="c0", name="f", arguments="{}"),
        pb.ToolCall(id="c1", name="g", arguments="{}"),
    ],
)


async def test_content_and_calls_are_put_together_and_the_text_stays_whole() -> None:
    answer = Answer(1)
    for message in CALL:
        await answer.write(message)
    [choice] = answer.output("m").choices
    assert choice.parsed == PARSED
    assert choice.text == "<call>x<call>"


async def test_a_stream_without_parsed_calls_has_none() -> None:
    answer = Answer(1)
    await answer.write(delta("a", 1, **LAST))
    assert not answer.output("m").choices[0].HasField("parsed")


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_a_checkpoint_keeps_calls_however_far_they_are(cut: int) -> None:
    before = Answer(1)
    for message in CALL[:cut]:
        await before.write(message)
    after = Answer(1, read_checkpoint(before.checkpoint()))
    assert after.checkpoint() == before.checkpoint()
    for message in CALL[cut:]:
        await after.write(message)
    assert after.output("m").choices[0].parsed == PARSED


async def test_where_the_parser_failed_the_content_is_the_text() -> None:
    answer = Answer(1)
    await answer.write(CALL[0])
    await answer.write(delta("x", 2, parsed=parsed("x", error="it broke")))
    await answer.write(delta("y", 3, parsed=parsed("y"), **LAST))
    [choice] = answer.output("m").choices
    assert choice.parsed == pb.ParsedOutput(content="<call>xy", error="it broke")


@pytest.mark.parametrize("index", [1, 2])
async def test_a_piece_of_a_call_that_has_not_begun_is_an_error(index: int) -> None:
    answer = Answer(1)
    await answer.write(CALL[0])
    await answer.write(delta("x", 2, parsed=parsed("", pb.ToolCallDelta(index=index, arguments="x"))))
    with pytest.raises(DecodeError, match=f"call {index}"):
        answer.output("m")


async def test_choices_are_kept_apart_and_give_no_checkpoint() -> None:
    answer = Answer(2)
    await answer.write(delta("a", 1) + delta("x", 8, choice=1))
    assert answer.checkpoint() == b""
    await answer.write(delta("b", 2, finish_reason=pb.FINISH_REASON_LENGTH) + delta("y", 9, choice=1, **LAST))
    assert [choice.text for choice in answer.output("m").choices] == ["ab", "xy"]
    assert answer.tokens == 4


async def test_what_the_engine_gave_up_is_no_answer() -> None:
    answer = Answer(1)
    await answer.write(delta("a", 1, **{**LAST, "finish_reason": pb.FINISH_REASON_ABORT}))
    assert answer.given_up


@pytest.mark.parametrize("message", [b"\xff\xff", delta("a", 1, choice=1)])
async def test_what_cannot_be_read_is_an_error(message: bytes) -> None:
    answer = Answer(1)
    await answer.write(message)
    with pytest.raises(DecodeError):
        assert answer.complete


async def test_unread_messages_are_bounded() -> None:
    answer = Answer(1)
    for _ in range(200):
        await answer.write(delta("x" * 500, 1))
    assert len(answer._unread) <= 17 * 1024
    assert answer.tokens == 200


def test_a_checkpoint_that_cannot_be_gone_on_from_is_none() -> None:
    assert read_checkpoint(b"") is None
    assert read_checkpoint(b"\xff\xff") is None
    assert read_checkpoint(internal_pb2.ItemCheckpoint(text="x").SerializeToString()) is None
