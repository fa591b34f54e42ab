"""What those are told who wait: at once, or only where it takes long."""

from __future__ import annotations

import asyncio

from chiron.v1 import inference_pb2 as pb
from services.router.telling import Telling


class Heard:
    """Looks up what is waited for, and hears it."""

    def __init__(self) -> None:
        self.looked_up = 0
        self.told = asyncio.Event()

    def progress(self, _: float) -> pb.Progress:
        self.looked_up += 1
        return pb.Progress(text="place 1 of 1")

    async def tell(self, progress: pb.Progress) -> None:
        assert progress.text == "place 1 of 1"
        self.told.set()


async def test_a_wait_that_ends_in_time_is_neither_looked_up_nor_told() -> None:
    heard, done = Heard(), asyncio.get_running_loop().create_future()
    telling = asyncio.ensure_future(Telling().until(done, heard.progress, heard.tell, 3600.0))
    await asyncio.sleep(0)
    done.set_result(None)
    await telling
    assert not heard.looked_up
    assert not heard.told.is_set()


async def test_a_wait_that_takes_longer_is_told_while_it_lasts() -> None:
    heard, done = Heard(), asyncio.get_running_loop().create_future()
    telling = asyncio.ensure_future(Telling().until(done, heard.progress, heard.tell, 0.01))
    await heard.told.wait()
    assert not telling.done()
    done.set_result(None)
    await telling


async def test_by_itself_a_wait_is_told_at_once() -> None:
    heard, done = Heard(), asyncio.get_running_loop().create_future()
    telling = asyncio.ensure_future(Telling().until(done, heard.progress, heard.tell))
    await heard.told.wait()
    done.set_result(None)
    await telling
