"""What an item has been answered: results, checkpoints, and going on from one."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from chiron.internal.v1 import batch_pb2 as internal_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.batch.answer import Answer, read_checkpoint


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
