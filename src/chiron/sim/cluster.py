"""The simulated cluster: instances start, load, serve, drain, sleep, wake and fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from chiron.policy.preemption import HAND_BACK_S
from chiron.policy.words import Phase, Role
from chiron.sim.agenda import Agenda
from chiron.sim.gpus import Gpus, check_initial
from chiron.sim.instance import Identity, SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.settings import InvalidSettingError, SimSettings


@dataclass(slots=True)
class Observers:
    """Who is told of what happens to instances. Each is called with the instance and the time."""

    load_changed: Callable[[SimInstance, float], None]
    """At every change of what a load message tells."""
    phase_changed: Callable[[SimInstance, float], None]
    """At every change of phase or role, and when it is gone."""
    given_back: Callable[[SimInstance, list[int], float], None]
    """With requests that the instance no longer serves."""


class Cluster:
    """All instances of all models."""

    def __init__(
        self, settings: SimSettings, agenda: Agenda, ledger: Ledger, gpus: Gpus, observers: Observers
    ) -> None:
        self._settings = settings
        self._agenda = agenda
        self._ledger = ledger
        self._gpus = gpus
        self._observers = observers
        self._rng = np.random.default_rng((settings.seed, 2))
        self.instances: dict[str, SimInstance] = {}
        """Those that hold GPUs, asleep or awake, in the order of their start."""
        self.emitted_by_gone = 0
        """Tokens that the engines of instances that are gone have emitted."""
        self.load_times_s = [
            list(settings.live.known_loads_s.get(model.name, ())) for model in settings.models
        ]
        """Measured times from placement to ready, by model."""
        self._loads_s = [deque(settings.live.loads_s.get(model.name, ())) for model in settings.models]
        self.failures = 0
        self._started = 0
        # Routers know that they will drain, and they themselves do not yet.
        self._noticed: set[str] = set()
        # Sleeping is what they drain for, and what those that have drained are about to do.
        self._to_sleep: set[str] = set()
        self._falling_asleep: set[str] = set()

    def start_initial(self) -> None:
        """Place the instances that are ready when the simulation begins."""
        check_initial(self._settings, self._settings.models)
        for index, model in enumerate(self._settings.models):
            for role, count in model.initial.items():
                for _ in range(count):
                    instance = self._make(index, Role(role), 0.0)
                    if instance is None:
                        raise InvalidSettingError(
                            "initial", f"the cluster has no room for {count} instances of {model.name!r}"
                        )
                    self._set_phase(instance, Phase.READY, 0.0)

    def start(self, model_index: int, role: Role, now: float) -> SimInstance | None:
        """Place an instance and begin to load it; None when there is no room."""
        instance = self._make(model_index, role, now)
        if instance is None:
            return None
        model = instance.model
        loads_s = self._loads_s[model_index]
        takes_s = loads_s.popleft() if loads_s else model.load_s
        if model.load_time_spread:
            takes_s *= float(self._rng.lognormal(0.0, model.load_time_spread))
        self._agenda.at(now + takes_s, self._ready, instance)
        self._observers.phase_changed(instance, now)
        return instance

    def _make(self, model_index: int, role: Role, now: float) -> SimInstance | None:
        model = self._settings.models[model_index]
        nodes = [
            instance.identity.node_id
            for instance in self.instances.values()
            if instance.identity.model_index == model_index and instance.phase is not Phase.SLEEPING
        ]
        claim = self._gpus.find(model, nodes)
        if claim is None:
            return None
        number = self._started
        self._started += 1
        identity = Identity(f"{model.name}-{number:05d}", number, model_index, *claim)
        instance = SimInstance(
            identity, model, role, self._settings, self._agenda, self._ledger, self._observers.load_changed
        )
        instance.phase_since_s = now
        self._gpus.take(claim, identity.instance_id, model, now)
        self.instances[identity.instance_id] = instance
        return instance

    def _ready(self, now: float, instance: SimInstance) -> None:
        if instance.dead or instance.phase is not Phase.LOADING:
            return
        self.load_times_s[instance.identity.model_index].append(now - instance.phase_since_s)
        self._set_phase(instance, Phase.READY, now)

    def change_role(self, instance: SimInstance, role: Role, now: float) -> None:
        """Give an instance another role; nothing on it is given back."""
        instance.role = role
        self._observers.phase_changed(instance, now)
        self._observers.load_changed(instance, now)

    def retire(self, instance: SimInstance, now: float) -> None:
        """Drain an instance and free its GPUs; one that loads or sleeps stops at once."""
        self._to_sleep.discard(instance.instance_id)
        if instance.phase in (Phase.LOADING, Phase.SLEEPING):
            self._remove(instance, now)
        else:
            self._drain(instance, now)

    def hand_back(self, instance: SimInstance, now: float) -> None:
        """Give back batch requests that wait in a mixed instance's engine, as workers do: `HAND_BACK_S` after
        they came there or gave way.

        Interactive requests go before them there, so that they might wait for ever; the router sends them to
        whatever instance has a slot.
        """
        if not instance.waiting_batch or instance.role is Role.BATCH or not self._settings.queues.preemption:
            return
        ledger = self._ledger
        latest_s = now - HAND_BACK_S
        late = [
            request_id
            for request_id in instance.engine.waiting_ids()
            if ledger.is_batch[request_id] and ledger.submitted_s[request_id] <= latest_s
        ]
        if late:
            self._give_back(instance, late, now)

    def may_sleep(self, instance: SimInstance) -> bool:
        """Whether a ready instance may be put to sleep now."""
        return instance.phase is Phase.READY and self._gpus.may_sleep(
            instance.identity.node_id, instance.model
        )

    def sleep(self, instance: SimInstance, now: float) -> None:
        """Drain a ready instance and put it to sleep; others may have its GPUs then."""
        self._gpus.set_aside(instance.identity.node_id, instance.instance_id, instance.model)
        self._to_sleep.add(instance.instance_id)
        self._drain(instance, now)

    def _asleep(self, now: float, instance: SimInstance) -> None:
        if instance.dead:
            return
        self._falling_asleep.remove(instance.instance_id)
        instance.engine.sleep(now, instance.model.sleep_level)
        self._set_phase(instance, Phase.SLEEPING, now)
        # Others may have the GPUs once the node's report has told that they are free.
        self._agenda.at(now + self._settings.telemetry.delay_s, self._dozed, (instance, now))

    def _dozed(self, now: float, asleep: tuple[SimInstance, float]) -> None:
        instance, since_s = asleep
        if instance.phase is Phase.SLEEPING and instance.phase_since_s == since_s and not instance.dead:
            self._gpus.doze(instance.claim, instance.instance_id, instance.model, now)

    def may_wake(self, instance: SimInstance) -> bool:
        """Whether a sleeping instance can have its GPUs back now."""
        return (
            instance.phase is Phase.SLEEPING
            and not instance.dead
            and self._gpus.may_wake(instance.claim, instance.instance_id, instance.model)
        )

    def wake(self, instance: SimInstance, role: Role, now: float) -> None:
        """Wake a sleeping instance that may wake, with this role."""
        self._gpus.take(instance.claim, instance.instance_id, instance.model, now)
        instance.role = role
        instance.waking = True
        self._set_phase(instance, Phase.LOADING, now)
        self._agenda.at(now + instance.model.wake_s, self._woken, instance)

    def _woken(self, now: float, instance: SimInstance) -> None:
        if not instance.dead and instance.phase is Phase.LOADING:
            instance.waking = False
            # The engine may step at once: the cluster has waited for it.
            instance.engine.wake(-inf)
            self._set_phase(instance, Phase.READY, now)

    def _drain(self, instance: SimInstance, now: float) -> None:
        notice_s = self._settings.live.drain_notice_s
        if notice_s:
            self._noticed.add(instance.instance_id)
            self._agenda.at(now + notice_s, self._told_to_drain, instance)
        self._set_phase(instance, Phase.DRAINING, now)
        if not notice_s:
            self._told_to_drain(now, instance)

    def _told_to_drain(self, now: float, instance: SimInstance) -> None:
        if instance.dead:
            return
        self._noticed.discard(instance.instance_id)
        running = set(instance.engine.running_ids())
        waiting = [request_id for request_id in instance.request_ids(now) if request_id not in running]
        self._give_back(instance, waiting, now)
        self.drained(instance, now)

    def drained(self, instance: SimInstance, now: float) -> None:
        """Let a draining instance go, or sleep, if it has nothing left to serve."""
        if instance.phase is not Phase.DRAINING or instance.dead or not instance.empty:
            return
        key = instance.instance_id
        if key in self._noticed:
            return
        if key in self._to_sleep:
            self._to_sleep.remove(key)
            self._falling_asleep.add(key)
            self._agenda.at(now + instance.model.fall_asleep_s, self._asleep, instance)
        elif key not in self._falling_asleep:
            self._remove(instance, now)

    def fail(self, instance: SimInstance, now: float) -> None:
        """Lose an instance; what it served goes back to the router, tokens delivered so far are kept."""
        self.failures += 1
        self._to_sleep.discard(instance.instance_id)
        self._falling_asleep.discard(instance.instance_id)
        self._noticed.discard(instance.instance_id)
        instance.phase = Phase.DRAINING
        requests = instance.request_ids(now)
        # What the step under way finishes was delivered.
        instance.publish_now(now)
        self._remove(instance, now, requests)

    def _remove(self, instance: SimInstance, now: float, requests: list[int] | None = None) -> None:
        # The router learns of it first, or it would send the requests back here.
        instance.dead = True
        self._observers.phase_changed(instance, now)
        if requests:
            self._ledger.retries += len(requests)
            self._give_back(instance, requests, now)
        instance.kill()
        self.emitted_by_gone += instance.engine.totals.emitted_tokens
        # Others may have the GPUs once the node's report has told that they are free.
        self._agenda.at(now + self._settings.telemetry.delay_s, self._released, instance)

    def _released(self, now: float, instance: SimInstance) -> None:
        self._gpus.release(instance.claim, instance.instance_id, now)
        del self.instances[instance.instance_id]

    def _give_back(self, instance: SimInstance, requests: list[int], now: float) -> None:
        given = [request_id for request_id in requests if instance.remove(request_id, now) is not None]
        if given:
            self._observers.given_back(instance, given, now)

    def _set_phase(self, instance: SimInstance, phase: Phase, now: float) -> None:
        instance.phase = phase
        instance.phase_since_s = now
        self._observers.phase_changed(instance, now)
        self._observers.load_changed(instance, now)
