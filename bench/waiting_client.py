"""A client that always has the same number of requests under way at one router, in a process of its own.

    python -m bench.waiting_client http|lookaside|proxied ADDRESS --model NAME --open N --tokens N

It runs until its stdin ends and prints when each answer was whole: monotonic, in seconds, the same clock for
every process of the host. The API key is CHIRON_API_KEY. An error ends it, with the error's line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import openai

from chiron.client import Client

DOORS = ("http", "lookaside", "proxied")
Ask = Callable[[], Awaitable[object]]


async def keep_open(ask: Ask) -> None:
    """Asks again whenever an answer has come."""
    while True:
        await ask()
        print(time.monotonic(), flush=True)


async def run(door: str, address: str, model: str, requests: int, tokens: int) -> None:
    """Keeps so many requests open until stdin ends. Raises whatever one of them ends with."""
    key = os.environ.get("CHIRON_API_KEY", "")
    async with AsyncExitStack() as stack:
        ask: Ask
        if door == "http":
            web = await stack.enter_async_context(
                openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key or "none", max_retries=0)
            )

            async def ask() -> object:
                return await web.completions.create(
                    model=model, prompt="Tell me.", max_tokens=tokens, extra_body={"ignore_eos": True}
                )
        else:
            client = await stack.enter_async_context(
                Client(address, api_key=key, lookaside=door == "lookaside")
            )

            async def ask() -> object:
                return await client.complete(
                    model=model, prompt="Tell me.", max_tokens=tokens, ignore_eos=True
                )

        asking = {asyncio.create_task(keep_open(ask)) for _ in range(requests)}
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        done, _ = await asyncio.wait({*asking, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for task in done - {ended}:
            await task


def main() -> None:
    """Reads the arguments and asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("address", help="host:port, or http://host:port for `http`")
    parser.add_argument("--model", required=True)
    parser.add_argument("--open", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(run(options.door, options.address, options.model, options.open, options.tokens))


if __name__ == "__main__":
    main()
