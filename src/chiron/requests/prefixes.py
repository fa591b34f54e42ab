"""The beginnings of prompts as routers and workers name them to each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from chiron.client.prefix import BLOCK_ENDS, BYTES_PER_TOKEN, HASH_BYTES, prefix_hashes
from chiron.v1 import inference_pb2 as pb


def salted(tenant: str, hashes: Sequence[bytes]) -> tuple[int, ...]:
    """The hashes with their tenant: what one tenant sends never names what another one has sent.

    Without tenancy there is nobody to keep apart, and nothing to compute.
    """
    if tenant:
        salt = _salt(tenant)
        hashes = [blake2b(each, digest_size=HASH_BYTES, salt=salt).digest() for each in hashes]
    return tuple(int.from_bytes(each, "little") for each in hashes)


@lru_cache(maxsize=4096)
def _salt(tenant: str) -> bytes:
    return blake2b(tenant.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """A prompt by the names of its beginnings."""

    hashes: tuple[int, ...]
    shares: tuple[float, ...]
    """For each, the part of the input's bytes that it stands for, 0 to 1: so much of the tokens, about."""


def name_prompt(request: pb.GenerateRequest, tenant: str) -> NamedPrompt:
    """Names a request's input as the doors do."""
    hashes = salted(tenant, prefix_hashes(request))
    kind = request.WhichOneof("input")
    if not hashes:
        size = 0
    elif kind == "prompt":
        size = len(request.prompt.encode())
    elif kind == "chat":
        size = request.chat.ByteSize()
    else:
        size = BYTES_PER_TOKEN * len(request.prompt_token_ids.ids)
    return NamedPrompt(hashes, tuple(min(1.0, end / size) for end in BLOCK_ENDS[: len(hashes)]))
