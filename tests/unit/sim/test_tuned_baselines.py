"""What is tuned of each baseline: every candidate is one that the policy takes."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.sim.baselines.llumnix import FreenessThresholds
from chiron.sim.tuned import LLUMNIX, TUNABLE, tuned
from chiron.sim.tuning import Aim, Search
from tests.support.sim_worlds import world

MODELS = world(model={"max_batch_size": 1024}).models


def around(search: Search) -> list[dict[str, float]]:
    """The candidates that a search begins with, and their neighbours."""
    assert search.neighbours is not None
    found = [dict(each) for each in search.candidates]
    return found + [dict(near) for each in search.candidates for near in search.neighbours(each)]


@pytest.mark.parametrize("autoscaler", TUNABLE)
def test_the_policy_takes_every_candidate(autoscaler: str) -> None:
    search = tuned(autoscaler, MODELS)

    for parameters in around(search):
        made = search.choose(parameters).make()
        assert made.limits.batch_size == parameters["batch_size"]
        made.settings(dataclasses.replace(world(), models=MODELS))


def test_the_published_thresholds_of_llumnix_are_the_first_candidate() -> None:
    search = tuned(LLUMNIX, MODELS)
    first = search.choose(search.candidates[0]).make()

    assert first.autoscaler_settings == FreenessThresholds()
    assert first.limits.batch_size == 256
    assert first.migration is not None
    assert first.parts.priorities


def test_thresholds_never_cross() -> None:
    for parameters in around(tuned("llumnix", MODELS)):
        assert parameters["out_below"] < parameters["in_above"]


def test_batch_sizes_are_within_the_models() -> None:
    small = world(model={"max_batch_size": 100}).models

    assert max(each["batch_size"] for each in around(tuned("llumnix", small))) == 64
    assert max(each["batch_size"] for each in around(tuned("llumnix", MODELS))) == 1024


def test_variants_are_tuned_like_the_baseline_that_they_are_of() -> None:
    variant = tuned("llumnix+preempting", MODELS, aim=Aim.THROUGHPUT, rounds=0)

    assert variant.candidates == tuned("llumnix", MODELS).candidates
    assert variant.choose(variant.candidates[0]).name == "llumnix+preempting"
    assert variant.neighbours is None


def test_a_policy_of_which_nothing_is_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match="'fixed'"):
        tuned("fixed", MODELS)
