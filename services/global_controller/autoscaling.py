"""The global autoscaler's loop: a snapshot, a decision of the policy, and what of it is carried out.

It ticks at the leader alone, and not while the controller settles. What the policy has learned lives in its
object and ends with the reign.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chiron.internal.v1 import control_pb2
from chiron.policy.checked import CheckedAutoscaler
from chiron.policy.custom import PolicyError
from chiron.policy.decisions import Action, FleetDecision
from chiron.policy.fleet import load_autoscaler
from chiron.policy.snapshots import FleetSnapshot
from chiron.policy.words import Phase
from chiron.store import InstanceRecord, ModelRecord, RefusedError, Snapshot, TooLargeError, UnavailableError
from chiron.v1 import cluster_pb2
from services.global_controller.advice import Advices
from services.global_controller.asked import asked_about, supply_count, wanted_by_role
from services.global_controller.autoscale_view import Assessed, autoscale_status
from services.global_controller.autoscaler_config import OFF, AutoscalerMode
from services.global_controller.bounds import Bounds, bounds_now, is_autoscaled
from services.global_controller.carrying_out import carry_out
from services.global_controller.failed_starts import FailedStarts
from services.global_controller.fleet import is_failed, is_stopping, is_to_sleep
from services.global_controller.on_demand import VainWaits
from services.global_controller.restraint import (
    Restraint,
    late_telemetry,
    operators_restraint,
    pinned_roles,
    restrained,
    sift,
    temporary_surplus,
)
from services.global_controller.trouble import Trouble
from services.global_controller.writer import Draft

if TYPE_CHECKING:
    from services.global_controller.controller import Controller

_SHORTEST_PAUSE_S = 0.1
"""Between two ticks, whoever asks for one."""
_LATE_INTERVALS = 3.0
"""Report intervals after which a report is late."""
_OWN_INTERVAL_S = 1.0
"""Between two reports of a router, and between two of a worker to its agent, whose own reports may come more
often and tell nothing new of it. A router that has another setting tells it with its reports."""


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class Autoscaling:
    """One reign's autoscaler."""

    def __init__(self, controller: Controller, *, wall: Callable[[], datetime] = _wall_clock) -> None:
        """Makes the policy. Raises UnknownAutoscalerError and PolicyError.

        Args:
            controller: whose cluster it is.
            wall: an aware time: scheduled minimums go by it.
        """
        self._controller = controller
        self._config = controller.config.autoscaler
        self._wall = wall
        self._decider = self._new_decider()
        self._adviser: CheckedAutoscaler | None = None
        """Decides as if operators kept nothing, while they keep something."""
        self._failed = FailedStarts()
        self._vain = VainWaits()
        self._told_on_demand: Mapping[str, str] = {}
        self._assessed: dict[str, Assessed] = {}
        self._advices = Advices()
        self._trouble = Trouble(wall)
        self._stirred = asyncio.Event()

    @property
    def off(self) -> bool:
        """Whether there is no policy."""
        return self._config.policy == OFF

    async def run(self) -> None:
        """Ticks until cancelled."""
        while not self.off:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.interval_s):
                    await self._stirred.wait()
            self._stirred.clear()
            await self.tick()
            await asyncio.sleep(min(_SHORTEST_PAUSE_S, self._config.interval_s))

    def router_reported(self, report: control_pb2.RouterReport) -> None:
        """Ticks at once where interactive requests wait for a model of which nothing serves or comes."""
        snapshot = self._controller.snapshot
        for demand in report.demand:
            model = snapshot.models.get(demand.model)
            if not demand.queued.interactive or model is None or not is_autoscaled(model):
                continue
            if not any(
                one.model == demand.model
                and not is_stopping(one)
                and not is_to_sleep(one)
                and not is_failed(one)
                for one in snapshot.instances.values()
            ):
                self._stirred.set()

    def on_demand(self) -> Mapping[str, str]:
        """The autoscaled models → why no instance would start if requests waited; empty: one would."""
        if self.off:
            return {}
        models = self._controller.snapshot.models
        return {name: self._unstartable(model) for name, model in models.items() if is_autoscaled(model)}

    def _unstartable(self, model: ModelRecord) -> str:
        said, now = self._operators(model), self._controller.now()
        return (
            said.nothing
            or said.count
            or self._trouble.told
            or self._failed.last(model.name, now)
            or self._vain.why(model.name, now)
        )

    async def tick(self) -> None:
        """Decides and writes once."""
        await self._tick()
        on_demand = self.on_demand()
        if on_demand != self._told_on_demand:
            self._told_on_demand = on_demand
            self._controller.look_again()

    async def _tick(self) -> None:
        controller = self._controller
        if controller.registry.settling():
            return
        models = {one.name: one for one in controller.snapshot.models.values() if is_autoscaled(one)}
        self._keep_only(models)
        if not models:
            controller.decisions.recorder.assessed(())
            return
        wall = self._wall()
        bounds = {name: bounds_now(model, wall) for name, model in models.items()}
        seen = controller.fleet.take(controller.snapshot)
        try:
            decision, advice = self._decide(seen, models, bounds)
            controller.decisions.recorder.assessed(decision.assessments)
            await self._carry_out(seen, decision, advice, bounds)
        except PolicyError as error:
            controller.decisions.recorder.assessed(())
            self._in_trouble(f"the policy failed: {error}")
        except (UnavailableError, RefusedError, TooLargeError) as error:
            self._in_trouble(f"nothing can be changed now: {error}")
        else:
            self._in_trouble("")

    def status(self, model: ModelRecord) -> cluster_pb2.AutoscaleStatus | None:
        """How it stands with a model; None: the model is not autoscaled."""
        if not is_autoscaled(model):
            return None
        assessed = self._assessed.get(model.name)
        age_s = self._controller.now() - assessed.at_s if assessed is not None else 0.0
        why = self._trouble.told
        if self._controller.registry.settling():
            why = "the controller waits for the nodes on record to report"
        restraint = said = self._operators(model)
        if assessed is not None:
            # What operators have said since counts already.
            restraint = dataclasses.replace(
                assessed.restraint, nothing=said.nothing, state=said.state, count=said.count
            )
        return autoscale_status(model, assessed, restraint, age_s=age_s, off=self.off, trouble=why)

    def _new_decider(self) -> CheckedAutoscaler | None:
        if self.off:
            return None
        policy = load_autoscaler(self._config.policy, self._config.chiron)
        return CheckedAutoscaler(policy, tell_time=False)

    def _keep_only(self, models: Mapping[str, ModelRecord]) -> None:
        self._failed.forget_others(models)
        self._vain.forget_others(models)
        self._assessed = {name: one for name, one in self._assessed.items() if name in models}
        self._advices.keep_only(models)

    def _operators(self, model: ModelRecord) -> Restraint:
        said = operators_restraint(model)
        if not said.nothing and self._config.mode is AutoscalerMode.ADVISORY:
            state = cluster_pb2.AUTOSCALE_STATE_PINNED if said.count else cluster_pb2.AUTOSCALE_STATE_ADVISORY
            return dataclasses.replace(said, nothing="advisory mode", state=state)
        return said

    def _decide(
        self, seen: FleetSnapshot, models: Mapping[str, ModelRecord], bounds: Mapping[str, Bounds]
    ) -> tuple[FleetDecision, FleetDecision]:
        """What is to be carried out as far as it may, and what would be if operators kept nothing."""
        assert self._decider is not None
        fleets = {model.name: model for model in seen.models}
        fixed: dict[str, int] = {}
        for name, model in models.items():
            orders = model.autoscaling
            if name not in fleets:
                continue
            if orders.paused:
                fixed[name] = supply_count(fleets[name])
            elif orders.pinned_instances is not None:
                fixed[name] = orders.pinned_instances
        free = asked_about(seen, bounds)
        if self._config.mode is AutoscalerMode.ADVISORY or not fixed:
            self._adviser = None
            decision = self._decider.decide(free)
            return decision, decision
        self._adviser = self._adviser or self._new_decider()
        assert self._adviser is not None
        return self._decider.decide(asked_about(seen, bounds, fixed)), self._adviser.decide(free)

    async def _carry_out(
        self,
        seen: FleetSnapshot,
        decision: FleetDecision,
        advice: FleetDecision,
        bounds: Mapping[str, Bounds],
    ) -> None:
        """Writes what of the decision may be carried out, and remembers what became of the rest."""
        restraints: dict[str, Restraint] = {}
        void: list[tuple[Action, str]] = []
        self._look_at_failures(bounds, seen.now_s)

        def build(snapshot: Snapshot) -> Draft:
            nonlocal restraints, void
            view = self._controller.view(snapshot)
            models = {name: snapshot.models[name] for name in bounds if name in snapshot.models}
            surplus, pinned = temporary_surplus(view), pinned_roles(view.instances)
            restraints = {
                name: self._restraint(model, surplus.get(name, 0), pinned, seen)
                for name, model in models.items()
                if is_autoscaled(model)
            }
            allowed, void = sift(decision.actions, restraints)
            carried = carry_out(
                view,
                allowed,
                lambda model: f"{model}-{secrets.token_hex(3)}",
                bounds={
                    name: restrained(bounds[name], models[name], one)
                    for name, one in restraints.items()
                    if not one.nothing
                },
                may_start={name for name, one in restraints.items() if not one.up},
            )
            void += carried.void
            advised = self._advices.acts(advice, restraints, seen.now_s)
            plan = carried.plan
            return Draft((*plan.models, *plan.puts), acts=(*plan.acts, *advised))

        await self._controller.write(build)
        fleets = {model.name: model for model in seen.models}
        found = {one.model: one for one in advice.assessments}
        for name, restraint in restraints.items():
            undone = [why for action, why in void if action.model == name]
            self._vain.look(seen, name, found.get(name), undone)
            self._assessed[name] = Assessed(
                at_s=seen.now_s,
                found=found.get(name),
                wanted=wanted_by_role(fleets[name], advice),
                restraint=restraint,
                void=tuple(dict.fromkeys(why for action, why in void if action.model == name)),
                fewest=bounds[name].fewest,
            )
        self._advices.note(advice, restraints, seen.now_s)
        self._controller.assessed()

    def _look_at_failures(self, names: Iterable[str], now: float) -> None:
        by_model: dict[str, list[InstanceRecord]] = {name: [] for name in names}
        for record in self._controller.snapshot.instances.values():
            if record.model in by_model and not is_to_sleep(record):
                by_model[record.model].append(record)
        for name, records in by_model.items():
            self._failed.look(name, records, now)

    def _restraint(
        self, model: ModelRecord, surplus: int, pinned: Collection[str], seen: FleetSnapshot
    ) -> Restraint:
        said = self._operators(model)
        if said.nothing:
            return said
        down = f"{surplus} more run than are wanted while others are replaced" if surplus else ""
        return dataclasses.replace(
            said,
            down=down or self._late(model.name, seen),
            up=self._failed.pause(model.name, seen.now_s),
            roles=pinned,
        )

    def _late(self, name: str, seen: FleetSnapshot) -> str:
        registry = self._controller.registry
        [fleet] = [one for one in seen.models if one.name == name]
        return late_telemetry(
            [one.report_age_s for one in fleet.instances if one.phase is Phase.READY],
            [
                (
                    registry.age_s(link),
                    _LATE_INTERVALS * max(_OWN_INTERVAL_S, link.report.interval_ms / 1e3),
                )
                for link in registry.routers.values()
            ],
            late_s=_LATE_INTERVALS * max(_OWN_INTERVAL_S, self._controller.config.report_interval_ms / 1e3),
        )

    def _in_trouble(self, why: str) -> None:
        if self._trouble.now(why):
            self._controller.assessed()
