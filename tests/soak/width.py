"""Whether every router still serves each model at its whole width: it cannot where slots have leaked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from chiron.client import ChironError, Client
from chiron.client.options import RequestOptions
from tests.soak.expected import Answer, Oracle
from tests.soak.versions import Versions

_TIMEOUT_S = 45.0
_TOKENS = 24


async def missing(routers: Sequence[str], versions: Versions, oracle: Oracle, width: int) -> list[str]:
    """Asks each router for `width` answers of each model at once; returns what did not come, one line each.

    Args:
        routers: host:port of each.
        versions: of the models that they route.
        oracle: knows the right answers.
        width: requests that the model's instances run at once.
    """
    left = []
    for address in routers:
        async with Client(address, lookaside=False, timeout_s=_TIMEOUT_S) as client:
            for model in versions.models:
                options: RequestOptions = {
                    "model": model,
                    "prompt": "how wide are you?",
                    "max_tokens": _TOKENS,
                    "temperature": 0.0,
                    "ignore_eos": True,
                }
                right = [await oracle.answer(options, version) for version in versions.live(model)]
                asked = (_wrong(client, options, right) for _ in range(width))
                wrong = [text for text in await asyncio.gather(*asked) if text]
                if wrong:
                    left.append(f"{len(wrong)} of {width} answers of {model} through {address}: {wrong[0]}")
    return left


async def _wrong(client: Client, options: RequestOptions, right: Sequence[Answer]) -> str:
    """What was wrong with one answer; empty: nothing."""
    try:
        got = await client.complete(**options)
    except ChironError as error:
        return f"{error.reason}: {error}"
    return "" if got.token_ids in [answer.choices[0].token_ids for answer in right] else "other tokens"
