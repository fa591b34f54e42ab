"""Which instance takes a request: a snapshot of one model's instances in, a decision with its scores out.

Pure: no clock, no I/O, no randomness. The router passes its freshest view and carries the decision out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from chiron.policy.affinity import Offer, prefer_cached
from chiron.policy.custom import load_custom
from chiron.policy.words import RequestClass, Role


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance that accepts requests, as its router sees it.

    Freshness: what the worker counts is as of its last load message, at most 20 ms after a change plus the
    network; what the router counts is exact at the time of the call.
    """

    instance_id: str
    """Unique id. Fixed."""
    role: Role
    """Which classes it takes. The worker's last load message."""
    batch_size: int
    """Most requests that it runs at once, in requests, >= 1. The worker's last load message."""
    running: int
    """Requests in its batch, of both classes. The worker's last load message."""
    waiting_interactive: int
    """Interactive requests in the engine's queue. The worker's last load message."""
    waiting_batch: int
    """Batch requests in the engine's queue. The worker's last load message."""
    reserved: int
    """Requests that this router has sent there and the worker has not counted yet. Exact."""
    queue_allowance: int
    """Requests beyond the batch size that may wait at this worker. Configured."""
    kv_free_tokens: int
    """Free KV cache, in tokens. The worker's last load message."""
    itl_ms: float
    """Mean time between tokens over the last second, in milliseconds; 0: nothing ran. Up to 1 s old."""
    service_s: float
    """Mean time for which a request keeps its slot, in seconds, > 0. Smoothed over requests that ended."""
    yielding: int = 0
    """Batch requests among `running` that give way to an interactive request as soon as it arrives. The
    worker's last load message."""
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens that it computes a second for one request; 0: unknown. Smoothed over first tokens."""


@dataclass(frozen=True, slots=True)
class DispatchRequest:
    """What of a request matters for its placement."""

    request_class: RequestClass
    prompt_tokens: int = 0
    """Known or estimated prompt length, in tokens; 0: unknown."""
    excluded: frozenset[str] = frozenset()
    """Ids of instances that must not be picked."""
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Instance id → leading prompt tokens that its engine is believed to have in its cache, > 0. What routers
    have sent there, as corrected by the workers' load messages."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The instance that takes the request."""

    instance_id: str
    reason: str
    """Why this one, in a few words."""
    scores: Mapping[str, float]
    """Instance id → expected wait before the engine runs the request, in seconds, of every candidate."""
    cached_tokens: int = 0
    """Prompt tokens that need not be computed there, as far as is believed."""


class RefusalKind(Enum):
    """Why no instance takes a request now."""

    NO_INSTANCE = "no instance accepts requests"
    EXCLUDED = "every instance has been excluded"
    NO_ROLE = "no instance takes this request class"
    FULL = "every instance is full"


@dataclass(frozen=True, slots=True)
class Refusal:
    """No instance takes the request now; the same request may be placed when the snapshot changes."""

    kind: RefusalKind
    reason: str


MOST_WAITING = 32
"""Interactive requests, those under way to it included, that an engine with free slots may have waiting:
enough prompts for its next steps. Any more would wait there for their prompts to be computed, although
another instance may be done sooner."""


class Dispatcher(Protocol):
    """Chooses an instance for a request."""

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """Returns one of `instances` with room, of a fitting role and not excluded, or why there is none."""
        ...


_ROLE_RANK: Mapping[RequestClass, Mapping[Role, int]] = {
    RequestClass.INTERACTIVE: {Role.INTERACTIVE: 0, Role.MIXED: 1},
    RequestClass.BATCH: {Role.BATCH: 0, Role.MIXED: 1},
}
_REASONS = {
    (False, Role.INTERACTIVE): "free slot on an interactive instance",
    (False, Role.MIXED): "free slot on a mixed instance",
    (False, Role.BATCH): "free slot on a batch instance",
    (True, Role.INTERACTIVE): "no slot is free; least expected wait, on an interactive instance",
    (True, Role.MIXED): "no slot is free; least expected wait, on a mixed instance",
    (True, Role.BATCH): "no slot is free; least expected wait, on a batch instance",
}


class LeastExpectedWait:
    """Picks the instance where the engine is expected to run the request soonest.

    Requests ahead = running + waiting + reserved; batch requests in the engine's queue stand behind an
    interactive one and do not count for it. With fewer ahead than the batch size a slot is free and the wait
    is 0, unless requests wait although slots are free and the KV cache has no room for this prompt: then
    those waiting go first. Otherwise the request needs (ahead + 1 - batch size) of the running ones to end,
    which happens every (service time / batch size) seconds on average. An engine with free slots that has
    `MOST_WAITING` prompts to compute takes no further interactive request: an instance that has just become
    ready would otherwise get all that waits, and compute prompts for longer than the TTFT SLO.

    A free slot is taken on the role dedicated to the class, then on a mixed instance; while none is free, the
    least wait counts before the role. Ties go to the lower share of slots in use, then the lower inter-token
    latency, then the id. Batch requests get the spare slots of a mixed instance, never a place in its queue.

    Where parts of the prompt are cached, an instance that has more of it takes the place of the one found so,
    if its first token is predicted sooner and it is loaded about alike (`chiron.policy.affinity`).
    """

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        """See `Dispatcher.pick`. O(number of instances)."""
        if not instances:
            return Refusal(RefusalKind.NO_INSTANCE, RefusalKind.NO_INSTANCE.value)
        excluded = request.excluded
        interactive = request.request_class is RequestClass.INTERACTIVE
        ranks = _ROLE_RANK[request.request_class]
        kind = RefusalKind.EXCLUDED
        scores: dict[str, float] = {}
        best: InstanceView | None = None
        best_key: tuple[bool, int, float, int, float, float, str] | None = None
        cached, warm = request.cached_tokens, []
        for view in instances:
            if view.instance_id in excluded:
                continue
            rank = ranks.get(view.role)
            if rank is None:
                kind = kind if kind is RefusalKind.FULL else RefusalKind.NO_ROLE
                continue
            waiting = view.waiting_interactive + (0 if interactive else view.waiting_batch)
            ahead = view.running + waiting + view.reserved
            allowance = 0 if not interactive and view.role is Role.MIXED else view.queue_allowance
            if ahead >= view.batch_size + allowance or (
                interactive
                and ahead < view.batch_size
                and view.waiting_interactive + view.reserved >= MOST_WAITING
            ):
                kind = RefusalKind.FULL
                continue
            excess = ahead + 1 - view.batch_size
            if excess <= 0:
                excess = waiting + 1 if waiting and view.kv_free_tokens < request.prompt_tokens else 0
            wait_s = excess * view.service_s / view.batch_size
            scores[view.instance_id] = wait_s
            waits = excess > 0
            key = (
                waits,
                0 if waits else rank,
                wait_s,
                rank,
                ahead / view.batch_size,
                view.itl_ms,
                view.instance_id,
            )
            if best_key is None or key < best_key:
                best, best_key = view, key
            if cached and view.instance_id in cached:
                warm.append(Offer(key, view.role, view.prefill_tokens_per_s))
        if best is None or best_key is None:
            return Refusal(kind, kind.value)
        reason = _REASONS[best_key[0], best.role]
        if not warm:
            return Decision(best.instance_id, reason, scores)
        least = Offer(best_key, best.role, best.prefill_tokens_per_s)
        choice, saved_s = prefer_cached(request.prompt_tokens, cached, least, warm)
        found = choice.instance_id
        if choice is not least:
            reason = (
                f"{_REASONS[choice.waits, choice.role]}; {cached[found]} prompt tokens are cached there, "
                f"which saves {1e3 * saved_s:.0f} ms"
            )
        return Decision(found, reason, scores, cached.get(found, 0))


class UnknownDispatcherError(ValueError):
    """No dispatcher has this name; the text lists those there are."""


_BUILT_IN: Mapping[str, type[Dispatcher]] = {"least-expected-wait": LeastExpectedWait}


def load_dispatcher(name: str) -> Dispatcher:
    """Makes a dispatcher by its name, or from `module:Class`.

    Raises UnknownDispatcherError, and PolicyError when the class's own code fails.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    module_name, _, class_name = name.partition(":")
    if not (module_name and class_name):
        known = ", ".join(sorted(_BUILT_IN))
        raise UnknownDispatcherError(f"unknown dispatcher {name!r}: known are {known}, or module:Class")
    made: Dispatcher = load_custom("dispatcher", name, "pick", UnknownDispatcherError)
    return made
