"""What every engine must do with a stream that another one began. No expectation depends on speed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, InvalidRequestError
from tests.conformance.engine_reading import GREEDY, LENGTH, STOP, Choice, Reading, drain, make_request, run

TOKENS = 24


async def resumed(
    engine: Engine, whole: Choice, cut: int, *, text_length: int | None = None, **options: Any
) -> Choice:
    """The whole output, its first `cut` tokens taken from `whole`, the rest from the engine."""
    length = whole.text_ends[cut - 1] if text_length is None else text_length
    seam = {"delivered_token_ids": whole.tokens[:cut], "delivered_text_length": length}
    held = Choice(
        whole.tokens[:cut],
        whole.text[:length],
        whole.text_ends[:cut],
        whole.logprobs[:cut],
        delta_ends=[end for end in whole.delta_ends if end <= cut],
    )
    reading = Reading(choices={0: held})
    return (await drain(engine.generate(make_request(engine, **seam, **options)), reading)).only


def assert_same(found: Choice, whole: Choice, *, valid_text: bool = True) -> None:
    """Equal in everything; log probabilities but for the last digits of float32.

    Where an engine joins several tokens to one delta because its reader is slow, and their bytes are no valid
    text, it is known after which delta a replacement character was out, but not after which of its tokens.
    """
    assert (found.tokens, found.text) == (whole.tokens, whole.text)
    if valid_text:
        assert found.text_ends == whole.text_ends
    else:
        assert len(found.text_ends) == len(whole.text_ends)
        for tokens in {*found.delta_ends} & {*whole.delta_ends}:
            assert found.text_ends[tokens - 1] == whole.text_ends[tokens - 1], tokens
    assert (found.finish, found.stop_match) == (whole.finish, whole.stop_match)
    assert len(found.logprobs) == len(whole.logprobs)
    for mine, other in zip(found.logprobs, whole.logprobs, strict=True):
        assert math.isclose(mine.logprob, other.logprob, abs_tol=1e-3)
        assert mine.rank == other.rank
        assert [(one.token_id, one.text) for one in mine.alternatives] == [
            (one.token_id, one.text) for one in other.alternatives
        ]


class ResumeSuite:
    """Part of `EngineSuite`, which holds the fixtures."""

    async def test_a_cut_at_every_token_changes_nothing(self, engine: Engine) -> None:
        options = {"max_tokens": TOKENS, "logprobs": 2, **GREEDY}
        whole = (await run(engine, **options)).only
        for cut in range(1, TOKENS):
            assert_same(await resumed(engine, whole, cut, **options), whole)

    async def test_delivered_tokens_count_towards_max_tokens(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        ended = await resumed(engine, whole, TOKENS, max_tokens=TOKENS, **GREEDY)
        assert_same(ended, whole)
        assert ended.finish == LENGTH

    @pytest.mark.parametrize("include", [False, True])
    async def test_a_stop_string_across_the_cut_is_found(self, engine: Engine, include: bool) -> None:
        plain = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        first, last = TOKENS // 2, TOKENS // 2 + 3
        stop = plain.text[plain.text_ends[first] - 1 : plain.text_ends[last] + 1]
        options = {
            "max_tokens": TOKENS,
            "stop": ["never there", stop],
            "include_stop": include,
            **GREEDY,
        }
        whole = (await run(engine, **options)).only
        assert (whole.finish, whole.stop_match) == (STOP, stop)
        for cut in range(1, len(whole.tokens)):
            assert_same(await resumed(engine, whole, cut, **options), whole)

    async def test_text_held_back_for_a_stop_string_is_released_after_the_cut(self, engine: Engine) -> None:
        plain = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        middle = plain.text_ends[TOKENS // 2]
        options = {"max_tokens": TOKENS, "stop": [plain.text[middle - 6 : middle] + "\x00"], **GREEDY}
        whole = (await run(engine, **options)).only
        assert whole.text == plain.text
        for cut in range(TOKENS // 2 - 2, TOKENS):
            assert_same(await resumed(engine, whole, cut, **options), whole)

    async def test_text_that_was_not_delivered_with_its_tokens_comes_later(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        cut = TOKENS // 2
        delivered = whole.text_ends[cut - 1]
        for length in {0, 1, delivered // 3, delivered // 2, delivered - 1}:
            found = await resumed(engine, whole, cut, text_length=length, max_tokens=TOKENS, **GREEDY)
            assert (found.tokens, found.text, found.text_ends) == (whole.tokens, whole.text, whole.text_ends)

    async def test_a_cut_after_a_stop_token_generates_nothing_more(self, engine: Engine) -> None:
        plain = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        options = {"max_tokens": TOKENS, "stop_token_ids": [plain.tokens[TOKENS // 2]], **GREEDY}
        whole = (await run(engine, **options)).only
        assert whole.finish == STOP
        found = await resumed(engine, whole, len(whole.tokens), **options)
        assert_same(found, whole)

    async def test_min_tokens_counts_delivered_tokens(self, engine: Engine) -> None:
        (first,) = (await run(engine, max_tokens=1, **GREEDY)).only.tokens
        options = {"max_tokens": 12, "min_tokens": 8, "stop_token_ids": [first], **GREEDY}
        whole = (await run(engine, **options)).only
        for cut in range(1, 12):
            if cut < len(whole.tokens):
                assert_same(await resumed(engine, whole, cut, **options), whole)

    async def test_characters_split_over_tokens_are_written_once(self, engine: Engine) -> None:
        # Tokens of a few bytes each: valid characters, halves of them, and nonsense.
        pieces = make_request(engine, "🚀é漢🚀").prompt_token_ids
        options = {"max_tokens": TOKENS, "logit_bias": dict.fromkeys(pieces, 100.0), "logprobs": 2, **GREEDY}
        whole = (await run(engine, **options)).only
        for cut in range(1, TOKENS):
            assert_same(await resumed(engine, whole, cut, **options), whole, valid_text=False)

    async def test_sampling_without_a_seed_may_go_on(self, engine: Engine) -> None:
        options = {"max_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
        whole = (await run(engine, **options)).only
        found = await resumed(engine, whole, 8, **options)
        assert (len(found.tokens), found.tokens[:8]) == (TOKENS, whole.tokens[:8])
        assert engine.resume_obstacle(pb.SamplingParams(temperature=1.0)) == ""

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 1.0, "seed": 7},
            {"temperature": 0.0, "repetition_penalty": 1.3},
            {"temperature": 0.0, "presence_penalty": 0.7},
            {"temperature": 0.0, "frequency_penalty": 0.7},
        ],
        ids=lambda options: list(options)[-1],
    )
    async def test_what_depends_on_the_past_goes_on_exactly_or_is_refused_by_name(
        self, engine: Engine, options: dict[str, Any]
    ) -> None:
        obstacle = engine.resume_obstacle(pb.SamplingParams(**options))
        if obstacle:
            assert list(options)[-1] in obstacle
            return
        options = {"max_tokens": TOKENS, "ignore_eos": True, **options}
        whole = (await run(engine, **options)).only
        for cut in (1, 7, 13, TOKENS - 1):
            assert_same(await resumed(engine, whole, cut, **options), whole)

    async def test_several_choices_are_an_obstacle(self, engine: Engine) -> None:
        assert "choices" in engine.resume_obstacle(pb.SamplingParams(n=2))

    async def test_more_text_than_the_tokens_have_is_refused_by_name(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        with pytest.raises(InvalidRequestError) as caught:
            await run(
                engine,
                max_tokens=TOKENS,
                delivered_token_ids=whole.tokens[:4],
                delivered_text_length=len(whole.text) + 1,
                **GREEDY,
            )
        assert caught.value.field == "resume.delivered_text_length"

    async def test_tokens_after_the_end_are_refused_by_name(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=TOKENS, **GREEDY)).only
        with pytest.raises(InvalidRequestError) as caught:
            await run(engine, max_tokens=4, delivered_token_ids=whole.tokens[:5], **GREEDY)
        assert caught.value.field == "resume.delivered_token_ids"
