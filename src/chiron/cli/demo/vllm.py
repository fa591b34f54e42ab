"""`chiron demo --engine vllm`: one question to a real small model, through the whole path."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from rich.console import Console

from chiron.cli.demo.figures import Figures, StreamMeter
from chiron.cli.progress import open_progress
from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, smollm2_spec

QUESTION = "What is the capital of France?"
ANSWER = "Paris"


async def run_vllm_demo(*, live: bool) -> int:
    """Asks the question and prints the streamed answer; returns 0 when the answer holds Paris."""
    console = Console(stderr=True)
    figures = Figures()
    console.print("building SmolLM2-135M-Instruct below .models (once; about half a minute)")
    spec = await asyncio.to_thread(smollm2_spec)
    async with LocalCluster(nodes=1, gpus=1, worker_env=CPU_WORKER_ENV) as cluster:
        with open_progress(console, live=live and sys.stdout.isatty()) as progress:
            progress.say(f"starting 1 node with 1 instance on vLLM in {cluster.directory}")
            await cluster.apply([spec])
            await cluster.wait_ready(progress=progress.update)
        console.print(QUESTION)
        start = time.monotonic()
        async with Client(cluster.router_addresses) as client:
            text = await _ask(client, spec.name, figures)
        duration_s = time.monotonic() - start
    print(json.dumps({**figures.summary(duration_s), "engine": "vllm", "model": spec.name, "answer": text}))
    if ANSWER not in text:
        print(f"failed: the answer does not hold {ANSWER}", file=sys.stderr)
        return 1
    return 0


async def _ask(client: Client, model: str, figures: Figures) -> str:
    """Streams the answer to stdout and returns it. Raises what the client raises."""
    count = figures.counts["interactive"]
    meter, text = StreamMeter(figures, "interactive", time.monotonic()), ""
    count.requests += 1
    async for chunk in client.generate(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=48, temperature=0.0
    ):
        print(chunk.text, end="", flush=True)
        text += chunk.text
        meter.delivered(len(chunk.token_ids), time.monotonic())
        count.retried = int(chunk.attempts > 1)
    print(flush=True)
    count.finished += 1
    return text
