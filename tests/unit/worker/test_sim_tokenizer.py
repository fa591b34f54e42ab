"""The sim tokenizer: reversible for every text, and never half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engines.sim.tokenizer import Detokenizer, decode, encode
from services.worker.engines.sim.vocabulary import EOS, FIRST_BYTE, SIZE, TEXTS

PROSE = (
    "Chiron serves large language models on a cluster of machines. Each request carries a promise "
    "about time, and the system keeps it with as few machines as it can."
)


@given(st.text())
def test_every_text_survives_the_round_trip(text: str) -> None:
    tokens = encode(text)
    assert decode(tokens) == text
    assert all(EOS < token < SIZE for token in tokens)


@given(st.text())
def test_incremental_text_is_whole_characters_and_adds_up(text: str) -> None:
    detokenizer = Detokenizer()
    pieces = [detokenizer.add(token) for token in encode(text)]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


@given(st.lists(st.integers(FIRST_BYTE, SIZE - 1)))
def test_any_tokens_stream_as_they_decode(tokens: list[int]) -> None:
    detokenizer = Detokenizer()
    assert "".join([*(detokenizer.add(token) for token in tokens), detokenizer.flush()]) == decode(tokens)


def test_a_character_comes_out_with_its_last_byte() -> None:
    detokenizer = Detokenizer()
    assert [detokenizer.add(FIRST_BYTE + byte) for byte in "🌊".encode()] == ["", "", "", "🌊"]


def test_common_words_are_one_token_with_their_space() -> None:
    assert len(encode(" the quiet river")) == 3


def test_english_takes_about_four_characters_a_token() -> None:
    assert 3.0 < len(PROSE) / len(encode(PROSE)) < 6.0


def test_special_tokens_show_only_on_request() -> None:
    assert Detokenizer().add(EOS) == ""
    assert Detokenizer(keep_special=True).add(EOS) == "<|eos|>"
    assert EOS not in encode("<|eos|>"), "text cannot smuggle a special token in"


def test_the_first_ids_stay_where_they_are() -> None:
    # Stored token ids would change their meaning otherwise.
    assert [TEXTS[token] for token in (16 + ord("A"), 272, 273)] == ["A", " the", " a"]
