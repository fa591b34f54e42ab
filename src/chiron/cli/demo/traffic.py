"""Sends what the plan asks, when the plan says so: an open loop, however slow the answers are."""

from __future__ import annotations

import asyncio

from chiron.cli.demo.figures import Figures
from chiron.cli.demo.plan import Ask, Backlog, Plan
from chiron.client import ChironError, Client
from chiron.client.batch.records import Batch

_FIRST_TOKEN_ID, _TOKEN_IDS = 300, 500
"""Prompts are runs of token ids, each begun elsewhere: their lengths are exact, and they share no prefix."""


class Traffic:
    """One run of a plan against a cluster."""

    to_come: dict[int, tuple[str, int]]
    """Of each interactive request that has begun and not ended: its instance and its tokens still to come."""

    def __init__(self, client: Client, model: str, plan: Plan, figures: Figures) -> None:
        self._client = client
        self._model = model
        self._plan = plan
        self._figures = figures
        self.to_come = {}

    async def run(self, settle_s: float) -> None:
        """Sends everything; returns when the last answer has come, or is overdue by `settle_s` seconds."""
        start = asyncio.get_running_loop().time()
        last_s = max(
            [backlog.at_s + backlog.deadline_s for backlog in self._plan.backlogs]
            + [ask.at_s for ask in self._plan.interactive[-1:]]
        )
        try:
            async with asyncio.timeout(last_s + settle_s), asyncio.TaskGroup() as tasks:
                tasks.create_task(self._interactive(start))
                for backlog in self._plan.backlogs:
                    tasks.create_task(self._backlog(backlog, start))
        except TimeoutError:
            self._figures.failure(f"not everything had ended {settle_s:g} s after its time")

    async def _interactive(self, start: float) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as requests:
            for number, ask in enumerate(self._plan.interactive):
                await asyncio.sleep(start + ask.at_s - loop.time())
                self._figures.interactive.requests += 1
                requests.create_task(self._request(number, ask, start + ask.at_s))

    async def _request(self, number: int, ask: Ask, arrived: float) -> None:
        loop = asyncio.get_running_loop()
        counts, figures = self._figures.interactive, self._figures
        attempts, begun, tokens = 1, None, 0
        first = last = arrived
        try:
            async for chunk in self._client.generate(
                model=self._model,
                prompt_token_ids=prompt(number, ask.prompt_tokens),
                max_tokens=ask.output_tokens,
                ignore_eos=True,
            ):
                attempts = chunk.attempts
                if chunk.token_ids:
                    last = loop.time()
                    first = last if not tokens else first
                    begun = begun or attempts
                    tokens += len(chunk.token_ids)
                    self.to_come[number] = chunk.instance_id, ask.output_tokens - tokens
        except ChironError as error:
            counts.failed += 1
            figures.failure(f"{error.reason}: {error}")
            return
        finally:
            self.to_come.pop(number, None)
            figures.tokens += tokens
        counts.retried += attempts > 1
        counts.resumed += begun is not None and attempts > begun
        counts.finish((first - arrived) * 1e3, (last - first) * 1e3 / max(1, tokens - 1))
        if tokens != ask.output_tokens:
            figures.failure(f"asked for {ask.output_tokens} tokens and got {tokens}")

    async def _backlog(self, backlog: Backlog, start: float) -> None:
        counts, figures = self._figures.batches, self._figures
        await asyncio.sleep(start + backlog.at_s - asyncio.get_running_loop().time())
        counts.items += len(backlog.items)
        try:
            batch = await self._client.batch.submit(
                [
                    {
                        "model": self._model,
                        "prompt_token_ids": prompt(number, ask.prompt_tokens),
                        "max_tokens": ask.output_tokens,
                        "ignore_eos": True,
                    }
                    for number, ask in enumerate(backlog.items, len(self._plan.interactive))
                ],
                deadline_s=backlog.deadline_s,
            )
            async for seen in self._client.batch.watch(batch.batch_id):
                batch = seen
        except ChironError as error:
            figures.failure(f"a batch of {len(backlog.items)}: {error.reason}: {error}")
            counts.failed += len(backlog.items)
            return
        self._ended(batch)

    def _ended(self, batch: Batch) -> None:
        counts, progress = self._figures.batches, batch.progress
        counts.succeeded += progress.succeeded
        counts.late += progress.late
        others = progress.ended - progress.succeeded
        counts.failed += others
        if others:
            self._figures.failure(f"{others} items of a batch did not succeed")


def prompt(number: int, tokens: int) -> list[int]:
    """Token ids of a prompt of this length, unlike other numbers' from the first token on."""
    return [
        _FIRST_TOKEN_ID + (number * 37 + place * (1 + number % 11)) % _TOKEN_IDS for place in range(tokens)
    ]
