"""What the soak test's load asks for."""

from __future__ import annotations

from itertools import islice

from chiron.client.request import build_request
from chiron.requests.validation import check_generate
from tests.soak.asks import Ask, Rates, Way, asks

MODELS = ["m", "n"]


def first(count: int, seed: int = 1, rates: Rates | None = None) -> list[Ask]:
    return list(islice(asks(seed, MODELS, rates or Rates()), count))


def test_the_seed_decides_everything() -> None:
    assert first(200) == first(200)
    assert first(200) != first(200, seed=2)


def test_they_come_in_order_at_the_rate_that_was_asked_for() -> None:
    made = first(3000, rates=Rates(interactive=6.0, batch=3.0))
    times = [ask.at_s for ask in made]
    assert times == sorted(times)
    assert 8.0 < len(made) / times[-1] < 10.0
    batch = sum(ask.options.get("request_class") == "batch" for ask in made)
    assert 0.28 < batch / len(made) < 0.39


def test_no_server_would_refuse_one_for_what_it_asks() -> None:
    for ask in first(1000):
        assert check_generate(build_request(**ask.options)) == [], ask


def test_the_mix_has_everything_that_a_fault_may_break() -> None:
    made = first(1000)
    assert {ask.way for ask in made} == set(Way)
    assert {ask.options["model"] for ask in made} == set(MODELS)
    assert len({ask.options.get("request_id") for ask in made}) == len(made)
    lengths = [ask.options["max_tokens"] or 0 for ask in made]
    for kind in (
        [ask for ask in made if ask.whole],
        [ask for ask in made if ask.cancel_after is not None],
        [ask for ask in made if ask.stop_at is not None],
        [ask for ask in made if "messages" in ask.options],
        [ask for ask in made if "prompt" in ask.options],
        [ask for ask in made if "seed" in ask.options and ask.resumable],
        [ask for ask in made if ask.options.get("n") == 2 and not ask.resumable],
        [length for length in lengths if length <= 40],
        [length for length in lengths if length >= 150],
    ):
        assert len(kind) >= 20


def test_whoever_gives_up_does_so_before_the_end_and_reads_a_stream() -> None:
    for ask in first(500):
        if ask.cancel_after is not None:
            assert not ask.whole
            assert 0 <= ask.cancel_after <= (ask.options["max_tokens"] or 0)
