"""A router is killed while a file comes, while a batch is made and while it is worked on: nothing is lost,
nothing is done twice, nothing stays half done."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chiron.v1 import inference_pb2 as pb
from services.router.http.files.upload import CHUNK_BYTES
from tests.support.fake_worker import FakeWorker
from tests.support.http_door import RawConnection, get, openai_at
from tests.support.openai_batches import created, lines, once, read
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(120)
ITEMS = 600


async def answer(worker: FakeWorker, pause_s: float) -> None:
    """Answers every call with its prompt's last words, after a while."""

    async def one(call: Any) -> None:
        await asyncio.sleep(pause_s)
        text = call.request.chat.messages[0].content
        last = pb.OutputDelta(
            token_ids=[1],
            text=text,
            finish_reason=pb.FINISH_REASON_STOP,
            usage=pb.Usage(prompt_tokens=1, completion_tokens=1),
            timing=pb.Timing(),
        )
        call.send(pb.GenerateResponse(deltas=[last]))
        call.finish()
        await call.ended.wait()
        worker.publish(started=[call.request.request_id], finished=[call.request.request_id])

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(one(await worker.calls.get()))


@pytest.fixture
async def worker(controller, start_worker):
    made = await start_worker("a", batch_size=32)
    controller.add("m", [made])
    task = asyncio.create_task(answer(made, 0.02))
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def start(controller, tmp_path: Path):
    """Starts a router on the one queue."""

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[RouterProcess]:
        chosen = {
            "batch.store": f"sqlite:{tmp_path / 'queue.db'}",
            "batch.upload_s": 1.0,
            "http.listen": "127.0.0.1:0",
        }
        async with router_process(tmp_path, controller.address, router_id="r", **chosen) as router:

            async def healthy() -> bool:
                return (await get(router.http_url, "/health")).status == 200

            await eventually(healthy, what="the router serves")
            yield router

    return start


def rows(folder: Path) -> tuple[int, int]:
    """Files that are known, and bytes that count."""
    db = sqlite3.connect(f"file:{folder / 'queue.db'}?mode=ro", uri=True)
    try:
        (files,) = db.execute("SELECT count(*) FROM files").fetchone()
        return files, db.execute("SELECT stored_bytes FROM store").fetchone()[0]
    finally:
        db.close()


async def test_of_an_upload_that_died_with_its_router_nothing_is_left(
    start, controller, tmp_path: Path
) -> None:
    controller.add("m")
    async with start() as router:
        connection = await RawConnection.open(router.http_url)
        body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        head = "content-type: multipart/form-data; boundary=x"
        body += b"y" * (CHUNK_BYTES + 1)
        connection.send("POST /v1/files HTTP/1.1", "host: door", head, "content-length: 9000000", body=body)
        await eventually(lambda: rows(tmp_path) == (1, CHUNK_BYTES), what="a chunk is kept")
        await router.kill()
        connection.close()
    async with start() as router, openai_at(router.http_url) as client:
        assert (await client.files.list()).data == []
        await eventually(lambda: rows(tmp_path) == (0, 0), what="nothing is left of the upload")


async def test_a_batch_outlives_the_routers_that_make_it_and_work_on_it(start, worker) -> None:
    async with start() as router, openai_at(router.http_url) as client:
        batch = await created(client, lines(ITEMS))
        # The answer is there, and the file has been looked at by its first line alone.
        await router.kill()
    async with start() as router, openai_at(router.http_url) as client:
        assert (await client.batches.retrieve(batch.id)).status in ("validating", "in_progress")
        await once(client, batch.id, "in_progress")

        async def some() -> bool:
            counts = (await client.batches.retrieve(batch.id)).request_counts
            return counts is not None and counts.completed >= 100

        await eventually(some, what="some are done")
        await router.kill()
    async with start() as router, openai_at(router.http_url) as client:
        done = await once(client, batch.id, within_s=60)
        assert done.status == "completed"
        assert done.request_counts.model_dump() == {"total": ITEMS, "completed": ITEMS, "failed": 0}
        found = await read(client, done.output_file_id)
        assert found.keys() == {f"c{number}" for number in range(ITEMS)}
        for custom_id, one in found.items():
            message = one["response"]["body"]["choices"][0]["message"]
            assert message["content"] == f"Tell me about {custom_id}."
        assert len((await client.files.list(purpose="batch_output")).data) == 1
