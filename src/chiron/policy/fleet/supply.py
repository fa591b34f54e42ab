"""One model's instances, summed up in one pass: what serves now, what will, and what demand they hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiron.policy.fleet.steady import SteadySlots
from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import FleetInstance, ModelFleet
from chiron.policy.words import Phase, Role


@dataclass(slots=True)
class Supply:
    """Capacity in slots, demand in requests."""

    interactive: list[FleetInstance] = field(default_factory=list)
    """READY, interactive or mixed."""
    batch: list[FleetInstance] = field(default_factory=list)
    """READY, batch."""
    loading_interactive: list[FleetInstance] = field(default_factory=list)
    loading_batch: list[FleetInstance] = field(default_factory=list)
    sleeping: list[FleetInstance] = field(default_factory=list)
    draining: int = 0
    leaving: int = 0
    """Interactive requests that run on draining instances."""
    slots: float = 0.0
    """Of the READY interactive and mixed instances: batch sizes, safe ones, or what KV or steps hold."""
    batch_slots: float = 0.0
    """The same of the READY batch instances."""
    demand: int = 0
    """Interactive requests that run or wait, draining instances excluded: those end where they are."""
    running_batch: int = 0
    """Batch requests in engines, waiting ones included."""
    slots_each: float = 1.0
    """Of one interactive or mixed instance, on average as reported; one that loads is taken to reach that."""
    open_each: float = 1.0
    """The same whatever fills the steps: free slots in which requests wait for their prompts included."""
    batch_slots_each: float = 1.0
    """Of one batch instance, on average as reported: what a further one is taken to reach, too."""
    made_mixed: int = 0
    """Of the interactive and mixed instances: those that were batch ones until this tick."""

    def make_mixed(self, instance: FleetInstance) -> None:
        """Count a batch instance as a mixed one from now on, with the slots of an average one."""
        self.batch.remove(instance)
        self.interactive.append(instance)
        self.batch_slots -= self.batch_slots_each
        self.slots += self.batch_slots_each
        self.made_mixed += 1

    @property
    def coming_slots(self) -> float:
        """Of the READY and the loading interactive and mixed instances."""
        return self.slots + self.slots_each * len(self.loading_interactive)

    @property
    def count(self) -> int:
        """Instances that serve or will."""
        return (
            len(self.interactive) + len(self.batch) + len(self.loading_interactive) + len(self.loading_batch)
        )


def supply_of(model: ModelFleet, curve: ThroughputCurve, steady: SteadySlots, step_share: float) -> Supply:
    """Sum a model up, and show its READY instances to the curve. O(instances).

    `step_share`: of the step-token budget, that counts; 0: steps bound no slots.
    """
    steady.see(model)
    supply = Supply(demand=model.traffic.queued_interactive)
    opened = 0.0
    for instance in model.instances:
        phase = instance.phase
        if phase is Phase.READY:
            curve.see(instance)
            usable = steady.usable(instance)
            step_tokens = step_share * instance.step_token_budget
            slots = curve.slots(usable, instance.kv_capacity_tokens, step_tokens)
            supply.demand += instance.running_interactive + instance.waiting_interactive
            supply.running_batch += instance.running_batch + instance.waiting_batch
            if instance.role is Role.BATCH:
                supply.batch.append(instance)
                supply.batch_slots += slots
            else:
                supply.interactive.append(instance)
                supply.slots += slots
                opened += curve.slots(usable, instance.kv_capacity_tokens)
        elif phase is Phase.LOADING:
            loading = supply.loading_batch if instance.role is Role.BATCH else supply.loading_interactive
            loading.append(instance)
        elif phase is Phase.DRAINING:
            supply.draining += 1
            supply.leaving += instance.running_interactive
        else:
            supply.sleeping.append(instance)
    # Fixed here: what role changes make of the averages must not change what a further instance is worth.
    if supply.interactive:
        supply.slots_each = max(1.0, supply.slots / len(supply.interactive))
    elif supply.batch:
        supply.slots_each = max(1.0, supply.batch_slots / len(supply.batch))
    else:
        most_kv = max((i.kv_capacity_tokens for i in model.instances), default=0)
        supply.slots_each = curve.slots(model.initial_batch_size, most_kv)
    open_each = opened / len(supply.interactive) if supply.interactive else 0.0
    supply.open_each = max(supply.slots_each, open_each)
    supply.batch_slots_each = (
        max(1.0, supply.batch_slots / len(supply.batch)) if supply.batch else supply.slots_each
    )
    return supply
