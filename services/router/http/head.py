"""What every part of one answer says alike. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from chiron.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Head:
    """Of one answer."""

    id: str
    created: int
    """Unix time, in seconds."""
    model: str
    """As the caller named it."""
    tier: str = ""
    """Service tier that served it; empty: it is not told, as in results of batches."""
    copies: int = 1
    """How often each choice is given: equal choices are generated once."""
    token_ids: bool = False
    """Whether choices bring their token ids."""
    tokens_as_ids: bool = False
    """Whether log probabilities name tokens as `token_id:N`."""


def fingerprint(model: str, spec_version: int) -> str:
    """Names a backend: the same while the model's spec is, whichever instance answers."""
    digest = hashlib.blake2b(f"{model}\0{spec_version}".encode(), digest_size=5, person=b"chiron-spec")
    return f"fp_{digest.hexdigest()}"


def summed(parts: Iterable[pb.Usage]) -> pb.Usage:
    """The counts of several requests together."""
    total = pb.Usage()
    for part in parts:
        total.prompt_tokens += part.prompt_tokens
        total.cached_prompt_tokens += part.cached_prompt_tokens
        total.completion_tokens += part.completion_tokens
    return total


def usage(counts: pb.Usage, copies: int = 1) -> dict[str, object]:
    """Token counts. Each copy of a choice counts, as it would had it been generated."""
    completion = counts.completion_tokens * copies
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": counts.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached_prompt_tokens},
    }
