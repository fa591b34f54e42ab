"""What every engine must do with a request: the stream, its end, sampling and input."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, InvalidRequestError
from tests.conformance.engine_reading import (
    ABORT,
    GREEDY,
    LENGTH,
    STOP,
    Reading,
    drain,
    idle,
    long_prompt,
    make_request,
    run,
)


class OutputSuite:
    """Part of `EngineSuite`, which holds the fixtures."""

    async def test_info_states_what_the_engine_holds(self, engine: Engine) -> None:
        info, stats = engine.info, engine.stats()
        assert info.max_context_tokens >= 1024
        assert info.kv_capacity_tokens >= info.max_context_tokens
        assert 4 <= stats.batch_size <= info.max_batch_size
        assert 512 <= stats.step_token_budget <= info.max_step_token_budget
        assert info.vocabulary_size > 256

    async def test_output_is_streamed_with_consistent_offsets(self, engine: Engine) -> None:
        reading = await run(engine, max_tokens=40, **GREEDY)  # `Reading.add` checks the offsets
        assert len(reading.outputs) > 1
        assert len(reading.only.tokens) == 40
        assert all(0 <= token < engine.info.vocabulary_size for token in reading.only.tokens)
        assert reading.only.text

    async def test_max_tokens_ends_with_length(self, engine: Engine) -> None:
        reading = await run(engine, max_tokens=1, **GREEDY)
        assert (len(reading.only.tokens), reading.only.finish) == (1, LENGTH)

    async def test_greedy_output_repeats_and_ignores_the_seed(self, engine: Engine) -> None:
        first = await run(engine, max_tokens=32, **GREEDY)
        second = await run(engine, max_tokens=32, seed=99, **GREEDY)
        assert (first.only.tokens, first.only.text) == (second.only.tokens, second.only.text)

    async def test_a_continuation_of_prompt_and_output_is_the_same_output(self, engine: Engine) -> None:
        prompt = list(make_request(engine).prompt_token_ids)
        whole = (await run(engine, prompt, max_tokens=32, **GREEDY)).only.tokens
        rest = (await run(engine, prompt + whole[:12], max_tokens=20, **GREEDY)).only.tokens
        assert whole[:12] + rest == whole

    async def test_the_same_seed_repeats_and_another_differs(self, engine: Engine) -> None:
        options = {"max_tokens": 48, "temperature": 1.0, "ignore_eos": True}
        first, again, other = [(await run(engine, seed=seed, **options)).only for seed in (5, 5, 6)]
        assert first.tokens == again.tokens
        assert first.tokens != other.tokens

    async def test_choice_i_uses_seed_plus_i(self, engine: Engine) -> None:
        options = {"max_tokens": 24, "temperature": 1.0, "ignore_eos": True}
        several = (await run(engine, n=3, seed=7, **options)).choices
        alone = [(await run(engine, seed=7 + index, **options)).only.tokens for index in range(3)]
        assert [several[index].tokens for index in range(3)] == alone

    async def test_a_stop_string_ends_the_text_before_it(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=48, **GREEDY)).only.text
        stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
        choice = (await run(engine, max_tokens=48, stop=["never-in-the-text", stop], **GREEDY)).only
        assert choice.text == whole[: whole.index(stop)]
        assert (choice.finish, choice.stop_match) == (STOP, stop)

    async def test_a_stop_string_is_kept_on_request(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=48, **GREEDY)).only.text
        stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
        choice = (await run(engine, max_tokens=48, stop=[stop], include_stop=True, **GREEDY)).only
        assert choice.text == whole[: whole.index(stop) + len(stop)]

    async def test_text_held_back_for_a_stop_string_is_released_at_the_end(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=32, **GREEDY)).only.text
        choice = (await run(engine, max_tokens=32, stop=[whole[-3:] + "\x00"], **GREEDY)).only
        assert (choice.text, choice.finish) == (whole, LENGTH)

    async def test_a_stop_token_ends_the_choice(self, engine: Engine) -> None:
        whole = (await run(engine, max_tokens=32, **GREEDY)).only.tokens
        stop = whole[16]
        choice = (await run(engine, max_tokens=32, stop_token_ids=[stop], **GREEDY)).only
        assert choice.tokens == whole[: whole.index(stop) + 1]
        assert choice.finish == STOP

    async def test_min_tokens_outlasts_a_stop_token(self, engine: Engine) -> None:
        (first,) = (await run(engine, max_tokens=1, **GREEDY)).only.tokens
        options = {"max_tokens": 16, "stop_token_ids": [first], **GREEDY}
        assert len((await run(engine, **options)).only.tokens) == 1
        assert len((await run(engine, min_tokens=6, **options)).only.tokens) >= 6

    async def test_abort_ends_the_stream_and_frees_the_slot(self, engine: Engine) -> None:
        request = make_request(engine, max_tokens=900, **GREEDY)
        stream = engine.generate(request)
        reading = Reading()
        reading.add(await anext(stream))
        await engine.abort(request.request_id)
        await drain(stream, reading)
        assert reading.only.finish == ABORT
        assert len(reading.only.tokens) < 900
        await idle(engine)

    async def test_abort_of_an_unknown_request_does_nothing(self, engine: Engine) -> None:
        await engine.abort("nobody")

    async def test_a_cancelled_reader_frees_the_slot(self, engine: Engine) -> None:
        started = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(make_request(engine, max_tokens=900, **GREEDY)):
                started.set()

        reader = asyncio.create_task(read())
        await started.wait()
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        await idle(engine)
        assert engine.stats().kv_usage < 1

    async def test_a_slow_reader_delays_nobody_and_loses_nothing(self, engine: Engine) -> None:
        expected = (await run(engine, max_tokens=64, **GREEDY)).only
        stream = engine.generate(make_request(engine, max_tokens=64, **GREEDY))
        reading = Reading()
        reading.add(await anext(stream))
        await run(engine, "Somebody else.", max_tokens=64, **GREEDY)
        await idle(engine)  # the engine finished both although the reader took one output
        await drain(stream, reading)
        assert (reading.only.tokens, reading.only.text) == (expected.tokens, expected.text)
        assert len(reading.outputs) <= 3, "what waited was merged"

    async def test_logprobs_come_one_per_token_and_sorted(self, engine: Engine) -> None:
        choice = (await run(engine, max_tokens=12, logprobs=3, **GREEDY)).only
        assert len(choice.logprobs) == 12
        for token, logprob in zip(choice.tokens, choice.logprobs, strict=True):
            values = [alternative.logprob for alternative in logprob.alternatives]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert (logprob.rank, logprob.alternatives[0].token_id) == (1, token)
            assert logprob.logprob == values[0] <= 0

    async def test_logprobs_zero_is_the_sampled_token_alone(self, engine: Engine) -> None:
        choice = (await run(engine, max_tokens=4, logprobs=0, **GREEDY)).only
        assert [len(logprob.alternatives) for logprob in choice.logprobs] == [0] * 4
        assert all(logprob.logprob <= 0 for logprob in choice.logprobs)

    async def test_no_logprobs_without_asking(self, engine: Engine) -> None:
        assert (await run(engine, max_tokens=4, **GREEDY)).only.logprobs == []

    async def test_logit_bias_forces_and_forbids(self, engine: Engine) -> None:
        (first,) = (await run(engine, max_tokens=1, **GREEDY)).only.tokens
        other = first + 1 if first + 1 < engine.info.vocabulary_size else first - 1
        forced = (await run(engine, max_tokens=3, logit_bias={other: 100.0}, **GREEDY)).only
        assert forced.tokens == [other] * 3
        forbidden = (await run(engine, max_tokens=8, logit_bias={first: -100.0}, **GREEDY)).only
        assert first not in forbidden.tokens

    async def test_a_choice_constrains_the_output(self, engine: Engine) -> None:
        values = ["blue as the sea", "green", "red"]
        constraint = pb.StructuredOutput(choice=pb.StringList(values=values))
        choice = (await run(engine, max_tokens=64, temperature=0.0, structured_output=constraint)).only
        assert choice.text in values
        assert choice.finish == STOP

    @pytest.mark.parametrize(
        ("constraint", "allowed"),
        [({"regex": "(yes|no)"}, {"yes", "no"}), ({"json_schema": '{"enum": ["red"]}'}, {'"red"'})],
    )
    async def test_other_constraints_are_kept_or_refused_by_name(
        self, engine: Engine, constraint: dict[str, str], allowed: set[str]
    ) -> None:
        output = pb.StructuredOutput(**constraint)
        (kind,) = constraint
        refused = ""
        try:
            choice = (await run(engine, max_tokens=64, temperature=0.0, structured_output=output)).only
        except InvalidRequestError as error:
            refused = error.field
        if refused:
            assert refused == f"sampling.structured_output.{kind}"
        else:
            assert choice.text in allowed

    async def test_text_becomes_token_ids_and_ids_pass_through(self, engine: Engine) -> None:
        ids = list(make_request(engine, "Hello, world.").prompt_token_ids)
        assert ids
        assert list(make_request(engine, ids).prompt_token_ids) == ids

    async def test_chat_messages_become_a_prompt(self, engine: Engine) -> None:
        def tokens(content: str) -> list[int]:
            message = pb.ChatMessage(role="user", content=content)
            return list(engine.tokenize(pb.GenerateRequest(model="m", chat=pb.ChatInput(messages=[message]))))

        assert tokens("Hello") != tokens("Goodbye")
        plain = list(make_request(engine, "Hello").prompt_token_ids)
        assert len(tokens("Hello")) > len(plain), "the template adds the roles"
        assert (await run(engine, tokens("Hello"), max_tokens=4, **GREEDY)).only.tokens

    async def test_bad_input_names_its_field(self, engine: Engine) -> None:
        beyond = engine.info.vocabulary_size
        bad: list[tuple[str, pb.GenerateRequest]] = [
            ("prompt", pb.GenerateRequest(prompt="")),
            ("prompt_token_ids", pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[]))),
            ("prompt_token_ids", pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=[beyond]))),
        ]
        for field, request in bad:
            with pytest.raises(InvalidRequestError) as caught:
                engine.tokenize(request)
            assert caught.value.field == field

    @pytest.mark.parametrize("field", ["sampling.logit_bias", "sampling.stop_token_ids", "adapter"])
    async def test_a_bad_request_names_its_field_before_any_output(self, engine: Engine, field: str) -> None:
        beyond = engine.info.vocabulary_size
        options: dict[str, dict[str, object]] = {
            "sampling.logit_bias": {"logit_bias": {beyond: 1.0}},
            "sampling.stop_token_ids": {"stop_token_ids": [beyond]},
            "adapter": {"adapter": "nobody-has-this-one"},
        }
        with pytest.raises(InvalidRequestError) as caught:
            await run(engine, max_tokens=4, **options[field])
        assert caught.value.field == field

    async def test_a_repeated_prompt_comes_from_the_cache(self, engine: Engine) -> None:
        prompt = long_prompt(engine, "cache")
        first = await run(engine, prompt, max_tokens=2, **GREEDY)
        again = await run(engine, prompt, max_tokens=2, **GREEDY)
        assert first.outputs[-1].cached_prompt_tokens == 0
        assert 0 < again.outputs[-1].cached_prompt_tokens < len(prompt)
        assert again.only.tokens == first.only.tokens
