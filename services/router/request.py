"""What the router knows of a request while it looks for an instance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chiron.auth.quotas import Hold
from chiron.policy.dispatch import Decision
from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError
from chiron.v1 import types_pb2
from services.router.abandoned import Opener
from services.router.reservations import Reservation


@dataclass(frozen=True, slots=True)
class Placement:
    """An instance that has a slot reserved for a request."""

    instance_id: str
    incarnation: int
    address: str
    decision: Decision
    reservation: Reservation
    spec_version: int = 0
    """Version of the model's spec that the instance runs; 0: unknown."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An instance that refused or failed a request; it counts for that incarnation only."""

    incarnation: int
    until: float
    """Monotonic time from which it may be tried again when nothing else is left, in seconds."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request on its way to an instance; compared by identity."""

    request_id: str
    model: str
    request_class: RequestClass
    arrived: float
    """Monotonic time of arrival, in seconds."""
    priority: int = 0
    prompt_tokens: int = 0
    prefixes: tuple[int, ...] = ()
    """Names of its prompt's beginnings, salted with its tenant; empty: prefixes do not count."""
    believed: Mapping[str, int] = field(default_factory=dict)
    """Instance id → leading prompt tokens that were believed to be cached there when it was last placed."""
    adapter: str = ""
    tenant: str = ""
    """Who pays; empty where tenancy is off."""
    max_tokens: int = 0
    """Most output tokens of each choice; 0: the model's own limit."""
    max_prompt_tokens: int = 0
    """Longest prompt; 0: the model's own limit."""
    choices: int = 1
    parses_calls: bool = False
    """Whether tool calls are to be parsed, which needs a model that has a parser for them."""
    hold: Hold | None = None
    """What it has taken of its tenant's quota."""
    ran: bool = False
    """Whether an instance may have worked on it: then it counts, however it ends."""
    lookaside: bool = False
    """True when the client streams from the worker itself."""
    slo: types_pb2.Slo = field(default_factory=types_pb2.Slo)
    """Its own, the model's defaults for what it leaves open."""
    elapsed_s: float = 0.0
    """Time that it had spent before it arrived, in seconds."""
    deadline: float | None = None
    """Monotonic time by which its whole result is wanted, in seconds: it waits no longer. None: no limit."""
    refuse_if_late: bool = False
    """Whether it is refused where it would wait for longer than its SLO allows."""
    patient: bool = False
    """Whether it waits on past its deadline."""
    opener: Opener | None = None
    """Who opened it, where a ticket is asked for."""
    excluded_ids: Sequence[str] = ()
    """Instances that the client has found unusable for it."""
    sequence: int = 0
    """Order of arrival, given by the core; kept over retries."""
    admitted: bool = False
    """True once it has been placed or queued: the queue's limit does not apply to it again."""
    excluded: dict[str, Exclusion] = field(default_factory=dict)
    resumed_at: float | None = None
    """When it came to go on from delivered tokens, monotonic, in seconds: it waits from then on, ahead of
    those that have not begun, and its SLO's deadline ends the wait no more. None: it begins."""
    attained_tokens: int = 0
    """Output tokens that it is known to have had when it came to go on."""
    charged: float = 0.0
    """What its tenant's share was charged when it last left the queue for an instance."""
    spec_version: int = 0
    """Of the model's spec that a resumed stream began on; it goes to the same weights alone. 0: to any."""
    handed_back: bool = False
    """Whether an instance has given it back, for interactive work or because it drains: it waits for as long
    as it must."""

    @property
    def promised(self) -> bool:
        """Whether it carries an SLO by which its class is judged."""
        slo = self.slo
        if self.request_class is RequestClass.BATCH:
            return slo.deadline_s > 0
        return slo.ttft_ms > 0 or slo.itl_ms > 0

    def late(self, now: float) -> bool:
        """Whether an interactive request that has had no token has waited for longer than its SLO allows."""
        if self.request_class is RequestClass.BATCH or self.resumed_at is not None:
            return False
        return 0 < self.slo.ttft_ms < 1e3 * (now - self.arrived + self.elapsed_s)

    @property
    def due(self) -> float:
        """What queues go by, monotonic, in seconds: an interactive request's first token, a batch request's
        whole result; inf: nothing is promised."""
        if self.request_class is RequestClass.BATCH:
            return math.inf if self.deadline is None else self.deadline
        ttft_ms = self.slo.ttft_ms
        return self.arrived - self.elapsed_s + ttft_ms / 1e3 if ttft_ms > 0 else math.inf

    def resume(self, spec_version: int, now: float, attained_tokens: int = 0) -> None:
        """From now on it looks for an instance that goes on."""
        self.resumed_at, self.spec_version = now, spec_version
        # It has run: nothing of its charge is given back.
        self.charged = 0.0
        self.attained_tokens = max(self.attained_tokens, attained_tokens)


@dataclass(frozen=True, slots=True)
class Place:
    """Instruction: the request has an instance."""

    request: PendingRequest
    placement: Placement


@dataclass(frozen=True, slots=True)
class Refuse:
    """Instruction: the request ends with an error."""

    request: PendingRequest
    error: ChironError


@dataclass(frozen=True, slots=True)
class OpenWatch:
    """Instruction: subscribe to an instance's load; `watch` marks what the subscription reports."""

    instance_id: str
    address: str
    watch: int


@dataclass(frozen=True, slots=True)
class CloseWatch:
    """Instruction: end the subscription to an instance, and the connections to it."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Instruction: try elsewhere what an instance has been sent and has not begun to answer."""

    instance_id: str
    begun: bool = False
    """Also what it has begun to answer: another instance can go on with that."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Instruction: count a lookaside request that its worker reports as ended."""

    model: str
    request_class: RequestClass


@dataclass(frozen=True, slots=True)
class Unused:
    """Instruction: count a ticket that nobody has used, although its worker was there."""

    opener: Opener


Instruction = Place | Refuse | OpenWatch | CloseWatch | Abandon | Ended | Unused


def request_class(value: types_pb2.RequestClass.ValueType) -> RequestClass:
    """The class of a request; unspecified is interactive."""
    return RequestClass.BATCH if value == types_pb2.REQUEST_CLASS_BATCH else RequestClass.INTERACTIVE
