"""What each policy's name stands for, and the settings under which it runs."""

from __future__ import annotations

import pytest

from chiron.config import ConfigError
from chiron.policy.words import Role
from chiron.sim.baselines.llumnix import FreenessDispatcher
from chiron.sim.baselines.migration import FreenessPairing, MigrationThresholds
from chiron.sim.parameters import ParameterError
from chiron.sim.policies import POLICIES, PREEMPTING, PolicyChoice
from chiron.sim.queue_settings import QueueSettings
from tests.support.sim_worlds import requests, run, world


def test_llumnix_knows_no_classes_and_pins_requests_to_instances() -> None:
    settings = PolicyChoice("llumnix").make().settings(world())

    assert not settings.queues.preemption
    assert settings.engine_queue > 100_000


def test_the_variant_of_llumnix_has_one_queue_in_the_order_of_arrival() -> None:
    settings = PolicyChoice("llumnix-queue").make().settings(world())

    assert (settings.queues.preemption, settings.queues.shared) == (False, True)
    assert (settings.discipline, settings.engine_queue) == ("fcfs", world().engine_queue)


def test_chiron_and_what_gets_its_workers_preempt() -> None:
    preempting = {name for name, parts in POLICIES.items() if parts.preemption}

    assert set(POLICIES) - preempting == {
        "llumnix",
        "llumnix-migration",
        "llumnix-priorities",
        "llumnix-queue",
        "utilization",
        "queue-length",
        "in-flight",
        "dynamo-like",
    }
    assert POLICIES["llumnix+preempting"].autoscaler == "llumnix"
    assert PolicyChoice("chiron").make().settings(world()) == world()


def test_migration_and_priorities_are_variants_of_llumnix() -> None:
    moving = PolicyChoice("llumnix-migration", parameters={"migrate_out_below": 1}).make()
    assert isinstance(moving.migration, FreenessPairing)
    assert moving.migration_thresholds == MigrationThresholds(migrate_out_below=1.0)
    assert not moving.settings(world()).queues.priorities

    told_apart = PolicyChoice("llumnix-priorities").make()
    assert told_apart.migration is not None
    queues = told_apart.settings(world()).queues
    assert (queues.priorities, queues.preemption) == (True, False)


def test_priorities_put_interactive_requests_first_in_an_engine() -> None:
    # One slot: the first request has it, then a batch request waits, then an interactive one.
    rows = requests((0.0, 10, 20), (0.01, 10, 20, 30.0), (0.02, 10, 20))
    for priorities, last in ((False, 2), (True, 1)):
        queues = QueueSettings(preemption=False, priorities=priorities)
        settings = world(batch_size=1, engine_queue=8, queues=queues)
        result = run(settings, rows, dispatcher=FreenessDispatcher())
        assert int(result.outcomes.finish_s.argmax()) == last
        assert result.preemptions == 0


def test_without_migration_its_thresholds_are_unknown() -> None:
    assert PolicyChoice("llumnix").make().migration is None
    with pytest.raises(ParameterError, match="migrate_out_below"):
        PolicyChoice("llumnix", parameters={"migrate_out_below": 1}).make()


def test_each_scaling_without_chirons_queues_is_there_once_more_over_them() -> None:
    others = [parts for parts in POLICIES.values() if not parts.preemption]

    for parts in others:
        variants = [
            name
            for name, each in POLICIES.items()
            if each.preemption and (each.autoscaler, each.parameters) == (parts.autoscaler, parts.parameters)
        ]
        assert [name.endswith(PREEMPTING) for name in variants] == [True]
        variant = PolicyChoice(variants[0]).make()
        assert variant.settings(world()) == world()
        assert variant.parts.dispatcher == POLICIES["chiron"].dispatcher


@pytest.mark.parametrize(("name", "preemption"), [("llumnix", True), ("chiron", False)])
def test_preemption_is_a_part_that_can_be_replaced(name: str, preemption: bool) -> None:
    choice = PolicyChoice(name, preemption=preemption)

    assert choice.make().settings(world()).queues.preemption is preemption
    assert choice.label == f"{name}[preemption={'on' if preemption else 'off'}]"


def test_a_scenario_without_preemption_has_none_under_any_policy() -> None:
    settings = world(queues=QueueSettings(preemption=False))

    assert not PolicyChoice("chiron", preemption=True).make().settings(settings).queues.preemption


@pytest.mark.parametrize("part", ["autoscaler", "dispatcher", "local"])
def test_an_empty_name_is_no_name(part: str) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        PolicyChoice("chiron", **{part: ""}).make()


def test_without_preemption_an_interactive_request_waits_for_the_slot() -> None:
    # One slot; the batch request holds it for 30 steps of 10 ms, the interactive one comes at 0.205.
    settings = world({Role.MIXED: 1}, batch_size=1, queues=QueueSettings(preemption=False))
    result = run(settings, requests((0.0, 10, 30, 60.0), (0.205, 10, 1)))

    assert result.preemptions == 0
    assert list(result.outcomes.finish_s) == pytest.approx([0.3, 0.31])


def test_without_preemption_engines_take_requests_in_the_order_of_arrival() -> None:
    # While the first runs, a batch request and then an interactive one wait in the engine.
    work = requests((0.0, 10, 10), (0.01, 10, 10, 60.0), (0.02, 10, 10))
    finishes = {}
    for preemption in (False, True):
        policy = PolicyChoice("llumnix", preemption=preemption).make()
        result = run(policy.settings(world(batch_size=1)), work, dispatcher=policy.dispatcher)
        finishes[preemption] = list(result.outcomes.finish_s)

    assert finishes[False] == pytest.approx([0.1, 0.2, 0.3])
    assert finishes[True][2] == pytest.approx(0.2)
