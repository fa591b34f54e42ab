"""Which fault strikes what, and when: a pure function of a seed and the cluster's shape.

Indexes name a place in the cluster, not a process: the worker with index 3 is whoever serves there when the
time has come.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class ScheduleError(ValueError):
    """So many faults do not fit into the time without breaking the limits; the text says how many do."""


class Target(StrEnum):
    """What a fault strikes."""

    WORKER = "worker"
    ENGINE = "engine"
    """The process that an engine keeps beside the worker's own."""
    AGENT = "agent"
    ROUTER = "router"
    LEADER = "leader"
    """The controller that leads when the time has come."""
    FOLLOWER = "follower"
    """A controller that does not."""
    ETCD = "etcd"
    ROUTER_LINK = "router-link"
    """The way from clients to one router."""
    CONTROLLER_LINK = "controller-link"
    """The way from agents, routers and operators to one controller."""
    ETCD_LINK = "etcd-link"
    """The way from controllers to one member of etcd."""
    PEER_LINK = "peer-link"
    """The way from the other members of etcd to one."""
    WORKER_LINK = "worker-link"
    """The way from clients and routers to one worker."""
    HISTORY = "history"
    """What etcd keeps of earlier revisions."""
    MODEL = "model"


class Act(StrEnum):
    """What happens to it."""

    KILL = "kill"
    """SIGKILL; whoever is in charge starts it again."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT when the time is over."""
    RESTART = "restart"
    """SIGTERM, after which whoever is in charge starts it again."""
    DELAY = "delay"
    """Every byte takes longer by `delay_ms`."""
    CUT = "cut"
    """Nothing gets through and nobody is told."""
    RESET = "reset"
    """Connections break and new ones are refused."""
    COMPACT = "compact"
    """Everything but the present is dropped."""
    ROLL = "roll"
    """A new version of its spec is applied, with other weights."""
    SPOIL = "spoil"
    """A version is applied that cannot load, to be rolled back when it fails."""


_PROCESS = (Act.KILL, Act.FREEZE, Act.RESTART)
_LINK = (Act.DELAY, Act.CUT, Act.RESET)
ACTS: Mapping[Target, tuple[Act, ...]] = {
    Target.WORKER: _PROCESS,
    # An engine's process has no orderly end of its own.
    Target.ENGINE: (Act.KILL, Act.FREEZE),
    Target.AGENT: _PROCESS,
    Target.ROUTER: _PROCESS,
    Target.LEADER: _PROCESS,
    Target.FOLLOWER: _PROCESS,
    Target.ETCD: _PROCESS,
    Target.ROUTER_LINK: _LINK,
    Target.CONTROLLER_LINK: _LINK,
    Target.ETCD_LINK: _LINK,
    Target.PEER_LINK: _LINK,
    Target.WORKER_LINK: _LINK,
    Target.HISTORY: (Act.COMPACT,),
    Target.MODEL: (Act.ROLL, Act.SPOIL),
}
_PROCESSES = frozenset(target for target, acts in ACTS.items() if Act.KILL in acts)
LASTING = frozenset({Act.FREEZE, Act.DELAY, Act.CUT, Act.RESET})
"""Acts that have to be ended."""
_LASTS_MS: Mapping[Act, tuple[int, int]] = {
    # Both sides of what heartbeats, leases and liveness timeouts of a few seconds forgive.
    Act.FREEZE: (200, 8000),
    Act.DELAY: (500, 8000),
    Act.CUT: (300, 8000),
    Act.RESET: (100, 3000),
}
_DELAY_MS = (5, 400)
_RETURN_MS: Mapping[Target, int] = {
    Target.WORKER: 6000,
    Target.ENGINE: 6000,
    Target.AGENT: 4000,
    Target.ROUTER: 4000,
    Target.LEADER: 5000,
    Target.FOLLOWER: 4000,
    Target.ETCD: 3000,
    Target.HISTORY: 0,
    Target.MODEL: 25_000,
}
"""Time that one is reckoned with to serve again, or a model to roll. The injector waits longer where it takes
longer."""
_AFTERMATH_MS = 1000
_POSTPONED_MS = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How many there are of each."""

    models: int = 2
    replicas: int = 2
    """Instances of each model, at least 2: one must be left when another is struck."""
    agents: int = 3
    routers: int = 2
    controllers: int = 3
    etcd: int = 3

    def __post_init__(self) -> None:
        """Refuses what leaves nothing to strike."""
        for name, least in (("models", 1), ("replicas", 1), ("agents", 1), ("routers", 1), ("etcd", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")
        if self.controllers < 1:
            raise ValueError(f"controllers: must be at least 1, not {self.controllers}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; times in milliseconds from the beginning of the load."""

    at_ms: int
    act: Act
    target: Target
    index: int
    """Which of its kind. Workers and engines count through the first model's, then the second's."""
    for_ms: int = 0
    """How long a lasting act lasts; 0 for the others."""
    delay_ms: int = 0

    def line(self) -> str:
        """The fault as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


Domain = tuple[str, int]
"""What shares a limit: its name, and the model's index where each model has its own."""


def domain_of(target: Target, index: int, shape: Shape) -> Domain:
    """The domain that a fault weakens."""
    match target:
        case Target.WORKER | Target.ENGINE | Target.WORKER_LINK:
            return "model", index // shape.replicas
        case Target.MODEL:
            # What a roll stops has another in its place: its faults are the other domains'.
            return "roll", index
        case Target.HISTORY:
            return "history", 0
        case Target.ROUTER | Target.ROUTER_LINK:
            return "routers", 0
        case Target.LEADER | Target.FOLLOWER | Target.CONTROLLER_LINK:
            return "controllers", 0
        case Target.ETCD | Target.ETCD_LINK | Target.PEER_LINK:
            return "etcd", 0
        case Target.AGENT:
            return "agents", 0


def limit(domain: Domain, shape: Shape, *, reckless: bool = False) -> int:
    """How many faults of a domain may be under way at once.

    At least one router, a majority of etcd, half of the agents and one worker of each model stay unharmed. A
    single controller, agent or member of etcd may be struck. `reckless` lifts every limit.
    """
    name = domain[0]
    if name in ("roll", "history"):
        return 1
    if reckless:
        return {
            "model": shape.replicas,
            "routers": shape.routers,
            "controllers": shape.controllers,
            "etcd": shape.etcd,
            "agents": shape.agents,
        }[name]
    return {
        "model": min(1, shape.replicas - 1),
        "routers": min(1, shape.routers - 1),
        "controllers": max(1, shape.controllers - 1),
        # One member of etcd without a majority to lose is the control plane, as a single controller is.
        "etcd": max(1, (shape.etcd - 1) // 2),
        "agents": max(1, shape.agents // 2),
    }[name]


def busy_until(fault: Fault) -> int:
    """When what the fault struck is reckoned with to be whole again, in milliseconds."""
    returns = 0 if fault.act in LASTING else _RETURN_MS[fault.target]
    return fault.at_ms + fault.for_ms + max(returns, _AFTERMATH_MS)


def make_schedule(
    seed: int, *, seconds: float, faults: int, shape: Shape, reckless: bool = False
) -> tuple[Fault, ...]:
    """The faults in the order of their times; all are over by the end of `seconds`.

    Kinds of faults are drawn like cards from a deck that is shuffled when it is used up, so that a short run
    sees many of them.

    Raises:
        ScheduleError: there is no room for so many.
        ValueError: the time or the number is no such thing.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: must be above 0, not {seconds:g}")
    if faults < 0:
        raise ValueError(f"faults: must not be negative, not {faults}")
    source = random.Random(f"soak-faults-{seed}")
    kinds = list(_kinds(shape, reckless=reckless))
    deck: list[tuple[Act, Target]] = []
    made: list[Fault] = []
    under_way: list[Fault] = []
    end_ms = round(seconds * 1000)
    # Room at the end for those that have to wait for others.
    drawn_ms = end_ms - min(_POSTPONED_MS, end_ms // 10)
    for number in range(faults):
        slot = (number + source.random()) * drawn_ms / faults
        at_ms = max(round(slot), made[-1].at_ms if made else 0)
        while True:
            if at_ms >= end_ms:
                raise ScheduleError(f"{faults} faults do not fit into {seconds:g} s: {len(made)} do")
            under_way = [fault for fault in under_way if busy_until(fault) > at_ms]
            drawn = _draw(source, kinds, deck, under_way, at_ms, end_ms, shape, reckless=reckless)
            if drawn is not None:
                made.append(drawn)
                under_way.append(drawn)
                break
            at_ms = min(map(busy_until, under_way), default=end_ms)
    return tuple(made)


def _kinds(shape: Shape, *, reckless: bool) -> Iterator[tuple[Act, Target]]:
    for target, acts in ACTS.items():
        if _count(target, shape) and limit(domain_of(target, 0, shape), shape, reckless=reckless):
            # Processes weigh more than all else: they are what remembers.
            yield from ((act, target) for act in acts for _ in range(2 if target in _PROCESSES else 1))


def _count(target: Target, shape: Shape) -> int:
    """How many of a kind there are to choose from."""
    match target:
        case Target.WORKER | Target.ENGINE | Target.WORKER_LINK:
            return shape.models * shape.replicas
        case Target.MODEL:
            return shape.models
        case Target.AGENT:
            return shape.agents
        case Target.ROUTER | Target.ROUTER_LINK:
            return shape.routers
        case Target.LEADER | Target.HISTORY:
            return 1
        case Target.FOLLOWER:
            return shape.controllers - 1
        case Target.CONTROLLER_LINK:
            return shape.controllers
        case Target.ETCD | Target.ETCD_LINK:
            return shape.etcd
        case Target.PEER_LINK:
            return shape.etcd if shape.etcd > 1 else 0


def _draw(
    source: random.Random,
    kinds: Sequence[tuple[Act, Target]],
    deck: list[tuple[Act, Target]],
    under_way: Sequence[Fault],
    at_ms: int,
    end_ms: int,
    shape: Shape,
    *,
    reckless: bool,
) -> Fault | None:
    """The first kind of the deck for which there is room now; None when there is none, whatever the kind."""
    if not deck:
        deck.extend(source.sample(kinds, len(kinds)))
    # What is left of the deck has had no room for a while; it stays first in turn.
    for act, target in dict.fromkeys((*deck, *kinds)):
        places = [
            index
            for index in range(_count(target, shape))
            if _has_room(domain_of(target, index, shape), under_way, shape, reckless=reckless)
            and not any(fault.target is target and fault.index == index for fault in under_way)
        ]
        least, most = _LASTS_MS.get(act, (0, 0))
        most = min(most, end_ms - at_ms)
        rolls_too_long = target is Target.MODEL and at_ms + _RETURN_MS[target] > end_ms
        if not places or most < least or rolls_too_long:
            continue
        if (act, target) in deck:
            deck.remove((act, target))
        return Fault(
            at_ms,
            act,
            target,
            source.choice(places),
            for_ms=source.randint(least, most) if act in LASTING else 0,
            delay_ms=source.randint(*_DELAY_MS) if act is Act.DELAY else 0,
        )
    return None


def _has_room(domain: Domain, under_way: Sequence[Fault], shape: Shape, *, reckless: bool) -> bool:
    taken = sum(domain_of(fault.target, fault.index, shape) == domain for fault in under_way)
    return taken < limit(domain, shape, reckless=reckless)
