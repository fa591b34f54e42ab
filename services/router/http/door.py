"""What the HTTP endpoints stand on."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.auth.credentials import CallContext
from chiron.rpc.errors import ChironError, Reason
from services.router.batch.servicer import BatchServicer
from services.router.door import turned_away
from services.router.http.metrics import Metrics
from services.router.http.settings import HttpSettings
from services.router.placer import Placer
from services.router.serving import Call, Serving


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """The parts of the router that both doors share, and this door's own settings."""

    settings: HttpSettings
    serving: Serving
    placer: Placer
    batches: BatchServicer
    metrics: Metrics

    @property
    def draining(self) -> bool:
        """Whether this router takes nothing new."""
        return bool(self.serving.refusing)

    async def enter(self, caller: CallContext, method: str, arrived: float) -> Call:
        """Lets a caller in and says who it is, before anything else of its request is read.

        The call is entered; whoever has it ends it.

        Raises:
            ChironError: TOO_MANY_ABANDONED; RETRY_ELSEWHERE while this router does not serve;
                CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, TENANT_UNKNOWN,
                    NOT_ALLOWED.
        """
        pause_s = await self.placer.door.pause_s(caller)
        if pause_s:
            raise turned_away(pause_s)
        if self.serving.refusing:
            raise ChironError(Reason.RETRY_ELSEWHERE, self.serving.refusing)
        if not self.placer.has_table.is_set():
            raise ChironError(Reason.RETRY_ELSEWHERE, "this router does not know the models yet")
        return self.serving.call(caller, method, arrived, system="http").__enter__()
