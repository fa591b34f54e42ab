"""A fluid fleet: requests flow evenly through instances, so that an autoscaler can be run in a closed loop.

An instance with n requests makes n / (fixed_s + slope_s * n) tokens a second. Interactive requests are spread
over interactive and mixed instances; batch requests fill batch instances, then the slots that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from chiron.policy.decisions import Action, ChangeRole, FleetDecision, Retire, Sleep, Start, Wake
from chiron.policy.fleet import GlobalAutoscaler
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


@dataclass(slots=True)
class FluidInstance:
    role: Role
    ready_at_s: float
    interactive: float = 0.0
    batch: float = 0.0
    draining: bool = False
    tokens_per_s: float = 0.0
    ran_interactive: float = 0.0
    """In the last second, those that ended with it included: what made `tokens_per_s`."""
    ran_batch: float = 0.0


@dataclass(slots=True)
class FluidModel:
    name: str = "m"
    gpus: int = 1
    min_instances: int = 0
    max_instances: int = 0
    priority: int = 0
    slots: int = 350
    fixed_s: float = 0.008
    slope_s: float = 0.00014
    mean_tokens: float = 338.0
    cv_sq: float = 1.7
    load_s: float = 20.0
    ttft_slo_s: float = 10.0
    instances: dict[str, FluidInstance] = field(default_factory=dict)
    queued: float = 0.0
    backlog: float = 0.0
    deadline_s: float = 0.0
    made: int = 0

    def add(self, role: Role, ready_at_s: float) -> None:
        self.made += 1
        self.instances[f"{self.name}-{self.made:04}"] = FluidInstance(role, ready_at_s)

    @property
    def requests_per_s_each(self) -> float:
        return self.slots / (self.fixed_s + self.slope_s * self.slots) / self.mean_tokens


@dataclass(slots=True)
class Fluid:
    """One cluster of whole seconds."""

    autoscaler: GlobalAutoscaler
    models: Mapping[str, FluidModel]
    gpus: int = 1000
    budget: int = 0
    now_s: float = 0.0
    gpu_seconds: float = 0.0
    work_done: dict[str, float] = field(default_factory=dict)
    log: list[tuple[float, Action]] = field(default_factory=list)
    decisions: list[FleetDecision] = field(default_factory=list)
    longest_queue_s: float = 0.0
    keep_decisions: bool = False

    def run(self, seconds: int, arrivals: Callable[[str, float], float]) -> None:
        for _ in range(seconds):
            self.step(arrivals)

    def step(self, arrivals: Callable[[str, float], float]) -> None:
        fleets = [self._advance(model, arrivals(name, self.now_s)) for name, model in self.models.items()]
        held = sum(m.gpus * len(m.instances) for m in self.models.values())
        self.gpu_seconds += held
        self.now_s += 1.0
        limit = min(self.gpus, self.budget or self.gpus)
        snapshot = FleetSnapshot(self.now_s, tuple(fleets), {"n": max(0, self.gpus - held)}, gpu_budget=limit)
        decision = self.autoscaler.decide(snapshot)
        if self.keep_decisions:
            self.decisions.append(decision)
        for action in decision.actions:
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        model = self.models[action.model]
        self.log.append((self.now_s, action))
        match action:
            case Start():
                for _ in range(action.count):
                    model.add(action.role, self.now_s + model.load_s)
            case ChangeRole():
                model.instances[action.instance_id].role = action.role
            case Retire():
                model.instances[action.instance_id].draining = True
            case Wake() | Sleep():
                raise AssertionError("nothing sleeps in this cluster")

    def _advance(self, model: FluidModel, arrived: float) -> ModelFleet:
        live = [i for i in model.instances.values() if i.ready_at_s <= self.now_s]
        serving = [i for i in live if not i.draining]
        self._spread(model, [i for i in serving if i.role is not Role.BATCH], arrived)
        batch_first = sorted(serving, key=lambda i: i.role is not Role.BATCH)
        for instance in (i for i in batch_first if i.role is not Role.INTERACTIVE):
            room = max(0.0, model.slots - instance.interactive)
            if instance.batch > room:
                model.backlog += instance.batch - room
                instance.batch = room
            taken = min(model.backlog, room - instance.batch)
            instance.batch += taken
            model.backlog -= taken
        finished_interactive = finished_batch = 0.0
        for instance in live:
            instance.ran_interactive, instance.ran_batch = instance.interactive, instance.batch
            running = instance.interactive + instance.batch
            instance.tokens_per_s = running / (model.fixed_s + model.slope_s * running)
            share = min(1.0, instance.tokens_per_s / model.mean_tokens / running) if running else 0.0
            finished_interactive += instance.interactive * share
            finished_batch += instance.batch * share
            instance.interactive *= 1 - share
            instance.batch *= 1 - share
        capacity = sum(model.requests_per_s_each for i in serving if i.role is not Role.BATCH)
        wait_s = model.queued / capacity if capacity else (1e9 if model.queued >= 1 else 0.0)
        self.longest_queue_s = max(self.longest_queue_s, wait_s)
        done = self.work_done
        done["interactive"] = done.get("interactive", 0.0) + finished_interactive
        done["batch"] = done.get("batch", 0.0) + finished_batch
        for key in [k for k, i in model.instances.items() if i.draining and i.interactive + i.batch < 1]:
            last = model.instances.pop(key)
            done["interactive"] += last.interactive
            done["batch"] += last.batch
        return self._snapshot(model, arrived, finished_interactive, finished_batch)

    def _spread(self, model: FluidModel, serving: list[FluidInstance], arrived: float) -> None:
        model.queued += arrived
        if not serving:
            return
        level = min(model.slots, (model.queued + sum(i.interactive for i in serving)) / len(serving))
        for instance in serving:
            taken = min(model.queued, max(0.0, level - instance.interactive))
            instance.interactive += taken
            model.queued -= taken

    def _snapshot(self, model: FluidModel, arrived: float, interactive: float, batch: float) -> ModelFleet:
        second = model.mean_tokens**2 * (1 + model.cv_sq)
        instances = []
        for key, i in model.instances.items():
            loading = i.ready_at_s > self.now_s
            phase = Phase.DRAINING if i.draining else Phase.LOADING if loading else Phase.READY
            instances.append(
                FleetInstance(
                    key,
                    "n",
                    i.role,
                    phase,
                    model.slots,
                    model.slots,
                    running_interactive=round(i.ran_interactive),
                    running_batch=round(i.ran_batch),
                    tokens_per_s=i.tokens_per_s,
                    ready_in_s=max(0.0, i.ready_at_s - self.now_s),
                    phase_age_s=max(0.0, self.now_s - i.ready_at_s),
                )
            )
        backlog = (
            (BatchBacklog(model.deadline_s - self.now_s, round(model.backlog), 0),)
            if round(model.backlog) >= 1
            else ()
        )
        return ModelFleet(
            model.name,
            model.gpus,
            model.min_instances,
            model.max_instances,
            model.ttft_slo_s,
            0.2,
            2.0,
            tuple(instances),
            Traffic(
                1.0,
                arrived_interactive=round(arrived),
                queued_interactive=round(model.queued),
                finished_interactive=round(interactive),
                finished_batch=round(batch),
                finished_output_tokens=round((round(interactive) + round(batch)) * model.mean_tokens),
                finished_output_tokens_sq=(round(interactive) + round(batch)) * second,
                finished_batch_output_tokens=round(round(batch) * model.mean_tokens),
                finished_batch_output_tokens_sq=round(batch) * second,
            ),
            backlog,
            load_time_s=model.load_s,
            initial_batch_size=model.slots,
            priority=model.priority,
            max_context_tokens=8192,
        )
