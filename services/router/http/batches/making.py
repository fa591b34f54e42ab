"""Makes a batch from its file: every line becomes an item, or the batch is refused with what is wrong.

Nothing that is done here differs when it is done twice, by two routers at the same time too: lines become the
same items in the same places, and a batch is accepted or refused once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from chiron.auth.callers import Caller
from chiron.batch.contract import (
    BatchQueue,
    BatchStateError,
    ItemError,
    QueueFullError,
    TenantFullError,
    UnknownBatchError,
)
from chiron.batch.filing import DamagedFileError, FileKey, FileStore, UnknownFileError
from chiron.batch.records import Batch, Limits, NewItem
from services.router.batch.header import tenant_limits
from services.router.batch.items import ItemChecker, Models
from services.router.http.batches.faults import Fault, Faults, refusal_of
from services.router.http.batches.lines import LineReader, NumberedLine, TooManyLinesError
from services.router.http.batches.requests import RequestReader
from services.router.http.batches.source import Source

_APPEND, _APPEND_BYTES = 256, 1 << 20
"""What is handed to the queue at once."""
_LOOKED_AT = 16 * 1024
"""Bytes that are cut into lines before others have their turn: they may be blank lines alone."""
_MOST_WRONG = 10_000
"""Lines of a file that is refused; what follows is not looked at."""
_AT_ONCE = 8
"""Lines that are read before others have their turn: each takes up to a millisecond."""
_ESCAPED = 2
"""A line may be so many times as long as the request that it holds: JSON escapes take room."""


def longest_line(limits: Limits) -> int:
    """Bytes of a line that is looked at."""
    return _ESCAPED * (limits.body_bytes or 1 << 30)


def most_lines(limits: Limits) -> int:
    """Lines of a file that are looked at: every other one may be blank."""
    return 2 * (limits.items_per_batch or 1 << 40) + _MOST_WRONG


async def lines_of(store: FileStore, file: FileKey, limits: Limits) -> AsyncGenerator[NumberedLine, None]:
    """The lines of a file, as far as a batch can have them.

    Raises TooManyLinesError, UnknownFileError, DamagedFileError, UnavailableError.
    """
    reader, chunk = LineReader(longest_line(limits), most_lines(limits)), 0
    while data := await store.read(file, chunk):
        for start in range(0, len(data), _LOOKED_AT):
            for line in reader.feed(data[start : start + _LOOKED_AT]):
                yield line
            await asyncio.sleep(0)
        chunk += 1
    for line in reader.finish():
        yield line


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the batches of one queue."""

    queue: BatchQueue
    limits: Limits
    models: Models
    """The router's table."""

    async def make(self, batch: Batch, owner: Caller | None) -> bool:
        """Returns whether the batch is accepted; otherwise it is refused, or has ended meanwhile.

        owner: whose it is; None: tenancy is off.

        Raises UnavailableError: it is left as it is, to be made again.
        """
        key = batch.tenant, batch.batch_id
        try:
            return await _Making(self, batch, owner).run()
        except (UnknownBatchError, BatchStateError):
            # It was cancelled or deleted, or another router has seen something else in it.
            return False
        except UnknownFileError:
            fault = Fault("input_file_not_found", "The input file was deleted before all of it was read.")
        except DamagedFileError as error:
            fault = Fault("input_file_damaged", f"The input file cannot be read: {error}.")
        except TenantFullError as error:
            fault = Fault("quota_exceeded", f"The batch has no room: {error}.")
        except QueueFullError as error:
            fault = Fault("batch_queue_full", f"The batch has no room: {error}.")
        except ItemError as error:
            fault = Fault("server_error", f"The batch was read in two ways; create it again: {error}.")
        await self.refuse(key, refusal_of([fault]))
        return False

    async def refuse(self, key: tuple[str, str], refusal: str) -> None:
        """Refuses a batch, unless it has ended or was accepted meanwhile. Raises UnavailableError."""
        try:
            await self.queue.refuse(key, refusal)
        except (UnknownBatchError, BatchStateError):
            return


class _Making:
    """One batch that is being made."""

    def __init__(self, maker: Maker, batch: Batch, owner: Caller | None) -> None:
        self._maker = maker
        self._queue, self._limits = maker.queue, maker.limits
        self._batch = batch
        self._key = batch.tenant, batch.batch_id
        self._tenant_limits = tenant_limits(None if owner is None else owner.tenant)
        self._source = Source.of(batch.source)
        checker = ItemChecker(owner, maker.models, maker.limits, fail_invalid=False)
        self._reader = RequestReader(self._source, checker, owner)
        self._faults = Faults()
        self._waiting: list[NewItem] = []
        self._waiting_bytes = 0
        self._numbers: dict[int, int] = {}
        """Place of a waiting item → its line."""
        self._made = 0

    async def run(self) -> bool:
        try:
            await self._read()
        except TooManyLinesError:
            text = f"A file has at most {most_lines(self._limits)} lines."
            self._faults.add_whole(Fault("too_many_requests", text))
        await self._hand_in()
        if not self._made and not self._faults:
            self._faults.add_whole(Fault("empty_file", "The input file has no lines."))
        if self._faults:
            await self._maker.refuse(self._key, self._faults.text())
            return False
        await self._queue.seal(self._key, self._made)
        return True

    async def _read(self) -> None:
        most = self._limits.items_per_batch
        file = self._batch.tenant, self._source.input_file
        read = 0
        async for line in lines_of(self._queue.files, file, self._limits):
            read += 1
            if read % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if most and self._made >= most:
                text = f"A batch has at most {most} requests."
                self._faults.add_whole(Fault("too_many_requests", text, line.number))
                return
            await self._take(line)
            if self._faults.wrong_lines >= _MOST_WRONG:
                self._faults.cut = True
                return

    async def _take(self, line: NumberedLine) -> None:
        checked = self._reader.read(line, self._made)
        if isinstance(checked, Fault):
            self._faults.add(checked)
            return
        self._numbers[checked.index] = line.number
        self._waiting.append(checked)
        self._waiting_bytes += len(checked.body)
        self._made += 1
        if len(self._waiting) >= _APPEND or self._waiting_bytes >= _APPEND_BYTES:
            await self._hand_in()

    async def _hand_in(self) -> None:
        """Hands what waits to the queue, which finds what has the custom_id of another."""
        while self._waiting:
            try:
                await self._queue.append(self._key, self._waiting, self._tenant_limits)
            except ItemError as error:
                if error.field != "custom_id":
                    raise
                self._drop(error.index)
            else:
                break
        self._waiting, self._waiting_bytes = [], 0
        self._numbers.clear()

    def _drop(self, index: int) -> None:
        (item,) = [one for one in self._waiting if one.index == index]
        self._waiting.remove(item)
        text = f"Another line has the custom_id {item.custom_id!r} too."
        self._faults.add(Fault("duplicate_custom_id", text, self._numbers[index], "custom_id"))
