"""Monotone responses of autoscalers that know a fleet whose instances differ in slots, speed and role.

Each is warmed by a history of its own; the same snapshot with more work, or less time for it, then never
makes it ask for fewer instances.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from chiron.policy.decisions import Retire, Start
from chiron.policy.fleet import Chiron, ChironPaper, GlobalAutoscaler
from chiron.policy.snapshots import NEVER_S, BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S, MEAN_TOKENS = 10.0, 300
KINDS = (Chiron, ChironPaper)
CASES = range(40)
Groups = Sequence[tuple[float, int]]


@dataclass(slots=True)
class Case:
    """What an autoscaler sees after its warm-up; everything follows from the seed."""

    autoscaler: GlobalAutoscaler
    now_s: float = 0.0
    instances: list[FleetInstance] = field(default_factory=list)
    arrived: int = 0
    queued: int = 0
    ttft_slo_s: float = 10.0
    groups: list[tuple[float, int]] = field(default_factory=list)
    """Deadlines in seconds and requests."""

    def asked(self, **changed: object) -> int:
        """Instances started less those that go, with these fields changed."""
        case = replace(self, **changed)  # type: ignore[arg-type]
        fleet = _fleet(case.instances, case.arrived, case.queued, case.groups, case.ttft_slo_s)
        decision = copy.deepcopy(self.autoscaler).decide(
            FleetSnapshot(self.now_s, (fleet,), {"n": 1_000_000})
        )
        return sum(
            action.count if isinstance(action, Start) else -isinstance(action, Retire)
            for action in decision.actions
        )


def _instance(rng: random.Random, key: str) -> FleetInstance:
    role = rng.choice((Role.MIXED, Role.MIXED, Role.INTERACTIVE, Role.BATCH, Role.BATCH))
    slots = rng.choice((16, 64, 200, 350))
    if rng.random() < 0.15:
        return FleetInstance(key, "n", role, Phase.LOADING, slots, slots, ready_in_s=rng.uniform(0, LOAD_S))
    running = rng.randint(1, slots)
    interactive = {Role.BATCH: 0, Role.INTERACTIVE: running}.get(role, rng.randint(0, running))
    return FleetInstance(
        key,
        "n",
        role,
        Phase.READY,
        slots,
        slots,
        running_interactive=interactive,
        running_batch=running - interactive,
        tokens_per_s=rng.choice((0.5, 1.0, 2.0)) * running / (0.008 + 0.00014 * running),
    )


def _fleet(
    instances: Sequence[FleetInstance], arrived: int, queued: int, groups: Groups, ttft_slo_s: float
) -> ModelFleet:
    # Every request that arrives ends within the same second, half of them batch ones of the same lengths.
    one = arrived * MEAN_TOKENS
    traffic = Traffic(
        1.0,
        arrived,
        arrived,
        queued,
        arrived,
        arrived,
        2 * one,
        finished_output_tokens_sq=4.0 * one * MEAN_TOKENS,
        finished_batch_output_tokens=one,
        finished_batch_output_tokens_sq=2.0 * one * MEAN_TOKENS,
    )
    backlog = tuple(BatchBacklog(due_s, requests, 0) for due_s, requests in sorted(groups))
    return ModelFleet("m", 1, 0, 0, ttft_slo_s, 0.2, 2.0, tuple(instances), traffic, backlog, LOAD_S)


def _case(kind: type[Chiron | ChironPaper], seed: int) -> Case:
    rng = random.Random(seed)
    autoscaler = kind()
    seen = [_instance(rng, f"i{number}") for number in range(rng.randint(1, 8))]
    case = Case(autoscaler, arrived=rng.randint(0, 60))
    # None; enough for the rates; enough for Θ as well.
    for tick in range(rng.choice((0, 60, 260))):
        share = rng.uniform(0.7, 1.0)
        now = [
            replace(
                each,
                running_interactive=int(share * each.running_interactive),
                running_batch=int(share * each.running_batch),
                tokens_per_s=share * each.tokens_per_s,
            )
            for each in seen
        ]
        backlog = [(500.0, 100)] if tick % 2 else []
        fleet = _fleet(now, case.arrived, 0, backlog, 10.0)
        autoscaler.decide(FleetSnapshot(tick + 1.0, (fleet,), {"n": 0}))
        case.now_s = tick + 1.0
    case.now_s += 1.0
    case.instances = [_instance(rng, f"j{number}") for number in range(rng.randint(0, 8))]
    case.queued = rng.choice((0, 0, rng.randint(0, 3_000)))
    case.ttft_slo_s = rng.choice((1.0, 10.0, 60.0))
    for _ in range(rng.choice((1, 1, 3))):
        due_s = rng.uniform(*rng.choice(((-100, 100), (0, 7_200))))
        case.groups.append((due_s, rng.randint(1, 20_000)))
    return case


def _falls(kind: type[Chiron | ChironPaper], ladder: Callable[[Case], list[int]]) -> dict[int, list[int]]:
    """The seeds of the cases where a step up the ladder asks for fewer, with what each step asks for."""
    asked = {seed: ladder(_case(kind, seed)) for seed in CASES}
    return {
        seed: counts
        for seed, counts in asked.items()
        if any(fewer > more for fewer, more in itertools.pairwise(counts))
    }


SHIFTS_S = (-4_000.0, -400.0, -100.0, -20.0, 0.0, 5.0, 10.0, 20.0, 40.0, 100.0, 400.0, 4_000.0)


@pytest.mark.parametrize("kind", KINDS)
def test_more_batch_requests_never_ask_for_fewer_instances(kind: type[Chiron | ChironPaper]) -> None:
    def ladder(case: Case) -> list[int]:
        backlogs = [
            [(due_s, int(factor * requests)) for due_s, requests in case.groups if int(factor * requests)]
            for factor in (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0)
        ]
        return [case.asked(groups=groups) for groups in backlogs]

    assert not _falls(kind, ladder)


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_deadlines_never_ask_for_fewer_instances(kind: type[Chiron | ChironPaper]) -> None:
    assert not _falls(
        kind,
        lambda case: [
            case.asked(groups=[(due_s - sooner_s, requests) for due_s, requests in case.groups])
            for sooner_s in SHIFTS_S
        ],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_that_is_due_earlier_never_asks_for_fewer_instances(
    kind: type[Chiron | ChironPaper],
) -> None:
    def ladder(case: Case) -> list[int]:
        (due_s, requests), *others = case.groups
        return [case.asked(groups=[(due_s - sooner_s, requests), *others]) for sooner_s in SHIFTS_S]

    assert not _falls(kind, ladder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tighter_slo_never_asks_for_fewer_instances(kind: type[Chiron | ChironPaper]) -> None:
    slos_s = (NEVER_S, 600.0, 60.0, 30.0, 10.0, 5.0, 1.0, 0.1)
    assert not _falls(kind, lambda case: [case.asked(ttft_slo_s=slo_s) for slo_s in slos_s])


def test_more_interactive_requests_never_ask_for_fewer_instances_of_either_role() -> None:
    more = (0, 1, 10, 30, 100, 200, 300, 500, 1_000, 3_000)
    assert not _falls(Chiron, lambda case: [case.asked(queued=case.queued + queued) for queued in more])


def test_what_is_opened_to_batch_work_is_opened_before_any_instance_is_started() -> None:
    # Of presumed speed: each closed instance has room for 0.6 of what a further batch instance would make.
    closed = [FleetInstance(f"i{n}", "n", Role.INTERACTIVE, Phase.READY, 60, 60) for n in range(3)]
    batch = FleetInstance("b", "n", Role.BATCH, Phase.READY, 100, 100, running_batch=100)
    case = Case(Chiron(), instances=[*closed, batch])
    asked = [case.asked(groups=[(100.0, requests)]) for requests in range(0, 1_500, 10)]
    assert all(fewer <= more for fewer, more in itertools.pairwise(asked)), asked
    assert asked[-1] > 0


def test_a_large_batch_instance_that_becomes_a_mixed_one_gives_batch_work_no_more_than_before() -> None:
    # A slot of a small instance makes 98 tokens a second, one of a large instance 18.
    small = [
        FleetInstance(
            f"s{n}", "n", Role.MIXED, Phase.READY, 16, 16, running_interactive=13, tokens_per_s=1_280.0
        )
        for n in range(12)
    ]
    large = [
        FleetInstance(
            f"b{n}", "n", Role.BATCH, Phase.READY, 350, 350, running_batch=350, tokens_per_s=6_140.0
        )
        for n in range(2)
    ]
    case = Case(Chiron(), instances=[*small, *large], groups=[(120.0, 10_000)])
    asked = [case.asked(queued=queued) for queued in range(0, 400, 5)]
    assert asked[0] > 0
    assert all(fewer <= more for fewer, more in itertools.pairwise(asked)), asked
