"""Room for the urgent: which less urgent instances go, node by node (reconstructed).

Of models that are as urgent those go that `spare` finds needless now, before all others.
An instance needs all its GPUs on one node, so that room comes into being only where what is free, what drains
and what may go add up to them. The node is chosen where that costs least, and kept from less urgent models
until the urgent one starts; where no node can come to have room nobody goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf

from chiron.policy.decisions import Alternative, Retire
from chiron.policy.fleet.contention import FreeGpus
from chiron.policy.fleet.plan import Plan
from chiron.policy.fleet.retire import drain_cost, drains_soonest
from chiron.policy.fleet.weighed import let_wait
from chiron.policy.snapshots import FleetInstance, ModelFleet
from chiron.policy.words import Phase

_Cost = tuple[float, int, int, int, int, int, float, str]


@dataclass(slots=True, eq=False)
class _Victim:
    """An instance that may have to go."""

    plan: Plan
    instance: FleetInstance
    gpus: int
    rank: tuple[float, bool, bool, int, int, float, str]
    """Who goes first: the least urgent, batch before interactive, then what drains soonest."""
    gone: bool = False


@dataclass(slots=True)
class _Node:
    coming: int = 0
    """GPUs that become free: their instances drain, or have been told to."""
    owed: int = 0
    """Out of those and of the free ones, what is kept for the urgent."""
    victims: list[_Victim] = field(default_factory=list)
    """In the order of their ranks."""


_Offer = tuple[_Cost, int, str]
"""What room costs, the GPUs that are not free yet, and the node."""


class Room:
    """The room that can be made at one tick for whoever is as urgent as `above`, or less."""

    def __init__(self, plans: Sequence[Plan], free: FreeGpus, above: int) -> None:
        self._free = free
        self._nodes = {node: _Node() for node in free.of_type("")}
        self._coming = 0
        self._may_go: dict[str, int] = {}
        self._offers: dict[tuple[int, int, str], list[_Offer]] = {}
        self._victims: list[_Victim] = []
        # Nobody before this one may go any more.
        self._first = 0
        for plan in plans:
            going = {action.instance_id for action in plan.retire}
            self._may_go[plan.model.name] = plan.supply.count - len(going) - plan.model.min_instances
            for instance in plan.model.instances:
                if instance.phase is Phase.DRAINING or instance.instance_id in going:
                    self._leaves(instance.node_id, plan.model.gpus_per_instance)
            if plan.model.priority >= above:
                self._victims += _victims(plan, going, above)
        self._victims.sort(key=lambda victim: victim.rank)
        for victim in self._victims:
            node = self._nodes.get(victim.instance.node_id)
            if node is not None:
                node.victims.append(victim)

    def make(self, urgent: ModelFleet, count: int) -> None:
        """Retire for up to `count` instances that found no GPU, as far as less urgent or spare ones may go.

        What drains already counts on its node; each model keeps its fewest instances.
        """
        key = (urgent.priority, urgent.gpus_per_instance, urgent.gpu_type)
        if key not in self._offers:
            self._offers[key] = [
                self._offer(node, urgent, victims)
                for node in self._free.of_type(urgent.gpu_type)
                if (victims := self._pick_on(node, urgent)) is not None
            ]
            heapify(self._offers[key])
        for _ in range(count):
            if not self._make_one(urgent, self._offers[key]):
                break

    def close(self) -> None:
        """Keep the nodes on which room has been made from everybody who asks for GPUs from now on."""
        for name, node in self._nodes.items():
            if node.owed:
                self._free.bar(name)

    def _make_one(self, urgent: ModelFleet, offers: list[_Offer]) -> bool:
        while offers:
            seen = heappop(offers)
            name = seen[2]
            here = self._pick_on(name, urgent)
            if here is None:
                continue
            offer = self._offer(name, urgent, here)
            if offer > seen:
                # Something there, or all that a model can spare, has gone since.
                heappush(offers, offer)
                continue
            anywhere = self._for_budget(urgent, here)
            if anywhere is None:
                return False
            self._settle(name, urgent, here, anywhere)
            further = self._pick_on(name, urgent)
            if further is not None:
                heappush(offers, self._offer(name, urgent, further))
            return True
        return False

    def _settle(
        self, name: str, urgent: ModelFleet, here: Sequence[_Victim], anywhere: Sequence[_Victim]
    ) -> None:
        node = self._nodes[name]
        gpus = urgent.gpus_per_instance
        numbers = {
            "urgent_gpus": float(gpus),
            "urgent_node_free": float(self._free.left(name)),
            "urgent_node_draining": float(node.coming),
            "urgent_node_owed": float(node.owed),
        }
        free, coming = self._free.left(name), node.coming - node.owed
        for victim in here:
            others = (let_wait(urgent, victim.plan.model, gpus, free, coming),)
            self._retire(victim, urgent, f"it needs {gpus} on {name}", numbers, others)
        for victim in anywhere:
            why = f"the budget has none left for the {gpus} that it needs"
            self._retire(victim, urgent, why, numbers, ())
        node.owed += gpus
        self._free.promise(gpus)

    def _retire(
        self,
        victim: _Victim,
        urgent: ModelFleet,
        why: str,
        numbers: Mapping[str, float],
        weighed: tuple[Alternative, ...],
    ) -> None:
        plan, model = victim.plan, victim.plan.model
        if victim.rank[0] == -inf:
            plan.gave_to = urgent.name
            standing = f"{urgent.name} waits for GPUs, and {model.name} can spare the instance now"
        else:
            standing = (
                f"{urgent.name} (priority {urgent.priority}) is more urgent than {model.name} "
                f"(priority {model.priority}) and waits for GPUs"
            )
        reason = f"contention: {standing}: {why}"
        plan.retire.append(
            Retire(model.name, victim.instance.instance_id, reason, {**plan.numbers, **numbers}, weighed)
        )
        plan.yields = True
        victim.gone = True
        if victim.instance.node_id in self._nodes:
            self._nodes[victim.instance.node_id].victims.remove(victim)
        self._may_go[model.name] -= 1
        self._leaves(victim.instance.node_id, victim.gpus)

    def _leaves(self, node: str, gpus: int) -> None:
        self._coming += gpus
        if node in self._nodes:
            self._nodes[node].coming += gpus

    def _pick_on(self, name: str, urgent: ModelFleet) -> list[_Victim] | None:
        """Who goes for one more there; None: no room can be made there."""
        node = self._nodes[name]
        lack = urgent.gpus_per_instance - (self._free.left(name) + node.coming - node.owed)
        return self._pick(node.victims, lack, urgent.priority, ())

    def _offer(self, name: str, urgent: ModelFleet, victims: Sequence[_Victim]) -> _Offer:
        """What that costs, and for how many GPUs it has to wait."""
        not_free = urgent.gpus_per_instance + self._nodes[name].owed - self._free.left(name)
        return _cost(victims), max(0, not_free), name

    def _for_budget(self, urgent: ModelFleet, here: Sequence[_Victim]) -> list[_Victim] | None:
        """Who goes besides so that the budget suffices; None: it cannot."""
        if self._free.budget is None:
            return []
        freed = sum(victim.gpus for victim in here)
        lack = urgent.gpus_per_instance - (self._free.budget + self._coming + freed)
        while self._first < len(self._victims) and not self._may_leave(self._victims[self._first]):
            self._first += 1
        return self._pick(islice(self._victims, self._first, None), lack, urgent.priority, here)

    def _may_leave(self, victim: _Victim) -> bool:
        return not victim.gone and self._may_go[victim.plan.model.name] > 0

    def _pick(
        self, victims: Iterable[_Victim], lack: int, priority: int, besides: Sequence[_Victim]
    ) -> list[_Victim] | None:
        """Pick the first that together give `lack` GPUs, `besides` going too; None: they do not.

        `victims` are sorted by priority. One that the later ones make needless stays.
        """
        picked: list[_Victim] = []
        if lack <= 0:
            return picked
        taken: dict[str, int] = {}
        for victim in besides:
            taken[victim.plan.model.name] = taken.get(victim.plan.model.name, 0) + 1
        for victim in victims:
            if -victim.rank[0] <= priority:
                break
            name = victim.plan.model.name
            if victim.gone or victim in besides or taken.get(name, 0) >= self._may_go[name]:
                continue
            if victim.plan.model.priority < priority:
                # Spare, and of a model that is more urgent: it keeps what it may need next.
                continue
            taken[name] = taken.get(name, 0) + 1
            picked.append(victim)
            lack -= victim.gpus
            if lack <= 0:
                for needless in picked[-2::-1]:
                    if needless.gpus <= -lack:
                        picked.remove(needless)
                        lack += needless.gpus
                return picked
        return None


def _victims(plan: Plan, going: Collection[str], above: int) -> Iterator[_Victim]:
    """Of a less urgent model all that stay, of one that is as urgent as `above` what it can spare."""
    supply, model = plan.supply, plan.model
    staying = [instance for instance in supply.interactive if instance.instance_id not in going]
    spare = {each.instance_id for each in drains_soonest(staying, plan.spare)}
    for interactive, pool in (
        (False, (*supply.batch, *supply.loading_batch)),
        (True, (*supply.interactive, *supply.loading_interactive)),
    ):
        for instance in pool:
            spared = instance.instance_id in spare
            if instance.instance_id not in going and (spared or model.priority > above):
                urgency = -inf if spared else -model.priority
                rank = (urgency, interactive, *drain_cost(instance))
                yield _Victim(plan, instance, model.gpus_per_instance, rank)


def _cost(victims: Sequence[_Victim]) -> _Cost:
    """The most urgent model that it hits, how many interactive instances, and how soon they drain."""
    if not victims:
        return (-inf, 0, 0, 0, 0, 0, 0.0, "")
    urgency, interactive, serves, requests, running, age_s, first = victims[0].rank
    if len(victims) == 1:
        return (urgency, interactive, serves, requests, running, victims[0].gpus, age_s, first)
    columns = list(zip(*(victim.rank for victim in victims), strict=True))
    gpus = sum(victim.gpus for victim in victims)
    return (max(columns[0]), *map(sum, columns[1:5]), gpus, max(columns[5]), min(columns[6]))
