"""Open-loop traffic: requests arrive when a Poisson process says so, however slow the answers are."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Literal

from chiron.cli.demo.figures import Figures, StreamMeter
from chiron.client import ChironError, Client, Slo, StreamInterrupted

_WORDS = ("router", "worker", "agent", "controller", "slot", "batch", "token", "prompt", "deadline", "queue")


@dataclass(frozen=True, slots=True)
class Load:
    """The traffic of one request class."""

    kind: Literal["interactive", "batch"]
    rate_per_s: float
    """Mean arrivals per second."""
    prompt_words: tuple[int, int]
    """Fewest and most words of a prompt; uniform."""
    output_tokens: tuple[int, int]
    """Fewest and most output tokens; uniform."""
    most_outstanding: int
    """Arrivals beyond it are shed, and counted."""


INTERACTIVE = Load("interactive", 10.0, (5, 60), (16, 64), most_outstanding=200)
BATCH = Load("batch", 3.0, (50, 200), (64, 160), most_outstanding=200)


@dataclass(slots=True)
class Traffic:
    """Sends one load through the SDK and fills in the figures."""

    client: Client
    model: str
    load: Load
    figures: Figures
    seed: int

    async def run(self, duration_s: float) -> None:
        """Sends for `duration_s` seconds and returns when the last answer has come."""
        # Arrivals and lengths come from a stream of this class's own, so that one does not shift the other.
        source = random.Random(f"{self.load.kind}-{self.seed}")
        loop = asyncio.get_running_loop()
        due = loop.time()
        end = due + duration_s
        count = self.figures.counts[self.load.kind]
        async with asyncio.TaskGroup() as requests:
            while True:
                due += source.expovariate(self.load.rate_per_s)
                prompt = " ".join(source.choices(_WORDS, k=source.randint(*self.load.prompt_words)))
                tokens = source.randint(*self.load.output_tokens)
                if due >= end:
                    return
                await asyncio.sleep(due - loop.time())
                if count.outstanding >= self.load.most_outstanding:
                    count.shed += 1
                    continue
                count.requests += 1
                requests.create_task(self._request(prompt, tokens, due))

    async def _request(self, prompt: str, max_tokens: int, arrived: float) -> None:
        loop = asyncio.get_running_loop()
        count, figures = self.figures.counts[self.load.kind], self.figures
        meter, attempts = StreamMeter(figures, self.load.kind, arrived), 1
        begun: int | None = None
        try:
            async for chunk in self.client.generate(
                model=self.model,
                prompt=prompt,
                max_tokens=max_tokens,
                ignore_eos=True,
                request_class=self.load.kind,
                slo=Slo(ttft_ms=1000, itl_ms=200) if self.load.kind == "interactive" else Slo(deadline_s=120),
            ):
                attempts = chunk.attempts
                begun = begun or attempts
                meter.delivered(len(chunk.token_ids), loop.time())
        except StreamInterrupted as error:
            count.failed += 1
            count.interrupted += 1
            figures.failure(f"interrupted: {error}")
        except ChironError as error:
            count.failed += 1
            figures.failure(f"{error.reason}: {error}")
        else:
            count.finished += 1
            count.retried += attempts > 1
            count.resumed += begun is not None and attempts > begun
            if meter.tokens != max_tokens:
                figures.failure(f"asked for {max_tokens} tokens and got {meter.tokens}")
