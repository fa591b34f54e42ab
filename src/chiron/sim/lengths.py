"""How long prompts and outputs are: lognormal as in ShareGPT, and models fitted to two Azure traces.

Sources:
- ShareGPT: means of 161 prompt and 338 output tokens, as published for OPT's tokenizer in Kwon et al.,
  "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP 2023), section 6;
  lognormal with sigma 1.0 is an assumption of this project.
- Azure: Azure Public Dataset, LLM inference trace 2023 (CC-BY), described in Patel et al., "Splitwise:
  Efficient Generative LLM Inference Using Phase Splitting" (ISCA 2024). No row of it is carried here, only
  the parameters that `tools/fit_lengths.py` fits (chiron.sim.azure_lengths).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chiron.sim import azure_lengths

Lengths = NDArray[np.int32]


class LengthModel(Protocol):
    """A joint distribution of prompt and output lengths."""

    def sample(self, generator: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
        """Draws prompt and output lengths in tokens, all >= 1."""
        ...


LONGEST = 10_000_000
"""Tokens that a mean length may have at most."""


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Independent lognormal lengths, rounded to whole tokens, at least 1. Raises ValueError by field.

    With sigma s, a mean m belongs to exp(N(ln m - s²/2, s²)).
    """

    prompt_mean: float
    """Tokens, >= 1."""
    output_mean: float
    """Tokens, >= 1."""
    sigma: float = 1.0
    """Standard deviation of the logarithm, of both; 0: every request has the mean lengths."""

    def __post_init__(self) -> None:
        for key in ("prompt_mean", "output_mean"):
            if not 1 <= getattr(self, key) <= LONGEST:
                raise ValueError(f"{key}: must be from 1 to {LONGEST:,} tokens, not {getattr(self, key):g}")
        if not 0 <= self.sigma <= 4:
            raise ValueError(f"sigma: must be from 0 to 4, not {self.sigma:g}")

    def sample(self, generator: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
        """See `LengthModel.sample`."""
        return self._draw(generator, self.prompt_mean, count), self._draw(generator, self.output_mean, count)

    def _draw(self, generator: np.random.Generator, mean: float, count: int) -> Lengths:
        drawn = generator.lognormal(math.log(mean) - self.sigma**2 / 2, self.sigma, count)
        return whole_tokens(drawn)


@dataclass(frozen=True, slots=True)
class QuantileLengths:
    """Lengths by their quantile functions, with a Gaussian copula between prompt and output.

    Between knots the logarithm of the length is linear in the probability.
    """

    prompt: tuple[tuple[float, float], ...]
    """(probability, tokens), both ascending, probabilities from 0 to 1."""
    output: tuple[tuple[float, float], ...]
    correlation: float
    """Of the two normal variables behind the lengths, -1 to 1."""

    def sample(self, generator: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
        """See `LengthModel.sample`."""
        first = generator.standard_normal(count)
        second = generator.standard_normal(count)
        second = self.correlation * first + math.sqrt(1 - self.correlation**2) * second
        return quantile(self.prompt, _normal_cdf(first)), quantile(self.output, _normal_cdf(second))


def quantile(knots: tuple[tuple[float, float], ...], probability: NDArray[np.float64]) -> Lengths:
    """Lengths in whole tokens at these probabilities."""
    at, tokens = np.array(knots).T
    return whole_tokens(np.exp(np.interp(probability, at, np.log(tokens))))


def whole_tokens(lengths: NDArray[np.float64]) -> Lengths:
    """Rounded, at least 1, and no longer than a billion, which no context holds."""
    return np.clip(np.rint(lengths), 1, 1e9).astype(np.int32)


def _normal_cdf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal distribution function, off by less than 7.5e-8 (Abramowitz and Stegun, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(values))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi) * series
    return np.asarray(np.where(values >= 0, 1 - upper, upper), dtype=np.float64)


SHAREGPT = Lognormal(prompt_mean=161.0, output_mean=338.0, sigma=1.0)

AZURE_CONV = QuantileLengths(
    azure_lengths.CONV_PROMPT, azure_lengths.CONV_OUTPUT, azure_lengths.CONV_CORRELATION
)

AZURE_CODE = QuantileLengths(
    azure_lengths.CODE_PROMPT, azure_lengths.CODE_OUTPUT, azure_lengths.CODE_CORRELATION
)

LENGTH_MODELS: dict[str, LengthModel] = {
    "sharegpt": SHAREGPT,
    "azure-conv": AZURE_CONV,
    "azure-code": AZURE_CODE,
}
"""By the names that scenarios use."""
