"""The recording itself: follows requests to their end, and hands their lines to the disk.

What a request added up to is told by its worker (`WatchLoadResponse.ended_requests`), be it proxied,
lookaside or an item of a batch, or by the end of an answer that came through this router; that it was
refused, failed or left, by the router.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from chiron.batch.records import BatchKey
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.recording import lines
from services.router.recording.files import RecordingFiles
from services.router.recording.lines import Record
from services.router.recording.settings import RecordingSettings
from services.router.request import PendingRequest

log = logging.getLogger(__name__)
_FLUSH_S, _SWEEP_S = 0.5, 2.0
_SETTLE_S = 5.0
"""For so long a request that ended without a whole answer may be tried again before it is written."""
_UNKNOWN_S = 3600.0
"""A request of which nothing was heard for so long is written as it is."""
_BATCHES = 10_000
_TENANTS = 100_000
_ENDS = {
    worker_pb2.EndedRequest.ENDING_WHOLE: "ok",
    worker_pb2.EndedRequest.ENDING_CANCELLED: "cancelled",
    worker_pb2.EndedRequest.ENDING_FAILED: "failed",
    worker_pb2.EndedRequest.ENDING_GIVEN_UP: "failed",
}


class Book:
    """What is recorded by one router. Its methods but `run` and `close` never wait."""

    def __init__(
        self,
        settings: RecordingSettings,
        owner: str,
        models: Callable[[], Iterable[control_pb2.RoutedModel]],
    ) -> None:
        """Records nothing yet.

        Args:
            settings: with a path.
            owner: this router's id.
            models: those in the routing table.
        """
        assert settings.path is not None
        self._settings = settings
        self._owner = owner
        self._models = models
        self._files = RecordingFiles(settings.path, owner, settings.file_bytes, settings.files)
        self._time = asyncio.get_running_loop().time
        self._pending: dict[str, Record] = {}
        self._buffer: list[Record] = []
        self._tenants: dict[str, int] = {}
        self._batches: OrderedDict[BatchKey, float] = OrderedDict()
        self._started, self._zero = datetime.now(UTC).isoformat(), self._time()
        """The same moment, by both clocks."""
        self._sweep_at = 0.0
        self._untold = 0
        self._closing = asyncio.Event()
        self._trouble = ""
        self.written = 0
        """Requests in files since the start."""
        self.left_out = 0
        """Requests that are in none."""

    # What happens to requests.

    def begin(self, request: PendingRequest, attempt: int) -> None:
        """A request has come, or comes again, as attempt number `attempt`."""
        known = self._pending.get(request.request_id)
        if known is not None:
            known.attempts += 1
            known.resumes += request.resumed_at is not None
            known.end, known.reason = "unknown", ""
            known.due = self._time() + _UNKNOWN_S
            return
        record = self._open(request, request.arrived - request.elapsed_s)
        if record is not None:
            record.attempts, record.resumes = attempt + 1, int(request.resumed_at is not None)

    def batch(self, batch: BatchKey, accepted: float) -> None:
        """A batch waits in the queue that was accepted at this monotonic time."""
        self._batches[batch] = accepted
        self._batches.move_to_end(batch)
        while len(self._batches) > _BATCHES:
            self._batches.popitem(last=False)

    def begin_item(self, request: PendingRequest, batch: BatchKey, index: int) -> None:
        """An item of a batch is worked on; it arrived with its batch."""
        if request.request_id not in self._pending:
            arrived = min(request.arrived, self._batches.get(batch, request.arrived))
            # Each claim makes a request of its own of it.
            self._open(request, arrived, "\0".join(("item", *batch, str(index))))

    def ended(self, told: Iterable[worker_pb2.EndedRequest]) -> None:
        """A worker tells what requests came to, whoever had sent them there."""
        for one in told:
            record = self._pending.get(one.request_id)
            if record is None:
                continue
            record.ended, record.took_s = one, self._time() - record.arrived
            record.end = _ENDS.get(one.ending, "unknown")
            if one.ending == worker_pb2.EndedRequest.ENDING_WHOLE:
                self._write(record)
            else:
                given_up = one.ending == worker_pb2.EndedRequest.ENDING_GIVEN_UP
                record.resumes += given_up
                if not (given_up and record.handed_back):
                    record.due = self._time() + _SETTLE_S

    def answered(self, request_id: str, last: pb.OutputDelta) -> None:
        """The whole answer has come through this router; its worker may be gone before it tells so.

        last: what came with the answer's end: its usage and timing.
        """
        if request_id in self._pending:
            whole = worker_pb2.EndedRequest.ENDING_WHOLE
            told = worker_pb2.EndedRequest(request_id=request_id, ending=whole)
            told.usage.CopyFrom(last.usage)
            told.timing.CopyFrom(last.timing)
            self.ended([told])

    def handed_back(self, request_id: str) -> None:
        """An instance has given it back, and this router has another go on with it."""
        record = self._pending.get(request_id)
        if record is not None:
            record.handed_back = True
            record.due = self._time() + _UNKNOWN_S

    def gave_up(self, request_id: str, end: str, reason: str = "") -> None:
        """This router ends a request: `refused`, `failed` or `cancelled`, for a reason of the error table."""
        record = self._pending.get(request_id)
        if record is None:
            return
        record.end, record.reason = end, reason
        record.took_s = self._time() - record.arrived
        if end == "refused":
            self._write(record)
        else:
            # Its worker tells how far it had come, and its caller may try again.
            record.due = self._time() + _SETTLE_S

    def put_back(self, request_id: str) -> None:
        """An item goes back to the queue unfinished; whoever claims it next records it."""
        self._pending.pop(request_id, None)

    # The disk.

    async def run(self) -> None:
        """Writes now and then until `close`; then what is known of everything, and ends the file."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self._closing.wait()
            await self.flush()
        for record in list(self._pending.values()):
            self._write(record)
        await self.flush()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._files.close)

    def close(self) -> None:
        """Lets `run` come to its end."""
        self._closing.set()

    async def flush(self) -> None:
        """Writes what has ended; what the disk does not take is left out."""
        self._sweep()
        if not self._buffer:
            return
        records, self._buffer = self._buffer, []
        missing, self._untold = self._untold, 0
        try:
            await asyncio.to_thread(self._store, records, missing)
        except OSError as error:
            self._untold += missing
            self._drop(len(records))
            if self._trouble != str(error):
                self._trouble = str(error)
                log.warning("requests are missing from the recording in %s: %s", self._settings.path, error)
            return
        if self._trouble:
            self._trouble = ""
            log.warning("the recording goes on; %d requests are missing since the start", self.left_out)
        self.written += len(records)

    def _store(self, records: list[Record], missing: int) -> None:
        if self._files.full():
            self._files.begin(lines.header(self._started, self._owner, list(self._models())))
        note = [lines.left_out(missing)] if missing else []
        self._files.write([*note, *(lines.line(record, self._zero) for record in records)])

    def _open(self, request: PendingRequest, arrived: float, name: str = "") -> Record | None:
        if len(self._pending) >= self._settings.pending:
            self._drop(1)
            return None
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            if len(self._tenants) >= _TENANTS:
                self._tenants.clear()
            tenant = self._tenants[request.tenant] = len(self._tenants)
        record = lines.opened(request, arrived, tenant, name)
        record.due = self._time() + _UNKNOWN_S
        self._pending[request.request_id] = record
        return record

    def _write(self, record: Record) -> None:
        self._pending.pop(record.request_id, None)
        if len(self._buffer) >= self._settings.buffer_lines:
            self._drop(1)
        else:
            self._buffer.append(record)

    def _drop(self, count: int) -> None:
        self.left_out += count
        self._untold += count

    def _sweep(self) -> None:
        now = self._time()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_S
        for record in [one for one in self._pending.values() if one.due <= now]:
            self._write(record)
