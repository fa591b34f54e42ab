"""What the sim engine writes: a pure function of all tokens before, ended as the parameters say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, InvalidRequestError
from services.worker.engines.sim import language
from services.worker.engines.sim.choice import Choice
from services.worker.engines.sim.sampling import Sampler
from services.worker.engines.sim.tokenizer import decode, encode
from services.worker.engines.sim.vocabulary import EOS

PROMPT = encode("Tell me about the sea.")


def write(prompt: list[int] = PROMPT, *, salt: int = 0, seed: int = 0, **params: Any) -> ChoiceDelta:
    params.setdefault("max_tokens", 2000)
    state = language.absorb_all(salt, prompt)
    return Choice(0, pb.SamplingParams(**params), prompt, state, seed).emit(params["max_tokens"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_continuation_writes_the_same_text(temperature: float) -> None:
    whole = list(write(temperature=temperature, seed=3).token_ids)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        rest = write(PROMPT + whole[:cut], temperature=temperature, seed=3).token_ids
        assert whole[:cut] + list(rest) == whole


def test_greedy_ignores_the_seed_and_sampling_does_not() -> None:
    assert write(temperature=0.0, seed=1).token_ids == write(temperature=0.0, seed=2).token_ids
    assert write(temperature=1.0, seed=1).token_ids != write(temperature=1.0, seed=2).token_ids


def test_other_weights_write_other_text() -> None:
    assert write(temperature=0.0, salt=1).text != write(temperature=0.0, salt=2).text


def test_lengths_are_about_two_hundred_tokens_on_average() -> None:
    lengths = [len(write(encode(f"prompt {index}"), max_tokens=4000).token_ids) for index in range(500)]
    # A geometric length has a deviation equal to its mean: the mean of 500 is within 4 of its own deviations.
    assert abs(sum(lengths) / 500 - language.MEAN_LENGTH) < 4 * language.MEAN_LENGTH / math.sqrt(500)


def test_the_end_of_sequence_is_a_token_without_text() -> None:
    delta = write()
    assert delta.token_ids[-1] == EOS
    assert (delta.finish_reason, delta.stop_match) == (pb.FINISH_REASON_STOP, "")
    assert delta.text_ends[-1] == delta.text_ends[-2] == len(delta.text)


def test_ignore_eos_and_min_tokens_outlast_the_end_of_sequence() -> None:
    ended = len(write(max_tokens=4000).token_ids)
    assert len(write(max_tokens=4000, ignore_eos=True).token_ids) == 4000
    assert len(write(max_tokens=4000, min_tokens=ended + 10).token_ids) >= ended + 10


def test_a_stop_string_split_over_tokens_is_found() -> None:
    text = write(max_tokens=60, temperature=0.0).text
    word = text.split()[20]
    stop = text[text.index(word) + len(word) - 1 :][:4]
    delta = write(max_tokens=60, temperature=0.0, stop=[stop])
    assert delta.text == text[: text.index(stop)]
    assert delta.stop_match == stop


def test_repetition_is_punished() -> None:
    plain = write(max_tokens=400, temperature=0.0, ignore_eos=True)
    varied = write(max_tokens=400, temperature=0.0, ignore_eos=True, frequency_penalty=2.0)
    assert len(set(varied.token_ids)) > len(set(plain.token_ids))
    careful = write(max_tokens=400, temperature=0.0, ignore_eos=True, repetition_penalty=3.0)
    assert len(set(careful.token_ids)) > len(set(plain.token_ids))


def test_top_k_of_one_is_greedy() -> None:
    greedy = write(max_tokens=50, temperature=0.0).token_ids
    assert write(max_tokens=50, temperature=1.0, top_k=1, seed=9).token_ids == greedy
    assert write(max_tokens=50, temperature=1.0, top_p=1e-6, seed=9).token_ids == greedy
    assert write(max_tokens=50, temperature=1.0, min_p=1.0, seed=9).token_ids == greedy


def test_sampled_ranks_follow_their_probabilities() -> None:
    sampler = Sampler(pb.SamplingParams(max_tokens=1, ignore_eos=True), 0, PROMPT)
    ranks = [sampler.pick(language.mix(index), PROMPT[-1], 0).rank for index in range(20_000)]
    for rank in (1, 2, 5):
        expected = math.exp(language.LOGITS[rank - 1])
        deviation = math.sqrt(expected * (1 - expected) / 20_000)
        assert abs(ranks.count(rank) / 20_000 - expected) < 5 * deviation


def test_probabilities_of_the_candidates_add_up_to_one() -> None:
    assert math.fsum(map(math.exp, language.LOGITS)) == pytest.approx(1.0)


def test_candidates_differ_at_every_state() -> None:
    for index in range(2000):
        state = language.mix(index)
        last = language.candidate(state, PROMPT[-1], 0)
        found = language.candidates(language.absorb(state, last), last)
        assert len(set(found)) == language.CANDIDATES


def test_bias_can_force_any_token_even_the_end() -> None:
    assert write(max_tokens=3, temperature=1.0, logit_bias={EOS: 100.0}).token_ids == [EOS]
    byte = encode("~")[0]
    assert write(max_tokens=3, temperature=1.0, logit_bias={byte: 100.0}).text == "~~~"


def test_half_a_character_is_not_shown_until_the_end() -> None:
    first_byte = encode("🌊")[0]
    delta = write(max_tokens=2, temperature=0.0, logit_bias={first_byte: 100.0})
    # The second byte shows that the first was no character; the end shows the same of the second.
    assert list(delta.text_ends) == [0, 2]
    assert delta.text == decode([first_byte, first_byte])


def test_a_choice_is_written_whole_and_stops() -> None:
    values = ["blue", "green as grass"]
    constraint = pb.StructuredOutput(choice=pb.StringList(values=values))
    delta = write(temperature=0.0, structured_output=constraint)
    assert delta.text in values
    assert delta.finish_reason == pb.FINISH_REASON_STOP
    seeds = {write(structured_output=constraint, seed=seed).text for seed in range(30)}
    assert seeds == set(values)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("sampling.structured_output.grammar", {"structured_output": pb.StructuredOutput(grammar="g")}),
        (
            "sampling.min_tokens",
            {"structured_output": pb.StructuredOutput(json_object=True), "min_tokens": 100},
        ),
        (
            "sampling.logit_bias",
            {"structured_output": pb.StructuredOutput(json_object=True), "logit_bias": {5: 1.0}},
        ),
    ],
)
def test_what_a_constraint_cannot_do_is_refused_by_name(field: str, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        write(**params)
    assert caught.value.field == field
