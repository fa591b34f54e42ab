"""Length models: the moments they are said to have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chiron.sim.lengths import AZURE_CODE, AZURE_CONV, SHAREGPT, Lognormal, QuantileLengths, quantile

SAMPLES = 200_000


def test_sharegpt_has_the_published_means_and_sigma_one() -> None:
    prompt, output = SHAREGPT.sample(np.random.default_rng(1), SAMPLES)

    # A lognormal with sigma 1 has a coefficient of variation of sqrt(e - 1).
    tolerance = 5 * math.sqrt(math.e - 1) / math.sqrt(SAMPLES)
    assert prompt.mean() == pytest.approx(161.0, rel=tolerance)
    assert output.mean() == pytest.approx(338.0, rel=tolerance)
    # The standard deviation of a sample's deviation is 1/sqrt(2n); rounding adds less than that again.
    assert np.log(output).std() == pytest.approx(1.0, abs=10 / math.sqrt(2 * SAMPLES))
    assert prompt.min() >= 1
    assert prompt.dtype == output.dtype == np.int32


def test_prompt_and_output_of_a_lognormal_are_independent() -> None:
    prompt, output = SHAREGPT.sample(np.random.default_rng(2), SAMPLES)

    assert abs(np.corrcoef(np.log(prompt), np.log(output))[0, 1]) < 5 / math.sqrt(SAMPLES)


def test_sigma_zero_gives_every_request_the_mean() -> None:
    prompt, output = Lognormal(100.0, 7.0, sigma=0.0).sample(np.random.default_rng(0), 10)

    assert prompt.tolist() == [100] * 10
    assert output.tolist() == [7] * 10


@pytest.mark.parametrize(
    ("model", "prompt_mean", "output_mean"),
    [(AZURE_CONV, 1154.7, 211.1), (AZURE_CODE, 2047.8, 27.9)],
)
def test_the_azure_models_have_the_traces_means(
    model: QuantileLengths, prompt_mean: float, output_mean: float
) -> None:
    prompt, output = model.sample(np.random.default_rng(3), SAMPLES)

    for drawn, mean in ((prompt, prompt_mean), (output, output_mean)):
        sampling = 5 * drawn.std() / drawn.mean() / math.sqrt(SAMPLES)
        assert drawn.mean() == pytest.approx(mean, rel=0.004 + sampling)


def test_a_quantile_function_is_geometric_between_its_knots() -> None:
    knots = ((0.0, 1.0), (0.5, 100.0), (1.0, 10_000.0))

    assert quantile(knots, np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [1, 10, 100, 1000, 10_000]


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.8])
def test_the_copula_has_its_correlation(correlation: float) -> None:
    # With log-uniform lengths the rank correlation of a Gaussian copula is 6/pi asin(rho/2).
    knots = ((0.0, 1.0), (1.0, 1e6))
    prompt, output = QuantileLengths(knots, knots, correlation).sample(np.random.default_rng(4), SAMPLES)

    expected = 6 / math.pi * math.asin(correlation / 2)
    assert np.corrcoef(np.log(prompt), np.log(output))[0, 1] == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((0.5, 10.0, 1.0), "prompt_mean"), ((10.0, math.inf, 1.0), "output_mean"), ((1.0, 1.0, -1.0), "sigma")],
)
def test_a_bad_parameter_is_named(arguments: tuple[float, float, float], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        Lognormal(*arguments)
