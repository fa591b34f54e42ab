"""Parameters of the length models fitted to the Azure LLM inference traces of 2023.

Source: Azure Public Dataset (CC-BY), described in Patel et al., "Splitwise: Efficient Generative LLM
Inference Using Phase Splitting" (ISCA 2024). `tools/fit_lengths.py` makes these figures from the traces.

Errors of a million samples against the traces (gap: largest difference between distribution functions):

| trace | requests | prompt mean | output mean | mean of prompt x output | prompt gap | output gap |
|---|---|---|---|---|---|---|
| conversation | 19,366 | 1,154.7 (-0.07 %) | 211.1 (+0.29 %) | +0.03 % | 0.032 | 0.009 |
| code | 8,819 | 2,047.8 (-0.13 %) | 27.9 (+0.01 %) | -0.58 % | 0.032 | 0.006 |

The gaps in the prompts come from lengths that many requests share (system prompts), where a difference of a
few tokens moves the distribution function a lot. Order in time and any link to arrivals are not modelled.
"""

from __future__ import annotations

Knots = tuple[tuple[float, float], ...]
"""(probability, tokens)."""

# fmt: off
CONV_PROMPT: Knots = (
    (0, 2), (0.00024, 2), (0.00049, 7), (0.00391, 14), (0.02083, 117), (0.0375, 181), (0.1125, 213),
    (0.12917, 240), (0.14583, 370), (0.36667, 422), (0.39167, 461), (0.4, 703), (0.40833, 847.4),
    (0.44167, 974), (0.725, 1153), (0.82083, 1378), (0.85, 1876.2), (0.90417, 2888), (0.91667, 4005.5),
    (0.99167, 4157), (0.99805, 5652.4), (0.99951, 6640.2), (0.99988, 7493.2), (1, 14050),
)

CONV_OUTPUT: Knots = (
    (0, 7), (0.00012, 10.4), (0.0125, 18), (0.01667, 18), (0.02083, 25), (0.03333, 35), (0.05417, 43),
    (0.1375, 64), (0.2125, 80), (0.4125, 105), (0.46667, 117), (0.6125, 183), (0.65833, 231),
    (0.6625, 254.3), (0.66667, 357), (0.67083, 372), (0.72917, 393), (0.79167, 398), (0.925, 430),
    (0.95417, 459), (0.97917, 536), (0.99609, 659), (0.99805, 918.2), (1, 1000),
)

CONV_CORRELATION: float = -0.148

CODE_PROMPT: Knots = (
    (0, 3), (0.00049, 6), (0.00195, 9), (0.00833, 16), (0.02083, 37), (0.02917, 50), (0.05833, 85),
    (0.075, 102.4), (0.09583, 142), (0.16667, 270), (0.17917, 318), (0.225, 484), (0.2875, 732.2),
    (0.32917, 878.6), (0.55, 1690), (0.78333, 2997.4), (0.84167, 3744.8), (0.89583, 4952.5),
    (0.90417, 5461), (0.94167, 6607.6), (0.94583, 7029), (0.95, 7303.3), (0.95417, 7412), (1, 7437),
)

CODE_OUTPUT: Knots = (
    (0, 6), (0.07917, 6), (0.08333, 7), (0.15, 7), (0.15417, 8), (0.20833, 8), (0.2125, 9),
    (0.27083, 9), (0.61667, 16), (0.73333, 22), (0.82083, 32), (0.90833, 58), (0.94583, 85),
    (0.9625, 109), (0.975, 145), (0.9875, 219), (0.99167, 272), (0.99609, 404.1), (0.99805, 673.8),
    (0.99902, 826.7), (0.99951, 887.7), (0.99976, 938.2), (0.99988, 1250.3), (1, 1899),
)

CODE_CORRELATION: float = -0.001
# fmt: on
