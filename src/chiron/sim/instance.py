"""One simulated instance: what comes to its engine and what is taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chiron.engine import RequestPhase
from chiron.policy.snapshots import HANDED_OVER
from chiron.policy.words import Phase, Role
from chiron.sim.agenda import Agenda
from chiron.sim.driver import Driver
from chiron.sim.ledger import Ledger
from chiron.sim.seen import Seen
from chiron.sim.settings import SimModel, SimSettings

_READY = Phase.READY
"""A ready instance whose load message is under way has nobody to tell of another change."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What of an instance never changes."""

    instance_id: str
    number: int
    """In order of start, over all models."""
    model_index: int
    node_id: str
    gpu_indexes: tuple[int, ...]


class SimInstance(Driver):
    """One instance: an engine that is driven, what comes to it, and what is taken from it."""

    __slots__ = (
        "dead",
        "identity",
        "itl_s",
        "model",
        "phase_since_s",
        "reloading",
        "role",
        "safe_batch_size",
        "seen",
        "tokens_per_s",
        "waking",
    )

    def __init__(
        self,
        identity: Identity,
        model: SimModel,
        role: Role,
        settings: SimSettings,
        agenda: Agenda,
        ledger: Ledger,
        on_change: Callable[[SimInstance, float], None],
    ) -> None:
        super().__init__(identity.number, model, settings, agenda, ledger, on_change)
        self.identity = identity
        self.model = model
        self.role = role
        self.phase_since_s = 0.0
        self.waking = False
        self.dead = False
        self.reloading: dict[int, int] = {}
        """Requests whose KV cache is being copied here, and its tokens."""
        self.itl_s = 0.0
        self.tokens_per_s = 0.0
        """Output tokens per second over the last sample, as measured."""
        self.safe_batch_size = model.initial_batch_size
        self.seen = Seen(self)

    @property
    def instance_id(self) -> str:
        """Unique id."""
        return self.identity.instance_id

    @property
    def claim(self) -> tuple[str, tuple[int, ...]]:
        """Its node, and the indexes of its GPUs there."""
        return self.identity.node_id, self.identity.gpu_indexes

    @property
    def empty(self) -> bool:
        """Whether no request waits or runs, results of the step under way included."""
        return self._idle and not self.reloading

    def submit(self, request_id: int, now: float, restored_tokens: int = 0, goes_on: bool = False) -> None:
        """Take a request; the engine considers it when its next step begins.

        goes_on: it has run before, here or, with its KV cache, elsewhere, and goes before others that wait.
        """
        engine = self.engine
        if self._ahead.steps and not self._interrupted and not engine.full:
            self._interrupt(now)
        ledger = self._ledger
        if restored_tokens or goes_on or ledger.prefix is not None:
            engine.submit(ledger.engine_request(request_id, restored_tokens, goes_on))
        else:
            engine.submit_plain(
                request_id,
                ledger.prompt_tokens[request_id],
                ledger.output_tokens[request_id],
                ledger.priority[request_id],
                ledger.delivered.get(request_id, 0),
            )
        ledger.submitted_s[request_id] = now
        if ledger.is_batch[request_id]:
            self.waiting_batch += 1
            self.batch_ids[request_id] = None
        else:
            self.waiting_interactive += 1
        if self._idle:
            self._idle = False
            self._begin(now)
        if not self.message_due or self.phase is not _READY:
            self._on_change(self, now)

    def reload(self, request_id: int, tokens: int, takes_s: float, now: float) -> None:
        """Take a request whose KV cache is copied back first, beside the engine's steps."""
        self.reloading[request_id] = tokens
        self.waiting_batch += 1
        self._agenda.at(now + takes_s, self._reloaded, request_id)
        self._on_change(self, now)

    def _reloaded(self, now: float, request_id: int) -> None:
        tokens = self.reloading.pop(request_id, None)
        if tokens is not None:
            self.waiting_batch -= 1
            self.submit(request_id, now, tokens)

    def decoding(self, now: float) -> list[tuple[int, int]]:
        """(request id, tokens in the KV cache) of those that decode, at the end of the step under way."""
        self.settle(now)
        return [(request_id, tokens) for request_id, tokens, _ in self.engine.decoding_progress()]

    def hand_over(self, request_id: int, now: float) -> tuple[int, float] | None:
        """Give a decoding request up, for another instance to go on with.

        Return the tokens in its KV cache and when it leaves, the end of the step under way; None when that
        step finishes it.
        """
        self.settle(now)
        left_s = self._alarm_s
        tokens = self.remove(request_id, now, left_s)
        if tokens is None:
            return None
        ledger = self._ledger
        begun_s = ledger.came_s.get(request_id, ledger.first_token_s[request_id])
        self.history.moved.append((request_id, begun_s, left_s))
        return tokens, left_s

    def take_over(self, request_id: int, tokens: int, arrives_s: float, now: float) -> None:
        """Take a request that another instance has given up; the last of its KV cache arrives later."""
        self.reloading[request_id] = tokens
        self._count(request_id, False, 1)
        self._ledger.came_s[request_id] = arrives_s
        self._agenda.at(arrives_s, self._taken_over, (request_id, self._ledger.submitted_s[request_id]))
        self._on_change(self, now)

    def _taken_over(self, now: float, came: tuple[int, float]) -> None:
        request_id, submitted_s = came
        tokens = self.reloading.pop(request_id, None)
        if tokens is not None:
            self._count(request_id, False, -1)
            self.submit(request_id, now, tokens, goes_on=True)
            # Its service has begun where it was before.
            self._ledger.submitted_s[request_id] = submitted_s

    def set_limits(self, batch_size: int, step_token_budget: int, now: float) -> None:
        """Set the engine's limits from its next step on."""
        engine = self.engine
        if (batch_size, step_token_budget) != (engine.batch_size, engine.step_token_budget):
            self.settle(now)
            engine.set_batch_size(batch_size)
            self._full_at = batch_size * HANDED_OVER
            engine.set_step_token_budget(step_token_budget)
            self._on_change(self, now)

    def remove(self, request_id: int, now: float, left_s: float | None = None) -> int | None:
        """Give a request up at the end of the step under way.

        left_s: when that is, where its stream must be told to have stopped then and not now. Return the
        tokens in its KV cache, or None when that step finishes it.
        """
        if self.reloading.pop(request_id, None) is not None:
            self._count(request_id, False, -1)
            return 0
        self.settle(now)
        engine = self.engine
        if request_id not in engine:
            return None
        progress = engine.progress(request_id)
        engine.abort(request_id)
        self._count(request_id, progress.phase is not RequestPhase.WAITING, -1)
        if self._ledger.is_batch[request_id]:
            del self.batch_ids[request_id]
        self._ledger.put_back(request_id, progress.emitted_tokens, now if left_s is None else left_s)
        self._batch_changed = True
        self.kv_free_tokens = engine.kv_free_tokens
        self._on_change(self, now)
        return progress.computed_tokens

    def request_ids(self, now: float) -> list[int]:
        """All that run or wait, running ones first, at the end of the step under way."""
        self.settle(now)
        return [*self.engine.running_ids(), *self.engine.waiting_ids(), *self.reloading]

    def held_ids(self) -> list[int]:
        """All that the instance has and has not published as finished, as its engine stands."""
        engine = self.engine
        return [*engine.running_ids(), *engine.waiting_ids(), *self.reloading, *self._finished]

    def emitted_of(self, request_id: int) -> int:
        """Tokens that the engine has emitted of a request that it holds."""
        if request_id in self.engine:
            return self.engine.progress(request_id).emitted_tokens
        if request_id in self.reloading:
            return 0
        ledger = self._ledger
        return ledger.output_tokens[request_id] - ledger.delivered.get(request_id, 0)

    def kill(self) -> None:
        """Stop for good; what the engine holds must have been removed."""
        self.dead = True
        self._alarm = -1
        self._idle = True
