"""Fits the quantile length model to an Azure LLM inference trace and prints it as Python, with its error.

python tools/fit_lengths.py AzureLLMInferenceTrace_conv.csv --name CONV

The knots of each quantile function are the best choice of so many out of a grid of quantiles (dynamic
programming), by the sum of squared errors of the length over its mean and of its logarithm: the first keeps
the tokens, the second the short lengths. The copula's correlation is the one at which the mean of prompt
times output, which attention reads, is the trace's. Errors are taken from a million samples.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chiron.sim.lengths import Lengths, QuantileLengths
from chiron.sim.traces import read_trace

KNOTS = 24
GRID = 240
SAMPLES = 1_000_000


def main() -> None:
    """Prints the fit of one trace."""
    parser = argparse.ArgumentParser(description="Fit the quantile length model to an Azure trace.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--name", default="CONV", help="prefix of the constants")
    options = parser.parse_args()
    trace = read_trace(options.csv, "azure", strict=True)
    prompt, output = trace.prompt_tokens, trace.output_tokens
    model = correlated(QuantileLengths(knots(prompt), knots(output), 0.0), mean_product(prompt, output))
    drawn = model.sample(np.random.default_rng(1), SAMPLES)
    print(f"# {len(prompt)} requests; errors of {SAMPLES} samples:")
    for what, real, made in (("prompt", prompt, drawn[0]), ("output", output, drawn[1])):
        share = made.mean() / real.mean() - 1
        print(f"#   {what}: mean {real.mean():.1f} {share:+.2%}, largest gap {gap(real, made):.3f}")
    print(f"#   prompt x output: mean {mean_product(*drawn) / mean_product(prompt, output) - 1:+.2%}")
    print(f"{options.name}_PROMPT = {literal(model.prompt)}")
    print(f"{options.name}_OUTPUT = {literal(model.output)}")
    print(f"{options.name}_CORRELATION = {model.correlation}")


def gap(one: Lengths, other: Lengths) -> float:
    """Kolmogorov-Smirnov distance: the largest difference between two distribution functions."""
    grid = np.union1d(one, other)
    shares = [np.searchsorted(np.sort(each), grid, side="right") / len(each) for each in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def mean_product(prompt: Lengths, output: Lengths) -> float:
    """Mean of prompt times output."""
    return float((prompt * output.astype(np.float64)).mean())


def knots(lengths: Lengths) -> tuple[tuple[float, float], ...]:
    """(probability, tokens) of a quantile function."""
    values = np.sort(lengths).astype(np.float64)
    tail = 1 - 0.5 ** np.arange(8, 14)
    at = np.unique(np.concatenate((np.linspace(0, 1, GRID + 1), tail, 1 - tail)))
    tokens = np.quantile(values, at)
    # Each grid point stands for the probability between the middles of the spans on its two sides.
    weight = np.gradient(at)
    chosen = _best(at, tokens, weight)
    return tuple((round(float(at[index]), 5), round(float(tokens[index]), 1)) for index in chosen)


def _best(at: NDArray[np.float64], tokens: NDArray[np.float64], weight: NDArray[np.float64]) -> list[int]:
    size, mean = len(at), float((tokens * weight).sum())
    cost = np.full((size, size), np.inf)
    for low in range(size):
        for high in range(low + 1, size):
            inside = slice(low, high + 1)
            line = np.interp(at[inside], at[[low, high]], np.log(tokens[[low, high]]))
            apart = (np.exp(line) - tokens[inside]) / mean
            cost[low, high] = (weight[inside] * (apart**2 + (line - np.log(tokens[inside])) ** 2)).sum()
    best = cost[0].copy()
    came_from = []
    for _ in range(KNOTS - 2):
        total = best[:, None] + cost
        came_from.append(total.argmin(axis=0))
        best = total.min(axis=0)
    path = [size - 1]
    for choice in reversed(came_from):
        path.append(int(choice[path[-1]]))
    return [0, *reversed(path)]


def correlated(model: QuantileLengths, product: float) -> QuantileLengths:
    """The model with the correlation at which the mean of prompt times output is `product`."""
    low, high = -0.99, 0.99
    while high - low > 1e-4:
        middle = replace(model, correlation=(low + high) / 2)
        drawn = middle.sample(np.random.default_rng(0), SAMPLES)
        low, high = (
            (low, middle.correlation) if mean_product(*drawn) > product else (middle.correlation, high)
        )
    return replace(model, correlation=round((low + high) / 2, 3))


def literal(points: tuple[tuple[float, float], ...]) -> str:
    """As Python."""
    return "(" + ", ".join(f"({probability:g}, {tokens:g})" for probability, tokens in points) + ")"


if __name__ == "__main__":
    main()
