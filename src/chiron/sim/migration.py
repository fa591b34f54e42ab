"""Live migration: running requests go on at another instance, with their KV cache.

Carries out what a planner decides (`chiron.sim.baselines.migration`), at the costs in `MigrationSettings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from chiron.engine import RequestPhase
from chiron.policy.words import Phase, Role
from chiron.sim.agenda import Agenda
from chiron.sim.baselines.migration import MigrationPlanner, MigrationView, Movable
from chiron.sim.cluster import Cluster
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.settings import SimSettings

_DRAINING, _READY = Phase.DRAINING, Phase.READY


@dataclass(slots=True)
class _Transfer:
    """One request on its way."""

    request_id: int
    source: SimInstance
    destination: SimInstance
    copied_tokens: int = 0
    """Of its KV cache, as of the stages that have ended."""
    stages: int = 0
    """Begun so far."""


class Migrations:
    """The migrations of one run: an instance takes part in one transfer at a time."""

    def __init__(
        self,
        settings: SimSettings,
        planner: MigrationPlanner,
        agenda: Agenda,
        cluster: Cluster,
        ledger: Ledger,
    ) -> None:
        self._costs = settings.migration
        self._view_delay_s = settings.telemetry.view_delay_s
        self._planner = planner
        self._agenda = agenda
        self._cluster = cluster
        self._ledger = ledger
        self._models = len(settings.models)
        # Source → destination, as last decided.
        self._paired: dict[str, str] = {}
        self._engaged: set[str] = set()
        # When each node has sent, and received, what it has to.
        self._sent_s: dict[str, float] = {}
        self._received_s: dict[str, float] = {}
        self.done = 0
        """Requests that went on elsewhere."""
        self.given_up = 0
        """Migrations after whose first stage the request had ended or the destination had no room."""
        self.stalls_s: list[float] = []
        """Of each migration, from the end of the last step at the source until all is at the destination."""

    def begin(self) -> None:
        """Begin to look at the instances."""
        self._agenda.at(self._planner.interval_s, self._look)

    def _look(self, now: float, _: object) -> None:
        views: list[list[MigrationView]] = [[] for _ in range(self._models)]
        for instance in self._cluster.instances.values():
            if instance.phase in (_READY, _DRAINING) and not instance.dead:
                views[instance.identity.model_index].append(view_of(instance))
        views = [each for each in views if len(each) > 1]
        if views:
            self._agenda.at(now + self._view_delay_s, self._decide, views)
        self._agenda.at(now + self._planner.interval_s, self._look)

    def _decide(self, now: float, views: list[list[MigrationView]]) -> None:
        pairs = [pair for each in views for pair in self._planner.pairs(each)]
        self._paired = {pair.source: pair.destination for pair in pairs}
        for pair in pairs:
            self._next(pair.source, now)

    def _next(self, source_id: str, now: float) -> None:
        """Begin to move a request from an instance, if it gives and both sides are free to."""
        instances = self._cluster.instances
        source, destination = instances.get(source_id), instances.get(self._paired.get(source_id, ""))
        if source is None or destination is None or not _serves(source, destination):
            return
        if not self._engaged.isdisjoint((source_id, destination.instance_id)):
            return
        room = _room_tokens(destination, now)
        priority = self._ledger.priority
        movable = [
            Movable(request_id, priority[request_id], tokens)
            for request_id, tokens in source.decoding(now)
            if tokens < room
        ]
        request_id = self._planner.choose(movable)
        if request_id is not None:
            self._engaged |= {source_id, destination.instance_id}
            self._stage(now, _Transfer(request_id, source, destination))

    def _stage(self, now: float, transfer: _Transfer) -> None:
        """Begin the next stage, or give the migration up."""
        tokens = self._tokens_now(transfer, now)
        costs = self._costs
        block_size = transfer.source.engine.profile.block_size
        left = tokens - transfer.copied_tokens
        transfer.stages += 1
        if (
            not tokens
            or transfer.stages > costs.max_stages
            or tokens >= _room_tokens(transfer.destination, now)
        ):
            self._end(transfer)
            self.given_up += 1
        elif left <= costs.last_stage_blocks * block_size:
            self._hand_over(transfer, now)
        else:
            transfer.copied_tokens = tokens
            self._agenda.at(self._copied_s(transfer, left, now), self._stage, transfer)

    def _tokens_now(self, transfer: _Transfer, now: float) -> int:
        """In the request's KV cache at the end of the step under way; 0 when it cannot move any more."""
        source = transfer.source
        if source.dead or not _serves(source, transfer.destination):
            return 0
        source.settle(now)
        engine = source.engine
        if transfer.request_id not in engine:
            return 0
        progress = engine.progress(transfer.request_id)
        return progress.computed_tokens if progress.phase is RequestPhase.DECODING else 0

    def _hand_over(self, transfer: _Transfer, now: float) -> None:
        handed = transfer.source.hand_over(transfer.request_id, now)
        if handed is None:
            raise AssertionError(f"request {transfer.request_id} moves and is not there")
        tokens, left_s = handed
        arrives_s = self._copied_s(transfer, tokens - transfer.copied_tokens, left_s) + self._costs.handover_s
        self.done += 1
        self.stalls_s.append(arrives_s - left_s)
        transfer.destination.take_over(transfer.request_id, tokens, arrives_s, now)
        self._agenda.at(arrives_s, self._arrived, transfer)

    def _arrived(self, now: float, transfer: _Transfer) -> None:
        self._end(transfer)
        self._next(transfer.source.instance_id, now)

    def _end(self, transfer: _Transfer) -> None:
        self._engaged -= {transfer.source.instance_id, transfer.destination.instance_id}

    def _copied_s(self, transfer: _Transfer, tokens: int, begins_s: float) -> float:
        """When so many tokens' keys and values are there; a node's copies go one after another."""
        sender = transfer.source.identity.node_id
        receiver = transfer.destination.identity.node_id
        begins_s = max(begins_s, self._sent_s.get(sender, 0.0), self._received_s.get(receiver, 0.0))
        profile = transfer.source.model.profile
        takes_s = tokens * profile.kv_bytes_per_token / self._costs.network_bytes_per_s
        self._sent_s[sender] = self._received_s[receiver] = begins_s + takes_s
        return begins_s + takes_s


def view_of(instance: SimInstance) -> MigrationView:
    """What an instance tells of itself."""
    engine = instance.engine
    return MigrationView(
        instance.identity.instance_id,
        instance.phase is _DRAINING,
        engine.batch_size,
        instance.running_interactive + instance.running_batch,
        instance.waiting_interactive + instance.waiting_batch,
        engine.first_waiting_blocks,
        instance.kv_free_tokens // engine.profile.block_size,
    )


def _serves(source: SimInstance, destination: SimInstance) -> bool:
    """Whether requests of one instance may go on at another."""
    return (
        destination is not source
        and destination.phase is _READY
        and not destination.dead
        and destination.role in (Role.MIXED, source.role)
    )


def _room_tokens(destination: SimInstance, now: float) -> int:
    """KV tokens that are free for a request and its next one; 0 when no slot is, beside all that wait."""
    destination.settle(now)
    engine = destination.engine
    taken = engine.running + engine.waiting + len(destination.reloading)
    return engine.kv_free_tokens if taken < engine.batch_size else 0
