"""Which versions of a model may have answered a request, and whether what came is wholly one of them."""

from __future__ import annotations

from chiron.client import Chunk
from tests.soak.ends import End, Reading
from tests.soak.expected import Answer, Written
from tests.soak.transcript import Transcript, fitting
from tests.soak.versions import Versions


def answer(*tokens: int) -> Answer:
    text = "".join(map(str, tokens))
    return Answer((Written(tokens, text, tuple(range(1, len(text) + 1)), "length", ""),), prompt_tokens=3)


OLD, NEW = answer(1, 2, 3), answer(4, 5, 6)


def chunk(index: int, token: int) -> Chunk:
    return Chunk(
        text=str(token),
        token_ids=(token,),
        choice=0,
        first_token_index=index,
        text_ends=(index + 1,),
        logprobs=(),
        finish_reason=None,
        stop_match="",
        usage=None,
        timing=None,
        request_id="r",
        attempts=1,
    )


def judged(*tokens: int) -> Reading | None:
    transcript = Transcript()
    for index, token in enumerate(tokens):
        transcript.add(chunk(index, token))
    found = fitting(transcript, [NEW, OLD], lambda reading: reading.end(None, cancelled=True))
    assert found is None or found[1] is End.CANCELLED
    return found[0] if found else None


def test_a_stream_of_one_version_fits_and_one_of_two_does_not() -> None:
    for right in ((1, 2), (4, 5)):
        reading = judged(*right)
        assert reading is not None
        assert (reading.tokens, reading.faults) == (2, [])
    assert judged(1, 5) is None
    assert judged(4, 5, 3) is None


def test_only_versions_that_could_serve_then_count() -> None:
    versions = Versions({"m": {"seed": 7}, "n": {"seed": 7}})
    assert (versions.live("m"), versions.newest("m")) == ({0}, 0)
    begin = versions.live("m"), versions.newest("m")
    assert versions.since("m", *begin) == [0]

    assert versions.make("m") == 1
    assert versions.live("m") == {0, 1}
    assert versions.since("m", *begin) == [0, 1]
    versions.settled("m", 1)
    assert versions.since("m", versions.live("m"), versions.newest("m")) == [1]
    assert versions.since("m", *begin) == [0, 1], "it may have begun before the roll was over"

    assert versions.make("m") == 2
    versions.settled("m", 1)
    assert versions.live("m") == {1}, "the roll was turned back"
    assert versions.since("n", versions.live("n"), versions.newest("n")) == [0]


def test_each_version_has_weights_of_its_own() -> None:
    versions = Versions({"m": {"seed": 0, "profile": "toy"}, "n": {"seed": 1, "profile": "toy"}})
    for model in versions.models:
        versions.make(model)
        versions.make(model)
    made = [versions.arguments(model, number) for model in "mn" for number in range(3)]
    assert len({one["seed"] for one in made}) == 6
    assert {one["profile"] for one in made} == {"toy"}
