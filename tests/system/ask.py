"""Asks a model twice through the SDK and prints what happened as JSON.

python -m tests.system.ask ROUTER
"""

from __future__ import annotations

import asyncio
import json
import sys

from chiron.client import Client


async def _ask(router: str) -> None:
    async with Client(router) as client:
        answers = [await client.complete(model="toy", prompt="hello", max_tokens=5) for _ in range(2)]
        print(
            json.dumps(
                {
                    "tokens": [answer.usage.completion_tokens for answer in answers],
                    "fallbacks": client.stats.fallbacks,
                    "failed": client.stats.failed,
                    "ttft_ms": [answer.timing.client_ttft_ms for answer in answers],
                }
            )
        )


if __name__ == "__main__":
    asyncio.run(_ask(sys.argv[1]))
