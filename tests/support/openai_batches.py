"""Files of requests, and batches of OpenAI's API, for tests."""

from __future__ import annotations

import json
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch, FileObject

from chiron.batch import wire
from chiron.batch.contract import BatchQueue
from chiron.batch.records import Claim, ItemState, Outcome, Session
from chiron.v1 import batch_pb2, inference_pb2
from tests.support.wait import eventually

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OVER = ("failed", "completed", "expired", "cancelled")


def line(custom_id: str, *, url: str = CHAT, model: str = "m", **body: Any) -> dict[str, Any]:
    """One request."""
    own: dict[str, Any] = (
        {"messages": [{"role": "user", "content": f"Tell me about {custom_id}."}]}
        if url == CHAT
        else {"prompt": f"Tell me about {custom_id}."}
    )
    asked = {"model": model, "max_tokens": 4, **own, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked}


def jsonl(*lines: dict[str, Any] | str) -> bytes:
    """A file of these lines; text stands for itself."""
    return b"".join((one if isinstance(one, str) else json.dumps(one)).encode() + b"\n" for one in lines)


def lines(count: int, **options: Any) -> bytes:
    """A file of so many requests, c0, c1, ..."""
    return jsonl(*(line(f"c{number}", **options) for number in range(count)))


async def uploaded(client: AsyncOpenAI, content: bytes, name: str = "lines.jsonl") -> FileObject:
    """A file of this content."""
    return await client.files.create(file=(name, content), purpose="batch")


async def created(client: AsyncOpenAI, content: bytes, **options: Any) -> Batch:
    """A batch of a file of this content."""
    file = await uploaded(client, content)
    asked: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **options}
    return await client.batches.create(input_file_id=file.id, **asked)


async def once(client: AsyncOpenAI, batch_id: str, *statuses: str, within_s: float = 20.0) -> Batch:
    """The batch, once it has one of these statuses; of those it cannot leave unless told."""

    async def look() -> Batch | None:
        found = await client.batches.retrieve(batch_id)
        return found if found.status in (statuses or OVER) else None

    found = await eventually(look, within_s=within_s, what=f"batch {batch_id} is {statuses or OVER}")
    assert found is not None
    return found


async def read(client: AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """custom_id → its line in a file of results; none where there is no file."""
    if file_id is None:
        return {}
    content = (await client.files.content(file_id)).content
    assert len(content) == (await client.files.retrieve(file_id)).bytes
    found = [json.loads(one) for one in content.splitlines()]
    assert len({one["id"] for one in found}) == len(found), "two lines have one id"
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found), "a request has two lines"
    return by_id


class Hand:
    """Works on a queue instead of a router."""

    def __init__(self, queue: BatchQueue, session: Session) -> None:
        self.queue, self.session = queue, session

    @classmethod
    async def on(cls, queue: BatchQueue) -> Hand:
        """With a session of its own."""
        return cls(queue, await queue.begin_session("test", 600.0))

    async def claim(self, batch_id: str, limit: int = 1000, *, tenant: str = "") -> list[Claim]:
        """Takes items of the model `m`."""
        return list(await self.queue.claim(self.session, (tenant, batch_id), "m", limit))

    async def answer(self, *claims: Claim) -> None:
        """Ends items well: each answer repeats its request's custom_id."""
        ends = []
        for claim in claims:
            choice = batch_pb2.ItemChoice(
                text=f"answer to {claim.custom_id}", finish_reason=inference_pb2.FINISH_REASON_STOP
            )
            usage = inference_pb2.Usage(prompt_tokens=5, completion_tokens=3)
            output = batch_pb2.ItemOutput(choices=[choice], usage=usage, model="m", spec_version=1)
            ends.append(Outcome(claim.lease, ItemState.SUCCEEDED, wire.succeeded(output), 5, 3))
        assert not await self.queue.finish(self.session, ends)

    async def fail(self, *claims: Claim, reason: str = "INVALID_ARGUMENT") -> None:
        """Ends items ill."""
        ends = [Outcome(one.lease, ItemState.FAILED, wire.failed(reason, "it is wrong")) for one in claims]
        assert not await self.queue.finish(self.session, ends)
