"""The instances that a router knows, their subscriptions, and what they have shown of themselves. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.words import Role
from chiron.v1 import cluster_pb2, types_pb2
from services.router.health import EjectionSettings, Health
from services.router.instance import TrackedInstance
from services.router.outcomes import Blame
from services.router.pool import ModelPool
from services.router.request import Abandon, CloseWatch, Ended, Instruction, OpenWatch, Placement, Unused
from services.router.reservations import Reservation, Reservations

_GONE = (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)
_LATE = 1.25
"""Heartbeats after which one has been missed."""


class Tracking:
    """Instances by id. Its methods mark the views that they change; placing is up to the caller."""

    def __init__(
        self,
        settings: EjectionSettings,
        jitter: Callable[[], float],
        reservations: Reservations,
        pool: Callable[[str], ModelPool],
    ) -> None:
        """Knows nothing yet.

        Args:
            settings: for the ejection of instances.
            jitter: factor of an ejection's length.
            reservations: of all instances.
            pool: the pool of a model, made if need be.
        """
        self.instances: dict[str, TrackedInstance] = {}
        self._settings = settings
        self._jitter = jitter
        self._reservations = reservations
        self._pool = pool
        self._watches = 0
        self._listen_at: float | None = None

    # The table's word.

    def track(self, routed: control_pb2.RoutedInstance, out: list[Instruction]) -> None:
        """The table lists an instance."""
        key = routed.instance_id
        instance = self.instances.get(key)
        if not routed.address or routed.state in _GONE:
            self.forget(key, out)
            return
        leaving = routed.state == types_pb2.INSTANCE_STATE_DRAINING
        if instance is not None and (instance.model, instance.address) == (routed.model, routed.address):
            instance.spec_version = routed.spec_version
            if instance.leaving != leaving:
                # What is promised or has a ticket may still go there: its worker refuses nobody yet.
                instance.leaving = leaving
                self._pool(routed.model).changed()
            return
        self.forget(key, out)
        role = Role(routed.role) if routed.role else Role.MIXED
        instance = TrackedInstance(
            key, routed.model, routed.address, role, routed.incarnation, self._new_health
        )
        instance.spec_version = routed.spec_version
        instance.leaving = leaving
        self.instances[key] = instance
        self._pool(routed.model).instances[key] = instance
        self._watch(instance, out)

    def forget(self, key: str, out: list[Instruction]) -> None:
        """An instance is no longer listed."""
        instance = self.instances.pop(key, None)
        if instance is not None:
            model = self._pool(instance.model)
            del model.instances[key]
            model.doubtful.discard(key)
            if model.affinity is not None:
                model.affinity.void(key)
            model.changed()
            self._reservations.forget(key)
            out.append(CloseWatch(key))

    # The worker's own reports.

    def count(
        self,
        instance: TrackedInstance,
        load: worker_pb2.WatchLoadResponse,
        now: float,
        out: list[Instruction],
    ) -> None:
        """Hands over from this router's reservations to the worker's own count."""
        for ids in (load.started_request_ids, load.finished_request_ids):
            for reservation in self._reservations.confirm(instance.instance_id, ids):
                if reservation.lookaside is not None:
                    instance.lookaside[reservation.request_id] = reservation.lookaside
                    if instance.trial is reservation:
                        # More than this its router never learns of such a request.
                        instance.trial = None
                        instance.health.answered(now)
        if instance.lookaside:
            for request_id in load.finished_request_ids:
                kind = instance.lookaside.pop(request_id, None)
                if kind is not None:
                    out.append(Ended(instance.model, kind))

    def unused(
        self, lapsed: Iterable[Reservation], now: float, silent_s: float, out: list[Instruction]
    ) -> None:
        """Nobody used these tickets in time.

        A worker that has said nothing for `silent_s` may be why, and not their holders; one that reports less
        often while nothing changes is silent only when it has missed a heartbeat.
        """
        for ticket in lapsed:
            instance = self.instances.get(ticket.instance_id)
            if ticket.opener is None or instance is None:
                continue
            if now - instance.heard_at < max(silent_s, _LATE * self._heartbeat_s(instance)):
                out.append(Unused(ticket.opener))

    def superseded(self, ticket: Reservation, out: list[Instruction]) -> None:
        """Its holder has come for another one, and will not use it."""
        if ticket.opener is not None and ticket.instance_id in self.instances:
            out.append(Unused(ticket.opener))

    def lost(self, instance: TrackedInstance, now: float, reason: str) -> None:
        """Its load is not heard any more."""
        if instance.load is not None:
            instance.health.lost(now, reason)
            self._pool(instance.model).doubtful.add(instance.instance_id)
        self._lose(instance)

    def listen(self, now: float, out: list[Instruction]) -> set[str]:
        """Gives up subscriptions that have fallen silent; returns their models.

        When the call itself comes late, this router has stood still: the reports may be waiting to be read.
        """
        due, self._listen_at = self._listen_at, None
        if due is None or now < due:
            self._listen_at = due
            return set()
        models, silent = set(), []
        for instance in self.instances.values():
            deadline = self._deadline(instance)
            if deadline is None:
                continue
            heartbeat_s = self._heartbeat_s(instance)
            if now - due > heartbeat_s:
                instance.heard_at = max(instance.heard_at, now - self._settings.silence_s)
                deadline = instance.heard_at + heartbeat_s + self._settings.silence_s
            if now < deadline:
                self.heard(instance)
                continue
            self.lost(instance, now, f"silent for {now - instance.heard_at:.1f} s")
            models.add(instance.model)
            silent.append(instance)
        for instance in silent:
            out.append(Abandon(instance.instance_id, begun=self._has_twin(instance)))
            self._renew(instance, out)
        return models

    def _has_twin(self, instance: TrackedInstance) -> bool:
        """Whether another instance of the same weights takes requests."""
        return any(
            one.usable
            for one in self._pool(instance.model).instances.values()
            if one is not instance and one.spec_version == instance.spec_version
        )

    def heard(self, instance: TrackedInstance) -> None:
        """Its silence counts from its last report."""
        deadline = self._deadline(instance)
        if deadline is not None and (self._listen_at is None or deadline < self._listen_at):
            self._listen_at = deadline

    @property
    def listen_at(self) -> float | None:
        """When `listen` has something to do; None: nobody has promised to report."""
        return self._listen_at

    # What became of requests there.

    def failed(self, placement: Placement, blame: Blame, now: float, out: list[Instruction]) -> None:
        """A request failed there or was refused."""
        instance = self._at(placement)
        if instance is None:
            return
        trial = instance.trial is placement.reservation
        if trial:
            instance.trial = None
        if blame is Blame.FULL:
            # Its next report tells whether there is a place; the pause is for one that reports nothing.
            instance.held_until = now + self._settings.full_pause_s
        elif blame in (Blame.FAULT, Blame.UNREACHABLE) and instance.load is not None:
            instance.health.failed(now, trial=trial)
            if blame is Blame.UNREACHABLE:
                # Only a new subscription proves that it can be reached again.
                self._lose(instance)
                self._renew(instance, out)
        if instance.held_until > now or not instance.health.trusted:
            self._pool(instance.model).doubtful.add(instance.instance_id)

    def answered(self, placement: Placement, now: float) -> str | None:
        """A request was answered there; returns its model when that changes where others may go."""
        instance = self._at(placement)
        if instance is None:
            return None
        if instance.trial is placement.reservation:
            instance.trial = None
        return instance.model if instance.health.answered(now) else None

    def trial_ended(self, reservation: Reservation) -> bool:
        """A request has ended; True when it was the one on trial and has shown nothing."""
        instance = self.instances.get(reservation.instance_id)
        if instance is None or instance.trial is not reservation:
            return False
        instance.trial = None
        return True

    def ejected(self, now: float) -> Iterator[cluster_pb2.EjectedInstance]:
        """The instances that get nothing, or one request on trial."""
        for key, instance in sorted(self.instances.items()):
            health = instance.health
            reason = health.reason
            if not reason and instance.load is None and instance.failures:
                reason = "cannot be reached"
            if reason:
                yield cluster_pb2.EjectedInstance(
                    instance_id=key, reason=reason, retry_in_ms=1e3 * max(0.0, health.until - now)
                )

    def _at(self, placement: Placement) -> TrackedInstance | None:
        instance = self.instances.get(placement.instance_id)
        return instance if instance is not None and instance.incarnation == placement.incarnation else None

    def _new_health(self) -> Health:
        return Health(self._settings, self._jitter)

    def _heartbeat_s(self, instance: TrackedInstance) -> float:
        return instance.load.heartbeat_ms / 1000 if instance.load is not None else 0.0

    def _deadline(self, instance: TrackedInstance) -> float | None:
        heartbeat_s = self._heartbeat_s(instance)
        return instance.heard_at + heartbeat_s + self._settings.silence_s if heartbeat_s else None

    def _watch(self, instance: TrackedInstance, out: list[Instruction]) -> None:
        self._watches += 1
        instance.watch = self._watches
        out.append(OpenWatch(instance.instance_id, instance.address, instance.watch))

    def _renew(self, instance: TrackedInstance, out: list[Instruction]) -> None:
        out.append(CloseWatch(instance.instance_id))
        self._watch(instance, out)

    def _lose(self, instance: TrackedInstance) -> None:
        instance.lose()
        self._reservations.forget(instance.instance_id)
        self._pool(instance.model).changed()
