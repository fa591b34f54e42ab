"""What an agent's local autoscaler wants, whose word goes first, and what becomes of mistakes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from chiron.internal.v1 import worker_pb2
from chiron.policy.checked import CheckedLocal
from chiron.sim.policies import PolicyChoice
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent import steps
from services.local_agent.autoscaling import Autoscaling
from services.local_agent.condition import Failure, FailureKind, Have, Heard, Policy
from services.local_agent.config import AgentConfig
from services.local_agent.desired import Goal, Want, level_of, want_of
from services.local_agent.limits import LimitPair, OwnLimit, wanted_limits
from services.local_agent.samples import sample_of
from services.local_agent.supervisor import plan

READY = types_pb2.INSTANCE_STATE_READY
WANT = Want("m-1", Goal.RUNNING, cluster_pb2.ModelSpec(name="m", engine="sim"), gpus=(0,))
NOW = 100.0


def statistics(
    batch_size: int = 64, *, slo_ms: float = 200, step_ms: float = 0.0, budget: int = 2048, **fields: object
) -> worker_pb2.WatchStatisticsResponse:
    """A saturated second of an engine whose step takes 10 ms and a fifth of one for each request."""
    step_ms = step_ms or 10 + 0.2 * batch_size
    count = round(1000 / step_ms)
    return worker_pb2.WatchStatisticsResponse(
        instance_id="m-1",
        state=READY,
        interval_ms=count * step_ms,
        steps=count,
        output_tokens=count * batch_size,
        prompt_tokens=count * batch_size // 4,
        saturated=True,
        tightest_itl_slo_ms=slo_ms,
        max_batch_size=1024,
        max_step_token_budget=8192,
        load=cluster_pb2.InstanceLoad(
            batch_size=batch_size,
            step_token_budget=budget,
            running=types_pb2.ClassCounts(interactive=batch_size),
            waiting=types_pb2.ClassCounts(interactive=9),
            kv_usage=0.2,
            kv_capacity_tokens=400_000,
            itl_mean_ms=step_ms,
            itl_p95_ms=step_ms,
        ),
        **fields,  # type: ignore[arg-type]
    )


def decided(name: str, *messages: worker_pb2.WatchStatisticsResponse) -> Autoscaling:
    made = Autoscaling("m-1", 1.0)
    made.decided_by(name)
    for message in messages:
        made.hear(message)
    return made


def told(made: Autoscaling, want: Want = WANT) -> cluster_pb2.LocalControl:
    status = cluster_pb2.InstanceStatus(load=cluster_pb2.InstanceLoad(batch_size=64, safe_batch_size=64))
    made.fill(status, want)
    return status.local


def closed_loop(slos_ms: Iterator[float]) -> Iterator[tuple[worker_pb2.WatchStatisticsResponse, LimitPair]]:
    """An engine that does what its autoscaler wants, and tells so, from interval to interval."""
    made = decided("model")
    batch_size, budget = 16, 2048
    for slo_ms in slos_ms:
        message = statistics(batch_size, slo_ms=slo_ms, budget=budget)
        made.hear(message)
        wanted = made.wanted
        yield message, wanted
        if (wanted.batch_size, wanted.step_token_budget) != (batch_size, budget):
            batch_size, budget = wanted.batch_size, wanted.step_token_budget
            change = statistics(batch_size, slo_ms=slo_ms, budget=budget)
            change.interval_ms, change.steps = 3, 0
            made.hear(change)


def test_live_and_simulated_decide_the_same_on_the_same_samples() -> None:
    """The service and the simulator make their objects in different places; both must be the same objects."""
    slos = [200.0] * 25 + [15.0] * 10 + [60.0] * 15
    history = list(closed_loop(iter(slos)))
    make = PolicyChoice("chiron").make().local
    assert make is not None
    simulated = CheckedLocal(make(), "m-1")
    for message, wanted in history:
        sample = sample_of(message)
        assert sample is not None
        limits = simulated.decide(sample)
        assert (limits.batch_size, limits.step_token_budget) == (wanted.batch_size, wanted.step_token_budget)
    chosen = [wanted.batch_size for _, wanted in history]
    assert chosen[34] < max(chosen[:25])
    assert chosen[34] < max(chosen[35:])


def test_an_itl_violation_is_answered_by_the_very_sample_that_shows_it() -> None:
    made = decided("reactive", *[statistics(64, slo_ms=200)] * 3)
    assert made.wanted.batch_size > 64
    made.hear(statistics(64, slo_ms=5))
    assert made.wanted.batch_size < 64


@pytest.mark.parametrize(
    ("set_by_hand", "proposed", "expected"),
    [
        ((0, 0), (0, 0), (0, 0)),
        ((0, 0), (16, 512), (16, 512)),
        ((4, 0), (16, 512), (4, 512)),
        ((0, 64), (16, 512), (16, 64)),
        ((4, 64), (16, 512), (4, 64)),
        ((4, 64), (0, 0), (4, 64)),
    ],
)
def test_an_operators_word_goes_before_the_autoscalers_each_limit_by_itself(
    set_by_hand: tuple[int, int], proposed: tuple[int, int], expected: tuple[int, int]
) -> None:
    want = replace(WANT, batch_size=set_by_hand[0], step_token_budget=set_by_hand[1])
    assert wanted_limits(want, LimitPair(*proposed)) == LimitPair(*expected)


BY_HAND = LimitPair(batch_size=1)


def test_a_limit_given_back_goes_on_from_what_was_wanted_before_it_was_set_by_hand() -> None:
    made = decided("reactive", *[statistics(64)] * 3)
    before = made.wanted
    assert before.batch_size > 64
    for size in (before.batch_size, 1, 1, 1):
        change = statistics(size)
        change.interval_ms = 3
        made.hear(change, BY_HAND)
        made.hear(statistics(size), BY_HAND)
        assert made.wanted.batch_size == before.batch_size
        assert told(made).wanted_batch_size == before.batch_size
    # One more sample of before may come until the worker has what is wanted; from then on it is judged by.
    made.hear(statistics(1))
    assert made.wanted.batch_size == before.batch_size
    change = statistics(before.batch_size)
    change.interval_ms = 3
    made.hear(change)
    made.hear(statistics(before.batch_size, slo_ms=1))
    assert made.wanted.batch_size < before.batch_size, "it decides again"


def test_one_limit_by_hand_leaves_the_other_to_the_autoscaler() -> None:
    made = decided("model")
    for budget in (512, 512, 512):
        made.hear(statistics(64, budget=budget), LimitPair(step_token_budget=512))
    assert made.wanted.batch_size > 64


def test_without_a_memory_what_is_wanted_or_safe_under_the_hand_is_gone_on_from() -> None:
    own = OwnLimit()
    assert own.wanted(1, in_force=1, proposed=2, safe=40) == 40
    assert own.wanted(1, in_force=1, proposed=60, safe=40) == 60
    assert own.wanted(0, in_force=1, proposed=2) == 60
    assert own.wanted(0, in_force=60, proposed=70) == 70
    # By hand again, now with a memory; what the hand holds open is no measure either.
    assert own.wanted(500, in_force=500, proposed=400, safe=500) == 70
    assert own.wanted(0, in_force=500, proposed=400) == 70
    assert own.wanted(0, in_force=70, proposed=80) == 80
    assert own.wanted(0, in_force=500, proposed=90) == 90, "what was once by hand is a number like others"


def test_a_limit_given_back_at_what_is_wanted_is_at_once_the_autoscalers() -> None:
    own = OwnLimit()
    assert own.wanted(0, in_force=8, proposed=8) == 8
    assert own.wanted(8, in_force=8, proposed=9) == 8
    assert own.wanted(0, in_force=8, proposed=9) == 9


def live(batch_size: int = 8, budget: int = 512) -> Have:
    load = cluster_pb2.InstanceLoad(batch_size=batch_size, step_token_budget=budget)
    have = Have().claimed((0,)).launched(incarnation=1, spec_version=0, now=NOW)
    return have.told(Heard(READY, "", types_pb2.ROLE_MIXED, "127.0.0.1:1", load), NOW)


def test_what_the_autoscaler_wants_becomes_a_command_only_where_it_differs() -> None:
    have = live()
    assert plan(WANT, have.proposing(LimitPair(16, 256)), NOW, Policy()) == steps.SetLimits(16, 256)
    assert plan(WANT, have.proposing(LimitPair(16, 512)), NOW, Policy()) == steps.SetLimits(16, 0)
    assert isinstance(plan(WANT, have.proposing(LimitPair(8, 512)), NOW, Policy()), steps.Idle)
    held = replace(WANT, batch_size=8)
    assert isinstance(plan(held, have.proposing(LimitPair(16, 512)), NOW, Policy()), steps.Idle)


def test_what_was_wanted_of_one_worker_is_not_asked_of_the_next() -> None:
    have = live().proposing(LimitPair(16, 256))
    gone = have.exited("killed").gone(Failure(FailureKind.CRASH, "killed"), NOW, Policy())
    assert gone.launched(2, 0, NOW).proposed == LimitPair()


def test_a_policys_mistake_holds_the_limits_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = decided("tests.support.mistaken_local:RaisesAfterOne", statistics(64))
    assert made.wanted.batch_size == 32
    for _ in range(3):
        made.hear(statistics(64))
        assert made.wanted == LimitPair()
    assert "I have lost my way" in told(made).error
    assert told(made).wanted_batch_size == 0
    assert len([one for one in caplog.records if "I have lost my way" in one.getMessage()]) == 1
    made.decided_by("reactive")
    made.hear(statistics(64))
    assert (made.wanted.batch_size > 64, told(made).error) == (True, "")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nobody", "unknown local autoscaler 'nobody'"),
        ("no.such.module:Class", "no.such.module"),
        ("tests.support.mistaken_local:Unmakeable", "no constructor"),
    ],
)
def test_an_autoscaler_that_cannot_be_made_holds_the_limits(name: str, cause: str) -> None:
    made = decided(name, statistics(64), statistics(64))
    assert made.wanted == LimitPair()
    assert cause in told(made).error


def test_nothing_that_a_policy_does_ends_the_watch_of_its_worker() -> None:
    made = decided("tests.support.mistaken_local:Unspeakable", statistics(64), statistics(64))
    assert made.wanted == LimitPair()
    assert told(made).error == "RuntimeError('these figures cannot be read')"


def test_statistics_that_no_engine_could_tell_hold_the_limits_and_teach_nothing() -> None:
    straight, astray = decided("model"), decided("model")
    for _ in range(8):
        straight.hear(statistics(64))
        astray.hear(statistics(64))
    for field, value in (("itl_mean_ms", math.nan), ("itl_mean_ms", -1.0), ("kv_usage", math.inf)):
        odd = statistics(64)
        setattr(odd.load, field, value)
        astray.hear(odd)
        assert (astray.wanted, "must be a number" in told(astray).error) == (LimitPair(), True)
    odd = statistics(64)
    odd.max_batch_size = 8
    astray.hear(odd)
    assert "ceiling of 8" in told(astray).error
    straight.hear(statistics(64))
    astray.hear(statistics(64))
    assert (astray.wanted, told(astray).error) == (straight.wanted, "")


def test_nobody_decides_when_it_is_off() -> None:
    made = decided("off", statistics(64, slo_ms=1))
    assert (made.wanted, told(made).autoscaler, told(made).error) == (LimitPair(), "off", "")


def test_another_autoscaler_takes_over_with_the_next_sample() -> None:
    made = decided("off", statistics(64))
    made.decided_by("reactive")
    assert made.wanted == LimitPair()
    made.hear(statistics(64))
    assert (told(made).autoscaler, made.wanted.batch_size) == ("reactive", told(made).wanted_batch_size)


def test_the_report_says_what_is_wanted_and_why() -> None:
    made = decided("reactive", statistics(64, slo_ms=45.6))
    status = cluster_pb2.InstanceStatus(load=cluster_pb2.InstanceLoad(batch_size=64, safe_batch_size=64))
    made.fill(status, replace(WANT, step_token_budget=99))
    local = status.local
    assert (local.autoscaler, local.itl_slo_ms) == ("reactive", pytest.approx(45.6))
    assert local.backpressure == pytest.approx(0.5)
    assert (local.wanted_batch_size, local.wanted_step_token_budget) == (80, 2048)
    assert (local.set_batch_size, local.set_step_token_budget) == (0, 99)
    assert (local.max_batch_size, local.max_step_token_budget) == (1024, 8192)
    assert local.reason == "LBP is below 1: grow"
    assert dict(local.numbers)["lbp"] == local.backpressure
    tight = decided("reactive", statistics(64, slo_ms=11.4))
    tight.fill(status, WANT)
    assert status.load.safe_batch_size == 32, "an ITL of twice the SLO"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("os:getcwd", "local autoscaler 'os:getcwd': getcwd has no method decide"),
        ("no.such:Module", "local autoscaler 'no.such:Module': No module named 'no'"),
    ],
)
def test_what_is_no_local_autoscaler_is_told_and_sets_nothing(name: str, why: str) -> None:
    made = decided(name, statistics(64))
    assert made.wanted == LimitPair()
    assert told(made).error == why


def test_a_report_stays_small_whatever_a_policy_says() -> None:
    local = told(decided("tests.support.mistaken_local:Talkative", statistics(64)))
    assert local.error == ""
    assert local.ByteSize() < 1500


def test_the_setting_names_an_autoscaler_that_can_be_made() -> None:
    for name in ("model", "reactive", "off", "chiron.policy.local.model:ModelAutoscaler"):
        assert AgentConfig(local_autoscaler=name).local_autoscaler == name
    with pytest.raises(ValueError, match=r"^local_autoscaler: unknown local autoscaler 'modle'.*, or off$"):
        AgentConfig(local_autoscaler="modle")


def test_what_a_model_says_of_its_autoscaler_is_part_of_the_level_on_record() -> None:
    want = replace(WANT, local_autoscaler="reactive", batch_size=4)
    assert want_of(level_of(want), node_gpus=[0], drain_timeout_s=1.0) == want
