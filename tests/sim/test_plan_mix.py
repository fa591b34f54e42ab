"""Which model on which GPUs is the cheapest, where the price can be calculated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chiron.config import ConfigError
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.mix import Mix, mixes, parse_candidates
from chiron.sim.planning.need import Terms
from chiron.sim.planning.source import Source
from chiron.sim.planning.told import mix_sentences
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario, scenario_from
from tests.support.clockwork import clockwork_document


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """toy@small, and toy@big, which is twice as fast; both in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text('name = "toy@small"\nlike = "toy"\n', encoding="utf-8")
    Path("big.toml").write_text(
        'name = "toy@big"\nlike = "toy"\nstep_time_factor = 0.5\nkv_read_bytes_per_s = 2e12\n',
        encoding="utf-8",
    )
    Path("tiny.toml").write_text(
        'name = "toy@small"\nlike = "toy"\nkv_capacity_tokens = 1600\n', encoding="utf-8"
    )
    Path("plain.toml").write_text('name = "toy"\nlike = "toy"\n', encoding="utf-8")


def two_types(small: float | None, big: float | None, **changes: Any) -> Scenario:
    document = clockwork_document(12) | changes
    prices = {"small": small, "big": big}
    document["cluster"] = {
        "gpus": [
            {"name": name, "nodes": 4, "gpus_per_node": 1}
            | ({} if price is None else {"price_per_gpu_hour": price})
            for name, price in prices.items()
        ]
    }
    return scenario_from(document, Path("mix.toml"))


def found(scenario: Scenario, texts: Sequence[str], most_gpus: int = 0) -> list[Mix]:
    candidates = parse_candidates(texts, scenario)
    terms = Terms(seeds=(1,), most_gpus=most_gpus)
    with Crew(jobs=1) as crew:
        return mixes(Source(scenario), PolicyChoice(), terms, crew, candidates)


@pytest.mark.usefixtures("profiles")
def test_the_price_decides_between_more_small_ones_and_fewer_big_ones() -> None:
    # 2.4 requests at once on small ones, 1.2 on big ones: 3 or 2 GPUs.
    cheap_big = found(two_types(2.0, 2.5), ["m=small.toml,big.toml"])
    cheap_small = found(two_types(2.0, 3.5), ["m=small.toml,big.toml"])

    assert [(mix.profiles["m"], mix.price_per_hour) for mix in cheap_big] == [
        ("toy@big", 5.0),
        ("toy@small", 6.0),
    ]
    assert [(mix.profiles["m"], mix.price_per_hour) for mix in cheap_small] == [
        ("toy@small", 6.0),
        ("toy@big", 7.0),
    ]
    told = mix_sentences(cheap_big)
    assert told[0].startswith("The cheapest: m as toy@big: 2 big, 5.00 an hour")
    assert told[1].startswith("Next: m as toy@small: 3 small, 6.00 an hour")


@pytest.mark.usefixtures("profiles")
def test_a_type_that_is_too_dear_by_its_lower_bound_is_not_simulated() -> None:
    first, second = found(two_types(0.001, 1000.0), ["m=big.toml,small.toml"])

    assert (first.profiles["m"], first.searched) == ("toy@small", True)
    assert (second.profiles["m"], second.searched, second.price_per_hour) == ("toy@big", False, None)
    assert second.least_price_per_hour == 1000.0
    assert "1 further cost more by the lower bound" in mix_sentences([first, second])[-1]


@pytest.mark.usefixtures("profiles")
def test_a_type_with_too_few_gpus_comes_last_unless_more_are_tried() -> None:
    document = clockwork_document(30)
    scenario = two_types(1.0, 9.0, traffic=document["traffic"])

    # 6 at once on small ones, of which there are 4; 3 on big ones.
    best, short = found(scenario, ["m=small.toml,big.toml"])
    assert (best.profiles["m"], short.price_per_hour) == ("toy@big", None)
    assert "m as toy@small: 4 small do not attain." in mix_sentences([best, short])
    assert found(scenario, ["m=small.toml,big.toml"], most_gpus=8)[0].profiles["m"] == "toy@small"


@pytest.mark.usefixtures("profiles")
def test_models_on_one_type_share_it_and_a_model_without_candidates_stays() -> None:
    document = clockwork_document(6)
    model = document["models"]["m"] | {"initial": {"mixed": 2}}
    traffic = document["traffic"][0]
    scenario = two_types(
        2.0,
        2.5,
        models={"a": model, "b": model},
        traffic=[traffic | {"model": "a"}, traffic | {"model": "b"}],
    )

    best, other = found(scenario, ["a=small.toml,big.toml"])

    # 1.2 at once of each on small ones, 0.6 of a on a big one; b is on the first type, where it needs 2.
    assert best.profiles == {"a": "toy@big", "b": "toy@small"}
    assert best.price_per_hour == 2.5 + 2 * 2.0
    assert [each.models for each in best.types] == [("a",), ("b",)]
    assert [each.models for each in other.types] == [("a", "b")]
    assert other.price_per_hour == 4 * 2.0


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("m", "must be MODEL=PROFILE,…, not 'm'"),
        ("m=", "must be MODEL=PROFILE,…, not 'm='"),
        ("x=small.toml", "unknown model 'x'; known are m"),
        ("m=gpt@a100", "unknown engine profile 'gpt@a100'"),
        ("m=none.toml", "none.toml: no such file"),
        ("m=plain.toml", "'toy' names no GPU type after an @: is none of"),
        ("m=llama3-8b@a100", "GPU type 'a100' of 'llama3-8b@a100' is none of [[cluster.gpus]]: small, big"),
        ("m=tiny.toml", "'toy@small' holds 1600 tokens, requests to 'm' have up to 4096"),
    ],
)
def test_a_mistake_in_candidates_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_candidates([text], two_types(1.0, 1.0))

    assert told in str(refused.value)


@pytest.mark.usefixtures("profiles")
def test_a_type_without_a_price_is_named_and_so_is_a_model_twice() -> None:
    with pytest.raises(ConfigError, match="--candidates: GPU type 'big' has no price_per_gpu_hour"):
        parse_candidates(["m=small.toml,big.toml"], two_types(1.0, None))
    with pytest.raises(ConfigError, match="--candidates: model 'm' is there twice"):
        parse_candidates(["m=small.toml", "m=big.toml"], two_types(1.0, 1.0))
