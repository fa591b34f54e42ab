"""What the endpoints share that deal with what the durable queue keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from chiron.auth.callers import Caller
from chiron.batch.contract import BatchQueue, BatchQueueError
from chiron.batch.filing import DamagedFileError, UnknownFileError
from chiron.batch.records import TenantLimits
from chiron.v1 import batch_pb2, types_pb2
from services.router.batch.errors import told
from services.router.batch.header import tenant_limits
from services.router.batch.servicer import BatchDoor
from services.router.http.door import HttpDoor
from services.router.http.errors import SERVER, HttpError
from services.router.http.exchange import exchange_of


@dataclass(frozen=True, slots=True)
class Keeper:
    """The queue as one caller may use it."""

    door: BatchDoor
    caller: Caller | None
    """None: tenancy is off."""

    @property
    def queue(self) -> BatchQueue:
        """Keeps files and batches."""
        return self.door.queue

    @property
    def owner(self) -> str:
        """Whose they are; empty: tenancy is off."""
        return "" if self.caller is None else self.caller.tenant.name

    @property
    def limits(self) -> TenantLimits:
        """How much the caller may have there."""
        return tenant_limits(None if self.caller is None else self.caller.tenant)

    def check_batches(self) -> None:
        """Raises ChironError (NOT_ALLOWED) for a caller that may not have batches worked on."""
        if self.caller is not None:
            header = batch_pb2.BatchHeader()
            self.caller.fill_batch(header)
            self.caller.check_class(types_pb2.REQUEST_CLASS_BATCH, header.priority)


async def keeper_of(door: HttpDoor, request: Request) -> Keeper:
    """Lets a caller in. Raises ChironError: nobody knows who it is, or there is no queue."""
    call = await exchange_of(request).enter()
    return Keeper(door.batches.reach(), call.who)


@contextmanager
def telling() -> Iterator[None]:
    """Tells the queue's errors in this door's words."""
    try:
        yield
    except UnknownFileError as error:
        raise HttpError(404, f"{_capital(str(error))}.", param="file_id", code="file_not_found") from error
    except DamagedFileError as error:
        raise HttpError(500, f"{_capital(str(error))}.", type=SERVER, code="file_damaged") from error
    except BatchQueueError as error:
        raise told(error) from error


def no_file(file_id: str, param: str = "file_id") -> HttpError:
    """The refusal of an id that no file of the caller has."""
    return HttpError(404, f"No file has the id {file_id[:80]!r}.", param=param, code="file_not_found")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
