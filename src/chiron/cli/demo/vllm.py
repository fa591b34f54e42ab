"""`chiron demo --engine vllm`: one question to a real small model, through the whole path."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time

from rich.console import Console

from chiron.cli.demo.figures import Figures
from chiron.cli.progress import open_progress
from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, smollm2_spec

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
_SHOWN = ("requests", "failed", "retried", "ttft_p50_ms", "itl_p50_ms", "tokens")


async def run_vllm_demo(*, live: bool) -> int:
    """Asks the question and prints the streamed answer; returns 0 when the answer holds Paris."""
    console = Console(stderr=True)
    figures = Figures(ttft_slo_ms=math.inf, itl_slo_ms=math.inf)
    console.print("building SmolLM2-135M-Instruct below .models (once; about half a minute)")
    spec = await asyncio.to_thread(smollm2_spec)
    async with LocalCluster(nodes=1, gpus=1, worker_env=CPU_WORKER_ENV) as cluster:
        with open_progress(console, live=live and sys.stdout.isatty()) as progress:
            progress.say(f"starting 1 node with 1 instance on vLLM in {cluster.directory}")
            await cluster.apply([spec])
            await cluster.wait_ready(progress=progress.update)
        console.print(QUESTION)
        async with Client(cluster.router_addresses) as client:
            text = await _ask(client, spec.name, figures)
    asked = {key: value for key, value in figures.summary().items() if key in _SHOWN}
    print(json.dumps({**asked, "engine": "vllm", "model": spec.name, "answer": text}))
    if ANSWER not in text:
        print(f"failed: the answer does not hold {ANSWER}", file=sys.stderr)
        return 1
    return 0


async def _ask(client: Client, model: str, figures: Figures) -> str:
    """Streams the answer to stdout and returns it. Raises what the client raises."""
    count, text, tokens = figures.interactive, "", 0
    arrived = first = last = time.monotonic()
    count.requests += 1
    async for chunk in client.generate(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=48, temperature=0.0
    ):
        print(chunk.text, end="", flush=True)
        text += chunk.text
        if chunk.token_ids:
            last = time.monotonic()
            first = last if not tokens else first
            tokens += len(chunk.token_ids)
        count.retried = int(chunk.attempts > 1)
    print(flush=True)
    figures.tokens = tokens
    count.finish((first - arrived) * 1e3, (last - first) * 1e3 / max(1, tokens - 1))
    return text
