"""Deterministic acceptance for speculative decoding."""

import math
from dataclasses import dataclass

from chiron.engine.errors import InvalidLimitError


@dataclass(frozen=True, slots=True)
class Speculation:
    """Draft tokens per step and how often the target model accepts one.

    A step verifies draft_tokens + 1 positions per request and yields on average (1 - a^(k+1)) / (1 - a)
    tokens: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023, eq. 1.
    The model spends that average without randomness: after d decode steps every decoding request has received
    floor(d x average) tokens, so the tokens of one step vary around the average and are the same for all
    requests of the step. The cost of drafting is not modelled.
    """

    draft_tokens: int
    """k, drafted per step and request, >= 1."""
    acceptance_rate: float
    """a, the chance that one draft token is accepted given that those before it were; 0 to 1."""

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise InvalidLimitError("draft_tokens", f"must be at least 1, got {self.draft_tokens}")
        if not 0.0 <= self.acceptance_rate <= 1.0:
            raise InvalidLimitError("acceptance_rate", f"must lie within 0 and 1, got {self.acceptance_rate}")

    @property
    def tokens_per_step(self) -> float:
        """Average tokens that a request receives per decode step, from 1 to draft_tokens + 1."""
        return math.fsum(self.acceptance_rate**i for i in range(self.draft_tokens + 1))
