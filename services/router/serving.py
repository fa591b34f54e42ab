"""What every door does with a request, whatever it speaks: who asks, what is asked, where it goes, how it
ends.

A door opens a call, reads the request in its own way and hands it in; what goes wrong comes back as an
exception that the door puts into its own words.
"""

from __future__ import annotations

import asyncio
import uuid
from types import TracebackType

from chiron.auth.callers import Caller
from chiron.auth.credentials import CallContext
from chiron.client.prefix import prefix_hashes
from chiron.client.request import estimate_prompt_tokens
from chiron.policy.words import RequestClass
from chiron.requests.prefixes import salted
from chiron.requests.tools import parses_calls
from chiron.requests.validation import check_generate, check_route
from chiron.rpc.errors import ChironError, Reason, reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.access import leave
from services.router.demand import Tally
from services.router.outcomes import missed
from services.router.placer import Placer
from services.router.proxy import Proxy, Sink, WorkerStatusError
from services.router.request import PendingRequest, request_class
from services.router.route import Lookaside
from services.router.spans import RequestTrace
from services.router.telling import Tell

_REFUSED = (
    Reason.QUEUE_FULL,
    Reason.SLO_OUT_OF_REACH,
    Reason.NO_INSTANCE,
    Reason.MODEL_NOT_FOUND,
    Reason.ADAPTER_NOT_FOUND,
)


class UnderWay:
    """Counts the calls under way: each one enters it (`with`)."""

    def __init__(self) -> None:
        self.count = 0
        self.idle = asyncio.Event()
        """Set while there is none."""
        self.idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self.idle.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self.idle.set()


class Serving:
    """The calls of all doors of one router. All methods belong to one event loop."""

    def __init__(self, placer: Placer, proxy: Proxy, lookaside: Lookaside, *, tracing: bool) -> None:
        """No call is under way; `tracing`: whether spans are exported."""
        self.placer, self.proxy, self.lookaside, self.tracing = placer, proxy, lookaside, tracing
        self.time = asyncio.get_running_loop().time
        self.refusing = ""
        """Why every new request is sent to another router; empty: none is."""
        self.under_way = UnderWay()
        """The calls of all doors, from the time they are let in until they have been answered."""

    def refuse(self, why: str) -> None:
        """From now on every new request is sent to another router."""
        self.refusing = why

    def call(self, caller: CallContext, method: str, arrived: float, *, system: str = "grpc") -> Call:
        """One call, to be entered (`with`) while it is under way.

        Args:
            caller: who calls, as its door sees it.
            method: names the call's span.
            arrived: when it came, monotonic, in seconds.
            system: what the door speaks, `grpc` or `http`.
        """
        return Call(self, caller, method, arrived, system)


class Call:
    """One call: at most one request runs in it. To be entered before it is used."""

    __slots__ = ("_caller", "_serving", "_system", "arrived", "request", "trace", "who")

    def __init__(
        self, serving: Serving, caller: CallContext, method: str, arrived: float, system: str
    ) -> None:
        self._serving = serving
        self._caller = caller
        self._system = system
        self.arrived = arrived
        """When its request was there, monotonic, in seconds: a door that reads it in parts sets it anew."""
        self.who: Caller | None = None
        """Who pays, and by which key; None where nobody is asked."""
        self.request: PendingRequest | None = None
        """What is asked for, once it is known."""
        self.trace = RequestTrace(serving.tracing, method, caller.invocation_metadata(), system=system)

    def __enter__(self) -> Call:
        """Asks who calls, unless that is known, before anything of the request is read.

        Raises:
            ChironError: CREDENTIALS_MISSING, KEY_INVALID, KEY_REVOKED, KEY_EXPIRED, TENANT_UNKNOWN,
                NOT_ALLOWED.
        """
        try:
            if self.who is None:
                self.who = self._serving.placer.access.identify(self._caller)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:
            self._note(error)
        self.trace.end()

    def _note(self, error: BaseException) -> None:
        if isinstance(error, ChironError):
            self.trace.refused(error)
        elif isinstance(error, WorkerStatusError):
            told = error.error
            self.trace.error(reason_of(told) or told.code().name, told.details() or "")

    def beside(self, method: str) -> Call:
        """Another call of the same caller, for one more request that came with this one; `method` names its
        span."""
        other = Call(self._serving, self._caller, method, self.arrived, self._system)
        other.who = self.who
        return other

    async def generate(
        self, wire: bytes, message: pb.GenerateRequest, sink: Sink, *, tell_after_s: float = 0.0
    ) -> None:
        """Lets one request in, and streams its answer into `sink`.

        Args:
            wire: the request, serialised.
            message: the same, decoded. It has not been checked.
            sink: takes the answer.
            tell_after_s: where it asks what it waits for, a shorter wait is not told, in seconds.

        Raises:
            ChironError: invalid, refused, or ended here.
            WorkerStatusError: the worker's own error.
        """
        [request] = self.admit(message)
        await self.run(wire, message, request, sink, tell_after_s=tell_after_s)

    def admit(self, *messages: pb.GenerateRequest) -> list[PendingRequest]:
        """Lets the requests of one caller in, all or none, before any of them begins.

        Whoever has them runs each (`run`), or gives back what it holds (`leave`).

        Args:
            messages: have not been checked. They get the defaults of the caller's key.

        Raises:
            ChironError: one of them is invalid, or they may not run, or not together.
        """
        requests: list[PendingRequest] = []
        try:
            for message in messages:
                violations = check_generate(message)
                if violations:
                    raise ChironError.invalid(violations)
                if self.who is not None:
                    # The worker takes them from the ticket, which counts before what the request says.
                    self.who.fill(message)
                requests.append(self._wanted(message))
                self.request = requests[0]
            self._serving.placer.access.admit(self.who, *requests)
        except ChironError as error:
            for request in requests:
                self._failed(error, request, None)
            raise
        return requests

    async def run(
        self,
        wire: bytes,
        message: pb.GenerateRequest,
        request: PendingRequest,
        sink: Sink,
        *,
        tell_after_s: float = 0.0,
    ) -> None:
        """Streams the answer to one request into `sink`; in the end it holds nothing any more.

        Args:
            wire: the request, serialised.
            message: the same, decoded.
            request: the same, as it was let in.
            sink: takes the answer.
            tell_after_s: where it asks what it waits for, a shorter wait is not told, in seconds.

        Raises:
            ChironError: refused, or ended here.
            WorkerStatusError: the worker's own error.
        """
        placer = self._serving.placer
        tally: Tally | None = None
        self.request = request
        try:
            if placer.prefix_affinity:
                request.prefixes = salted(request.tenant, prefix_hashes(message))
            tally = self._arrive(request, message.attempt)
            await self._serving.proxy.run(
                wire,
                message,
                request,
                sink,
                self.trace,
                tell_progress=message.tell_progress,
                tell_after_s=tell_after_s,
            )
            if tally is not None:
                tally.finished()
        except BaseException as error:
            self._failed(error, request, tally)
            raise
        finally:
            leave(request)

    async def route(
        self, message: pb.RouteRequest, remaining_s: float | None, tell: Tell | None = None
    ) -> pb.RouteResponse:
        """Finds an instance to which the caller goes itself.

        Args:
            message: has not been checked.
            remaining_s: time until the call's deadline, in seconds; None: it has none.
            tell: is told what the request waits for; None: nobody asks.

        Raises:
            ChironError: invalid or refused.
        """
        placer = self._serving.placer
        tally: Tally | None = None
        request: PendingRequest | None = None
        try:
            violations = check_route(message)
            if violations:
                raise ChironError.invalid(violations)
            if self.who is not None:
                self.who.fill(message)
            request = self._pending(message, message.prompt_tokens)
            request.lookaside, request.opener = True, placer.door.opener(self._caller)
            request.max_tokens, request.choices = message.max_tokens, max(1, message.choices)
            if message.spec_version:
                request.resume(message.spec_version, self.arrived)
            request.handed_back = message.handed_back and (_batch(request) or bool(message.spec_version))
            request.excluded_ids = message.excluded_instance_ids
            placer.access.admit(self.who, request)
            if placer.prefix_affinity:
                request.prefixes = salted(request.tenant, message.prefix_hashes)
            tally = self._arrive(request, message.attempt)
            return await self._serving.lookaside.run(message, request, remaining_s, self.trace, tell)
        except BaseException as error:
            self._failed(error, request, tally)
            raise
        finally:
            leave(request)

    def _wanted(self, message: pb.GenerateRequest) -> PendingRequest:
        """A request that is proxied, as the placement sees it."""
        request = self._pending(message, estimate_prompt_tokens(message))
        request.max_tokens, request.choices = message.sampling.max_tokens, max(1, message.sampling.n)
        request.parses_calls = parses_calls(message)
        if message.resume.delivered_token_ids:
            resumed = message.resume
            request.resume(resumed.origin.spec_version, self.arrived, len(resumed.delivered_token_ids))
            request.handed_back = _batch(request) and resumed.origin.preemptions > 0
        return request

    def _pending(self, message: pb.GenerateRequest | pb.RouteRequest, prompt_tokens: int) -> PendingRequest:
        placer, arrived = self._serving.placer, self.arrived
        kind = request_class(message.request_class)
        slo = types_pb2.Slo()
        if (routed := placer.model(message.model)) is not None:
            defaults = routed.slo_defaults
            slo.CopyFrom(defaults.batch if kind is RequestClass.BATCH else defaults.interactive)
        slo.MergeFrom(message.slo)
        return PendingRequest(
            request_id=message.request_id or uuid.uuid4().hex,
            model=message.model,
            request_class=kind,
            arrived=arrived,
            priority=message.priority,
            prompt_tokens=prompt_tokens,
            adapter=message.adapter,
            slo=slo,
            elapsed_s=message.elapsed_ms / 1000,
            refuse_if_late=slo.refuse_if_late if slo.HasField("refuse_if_late") else placer.refuse_if_late,
            deadline=arrived + slo.deadline_s - message.elapsed_ms / 1000 if slo.deadline_s > 0 else None,
        )

    def _arrive(self, request: PendingRequest, attempt: int) -> Tally | None:
        placer = self._serving.placer
        self.trace.request(request)
        # The placer refuses unknown names; they are not counted.
        known = placer.model(request.model) is not None
        tally = placer.demand.tally(request.model, request.request_class, slo=request.promised)
        if known and attempt == 0 and not placer.has_ticket(request.request_id):
            # Whoever cannot use a ticket comes again under the same attempt.
            tally.arrived()
        book = placer.book
        if book is not None and known:
            book.begin(request, attempt)
        if self._serving.refusing:
            # Another router will say how it ended, but not that it came: there it is a retry.
            raise ChironError(Reason.RETRY_ELSEWHERE, self._serving.refusing)
        return tally if known else None

    def _failed(self, error: BaseException, request: PendingRequest | None, tally: Tally | None) -> None:
        """Counts and records a request that ends so."""
        book = self._serving.placer.book if request is not None else None
        if isinstance(error, ChironError):
            refused = error.reason in _REFUSED
            if book is not None and request is not None:
                book.gave_up(request.request_id, "refused" if refused else "failed", error.reason.name)
            if tally is not None:
                (tally.refused if refused else tally.failed)(missed=missed(error.reason))
        elif isinstance(error, WorkerStatusError):
            reason = reason_of(error.error)
            if book is not None and request is not None:
                book.gave_up(request.request_id, "failed", reason or error.error.code().name)
            if tally is not None:
                # What a worker gives a reason for, it has counted itself.
                tally.failed(missed=not reason)
        elif isinstance(error, asyncio.CancelledError):
            if book is not None and request is not None:
                book.gave_up(request.request_id, "cancelled", "")
            if tally is not None:
                tally.cancelled()


def _batch(request: PendingRequest) -> bool:
    return request.request_class is RequestClass.BATCH
