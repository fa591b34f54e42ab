"""One claimed item on its way: through the same placement and proxy as a stream, into an `Answer`."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from chiron.batch import wire
from chiron.batch.records import Claim, ItemState, Outcome, Return, Session
from chiron.client.prefix import prefix_hashes
from chiron.client.request import estimate_prompt_tokens
from chiron.policy.words import RequestClass
from chiron.policy.work_units import Taken
from chiron.requests.prefixes import salted
from chiron.requests.tools import parses_calls
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.answer import Answer, read_checkpoint
from services.router.batch.settings import BatchSettings
from services.router.batch.turnstile import Turnstile
from services.router.batch.verdicts import Then, Verdict, verdict
from services.router.placer import Placer
from services.router.proxy import Proxy, WorkerStatusError
from services.router.request import PendingRequest
from services.router.retries import Retries
from services.router.spans import RequestTrace

_METHOD = "chiron.batch/Item"
MOST_RESUMES = 2
"""Lost instances over which one claim goes on; then the queue has it back, and counts if it does not get
on."""


@dataclass(slots=True, eq=False)
class RunningItem:
    """A claim that this router works on."""

    claim: Claim
    taken: Taken
    session: Session
    answer: Answer = field(default_factory=lambda: Answer(1))
    task: asyncio.Task[None] | None = None
    dropped: bool = False
    """Nobody wants its result any more."""
    seen_tokens: int = 0
    """Output tokens when it was last looked at."""
    kept_tokens: int = 0
    """Output tokens in its last checkpoint."""
    kept_at: float = 0.0
    """When that was made, monotonic, in seconds."""

    @property
    def size(self) -> int:
        """Bytes that it holds besides its answer."""
        return len(self.claim.body) + len(self.claim.checkpoint)


@dataclass(frozen=True, slots=True)
class Ended:
    """What is to be written of an item."""

    end: Outcome | Return
    whole_unit_s: float = 0.0
    """Nothing of its unit is to be tried for this long, in seconds."""


class ItemRunner:
    """Runs claims, each in the task that calls it."""

    def __init__(self, settings: BatchSettings, placer: Placer, proxy: Proxy, retries: Retries) -> None:
        self._settings = settings
        self._placer = placer
        self._proxy = proxy
        self._retries = retries
        self._time = asyncio.get_running_loop().time
        self._turnstile = Turnstile()

    async def run(self, item: RunningItem, deadline: float, *, tracing: bool) -> Ended:
        """Works on it until there is something to write.

        Args:
            item: whose `answer` it fills.
            deadline: of the item, monotonic, in seconds.
            tracing: whether spans are exported.
        """
        claim = item.claim
        # Items come by dozens, and from here to the worker nothing else has its turn.
        await self._turnstile.enter(len(claim.body))
        try:
            message = wire.request_of(claim.body)
        except DecodeError as error:
            text = f"the item that was kept cannot be read: {error}"
            return Ended(Outcome(claim.lease, ItemState.FAILED, wire.failed(Reason.INTERNAL.name, text)))
        kept = read_checkpoint(claim.checkpoint) if message.sampling.n <= 1 else None
        restarted = False
        while True:
            overlay = pb.GenerateRequest(
                request_id=_request_id(claim), request_class=types_pb2.REQUEST_CLASS_BATCH
            )
            if kept is not None:
                overlay.resume.CopyFrom(kept.resume)
            item.answer = Answer(max(1, message.sampling.n), kept)
            item.seen_tokens = item.kept_tokens = item.answer.begun_with
            item.kept_at = self._time()
            asked = pb.GenerateRequest()
            asked.CopyFrom(message)
            asked.MergeFrom(overlay)
            told = await self._attempt(item, asked, overlay, deadline, restarted=restarted, tracing=tracing)
            if not isinstance(told, Verdict):
                return told
            if told.then is not Then.AGAIN:
                self._record(asked.request_id, told)
                return self._end(item, told, restarted=restarted)
            restarted, kept = True, None

    async def _attempt(
        self,
        item: RunningItem,
        asked: pb.GenerateRequest,
        overlay: pb.GenerateRequest,
        deadline: float,
        *,
        restarted: bool,
        tracing: bool,
    ) -> Ended | Verdict:
        claim, answer = item.claim, item.answer
        trace = RequestTrace(tracing, _METHOD, ())
        attempts = self._retries.begin(first=True)
        try:
            request = self._pending(claim, asked, deadline)
            trace.request(request)
            self._placer.access.admit_item(claim.lease.batch[0], request)
            if self._placer.book is not None:
                self._placer.book.begin_item(request, claim.lease.batch, claim.lease.index)
            if self._placer.prefix_affinity:
                request.prefixes = salted(request.tenant, prefix_hashes(asked))
            # Of a field that occurs twice the last value counts, so that the prompt is not encoded again.
            sent = claim.body + overlay.SerializeToString()
            await self._proxy.run(sent, asked, request, answer, trace, attempts)
            if answer.given_up:
                return Verdict(Then.LATER, Reason.ABORTED.name, "the engine gave it up", counts=True)
            if answer.complete:
                return _succeeded(item)
            text = "the instance ended its answer before the last message"
            return Verdict(Then.LATER, Reason.INTERNAL.name, text, counts=True)
        except (ChironError, WorkerStatusError, DecodeError) as error:
            told = verdict(
                error,
                faults=attempts.faults,
                gained=_tokens(answer) - answer.begun_with,
                each=self._settings.checkpoint_tokens,
                restarted=restarted,
            )
            trace.error(told.reason, told.message)
            return told
        finally:
            trace.end()

    def _record(self, request_id: str, told: Verdict) -> None:
        book = self._placer.book
        if book is not None and told.then is Then.LATER:
            book.put_back(request_id)
        elif book is not None:
            book.gave_up(request_id, "failed", told.reason)

    def _pending(self, claim: Claim, asked: pb.GenerateRequest, deadline: float) -> PendingRequest:
        slo = types_pb2.Slo()
        if (routed := self._placer.model(claim.model)) is not None:
            slo.CopyFrom(routed.slo_defaults.batch)
        slo.MergeFrom(asked.slo)
        # Its deadline is the batch's, and ends no wait unless the batch says so.
        slo.ClearField("deadline_s")
        slo.ClearField("refuse_if_late")
        now = self._time()
        request = PendingRequest(
            request_id=asked.request_id,
            model=claim.model,
            request_class=RequestClass.BATCH,
            arrived=now,
            priority=asked.priority,
            prompt_tokens=claim.prompt_tokens or estimate_prompt_tokens(asked),
            adapter=asked.adapter,
            max_tokens=asked.sampling.max_tokens,
            choices=max(1, asked.sampling.n),
            parses_calls=parses_calls(asked),
            slo=slo,
            deadline=deadline,
            patient=not claim.expire_late,
        )
        if asked.resume.delivered_token_ids:
            resumed = asked.resume
            request.resume(resumed.origin.spec_version, now, len(resumed.delivered_token_ids))
        return request

    # What is written.

    def _end(self, item: RunningItem, told: Verdict, *, restarted: bool) -> Ended:
        lease = item.claim.lease
        if told.then is Then.FAIL:
            return Ended(Outcome(lease, ItemState.FAILED, told.error))
        if told.then is Then.EXPIRE:
            return Ended(Outcome(lease, ItemState.EXPIRED, told.error))
        settings = self._settings
        pause_s = min(settings.retry_first_s * 2 ** min(item.claim.attempt - 1, 16), settings.retry_longest_s)
        pause_s = max(pause_s, told.after_s or 0.0)
        # What could not be gone on from is not kept.
        lost = restarted or told.reason == Reason.CANNOT_RESUME.name
        kept = b"" if told.reason == Reason.CANNOT_RESUME.name else _checkpoint(item.answer)
        return Ended(
            Return(lease, pause_s, kept or (b"" if lost else None), told.counts, told.error),
            whole_unit_s=pause_s if told.whole_unit else 0.0,
        )


def let_go(item: RunningItem) -> Ended:
    """An item that this router stops without having failed it: it goes back with how far it has come."""
    if _whole(item.answer):
        return _succeeded(item)
    return Ended(Return(item.claim.lease, 0.0, _checkpoint(item.answer) or None, counts=False))


def expired(item: RunningItem) -> Ended:
    """An item whose deadline has passed, in a batch that ends with it."""
    if _whole(item.answer):
        return _succeeded(item)
    text = "the deadline passed while the item ran"
    result = wire.failed(Reason.DEADLINE_EXCEEDED.name, text)
    return Ended(Outcome(item.claim.lease, ItemState.EXPIRED, result))


def broken(claim: Claim, pause_s: float) -> Return:
    """An item that this router could not work on, for a reason of its own."""
    return Return(claim.lease, pause_s, failure=wire.failed(Reason.INTERNAL.name, "a router failed it"))


def _request_id(claim: Claim) -> str:
    """Names the claim: what an earlier holder of the item has sent is another request."""
    tenant, batch_id = claim.lease.batch
    batch = hashlib.sha256(f"{tenant}\0{batch_id}".encode()).hexdigest()[:24]
    return f"batch-{batch}.{claim.lease.index}.{claim.lease.fence}"


def _succeeded(item: RunningItem) -> Ended:
    usage = item.answer.usage
    return Ended(
        Outcome(
            item.claim.lease,
            ItemState.SUCCEEDED,
            wire.succeeded(item.answer.output(item.claim.model)),
            usage.prompt_tokens,
            usage.completion_tokens,
        )
    )


def _whole(answer: Answer) -> bool:
    try:
        return answer.complete and not answer.given_up
    except DecodeError:
        return False


def _tokens(answer: Answer) -> int:
    try:
        return answer.tokens
    except DecodeError:
        return answer.begun_with


def _checkpoint(answer: Answer) -> bytes:
    try:
        return b"" if answer.given_up else answer.checkpoint()
    except DecodeError:
        return b""
