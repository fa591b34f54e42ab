"""Queues at the simulated router: disciplines for both classes, one shared queue, admission, estimates.

An instance of 8 slots makes 800 tokens/s when full: 8 requests of 100 tokens a second.
"""

import json

import numpy as np
import pytest

from chiron.config import ConfigError
from chiron.policy.words import RequestClass, Role
from chiron.sim.queue_settings import InvalidSettingError, QueueSettings
from chiron.sim.scenario import read_scenario
from chiron.sim.workload import InvalidWorkloadError, Workload
from tests.support.sim_worlds import requests, run, world

STEADY = [(at / 7.6, 10, 100) for at in range(0, 456)]
"""A minute at 7.6 requests a second."""


def asking(workload, since_s):
    """Those who come at this time or later ask to be refused when it gets too late."""
    arrays = {name: getattr(workload, name) for name in Workload.__slots__}
    return Workload(**arrays | {"refuse_late": workload.arrival_s >= since_s})


def first_token_s(result, index=-1):
    return result.outcomes.first_token_s[index]


def test_callers_that_ask_are_refused_when_the_slo_is_out_of_reach_and_admitted_when_it_is_not():
    burst = requests(*STEADY, *[(60.0, 10, 100)] * 300)
    patient = run(world(), burst)
    asked = run(world(), asking(burst, 60.0))
    # About 80 of them get a slot within the 10 s of the TTFT SLO; all others are told so at once.
    assert patient.refused == 0
    assert 0.3 < asked.refused / 300 < 0.9
    assert asked.refusals.slo_out_of_reach == asked.refused
    assert asked.refusals.queue_full == 0
    # Who was admitted keeps the promise; who was refused has missed.
    admitted = ~asked.outcomes.refused
    assert asked.outcomes.attained[admitted].mean() > 0.98
    assert not asked.outcomes.attained[~admitted].any()
    assert asked.outcomes.attained.sum() > 0.8 * patient.outcomes.attained.sum()


def test_a_refusal_says_when_to_come_again():
    burst = requests(*STEADY, *[(60.0, 10, 100)] * 300)
    refusals = run(world(), asking(burst, 60.0)).refusals
    # The queue of an admitted 10 s is the bound: the delay is what the wait is too long by.
    assert 0.1 <= refusals.retry_after_s.p50 <= refusals.retry_after_s.p99 <= 60.0


def test_a_batch_request_is_refused_when_its_deadline_is_out_of_reach():
    # 60 s of batch work are queued; 10 s are too few for the last one, 300 s are not.
    before = [(*request, 20_000.0) for request in STEADY]
    backlog = [(60.0, 10, 100, 10_000.0)] * 480
    for due_s, refused in ((80.0, 1), (360.0, 0)):
        work = asking(requests(*before, *backlog, (70.0, 10, 100, due_s)), 65.0)
        result = run(world(discipline="fcfs"), work)
        assert result.refused == refused


def test_a_bounded_batch_queue_refuses():
    result = run(
        world({Role.INTERACTIVE: 1}, queues=QueueSettings(batch_limit=2), horizon_s=5.0),
        requests(*[(0.0, 10, 1, 4.0)] * 5),
    )
    assert (result.refusals.queue_full, result.unfinished) == (3, 2)
    assert result.refusals.retry_after_s.p50 is not None


def test_estimates_are_made_at_enqueue_and_come_true():
    burst = requests(*STEADY, *[(60.0 + at / 1000, 10, 100) for at in range(400)])
    found = run(world(model={"ttft_slo_s": 100.0}, queues=QueueSettings(estimate_every=1)), burst).estimator
    late = [wait for wait in found.waits if wait.ahead > 100]
    errors = [abs(wait.mean_s / wait.actual_s - 1) for wait in late]
    assert (found.unknown, found.unanswered) == (0, 0)
    assert len(late) > 250
    assert np.median(errors) < 0.1
    # 400 are no queue of 2,000: the figures of long queues say so.
    assert (found.r2_n, found.r2, found.coverage) == (0, None, None)


def test_without_estimates_nothing_is_told_of_them():
    assert run(world(), requests((0.0, 10, 1))).to_json()["estimator"] is None


def test_the_same_seed_gives_the_same_estimates_and_refusals():
    burst = asking(requests(*STEADY, *[(60.0, 10, 100)] * 100), 60.0)
    made = [run(world(queues=QueueSettings(estimate_every=3)), burst).to_json() for _ in range(2)]
    for each in made:
        del each["wall_s"]
    assert json.dumps(made[0]) == json.dumps(made[1])
    assert made[0]["estimator"]["n"] > 0
    assert made[0]["refusals"]["slo_out_of_reach"] > 0


@pytest.mark.parametrize("discipline", ["fcfs", "edf", "mlfq"])
def test_in_queues_of_their_own_batch_work_never_blocks_interactive_requests(discipline):
    work = requests(*[(0.0, 10, 500, 5_000.0)] * 50, (8.0, 10, 5))
    result = run(world(discipline=discipline), work)
    assert first_token_s(result) - 8.0 < 0.05


@pytest.mark.parametrize(("discipline", "blocked"), [("fcfs", True), ("mlfq", True), ("edf", False)])
def test_in_one_shared_queue_whoever_is_first_blocks_those_behind(discipline, blocked):
    # 50 fresh batch requests of 5 s in 8 slots; by deadline the interactive one is first nevertheless.
    work = requests(*[(0.0, 10, 500, 5_000.0)] * 50, (8.0, 10, 5))
    result = run(world(discipline=discipline, queues=QueueSettings(shared=True)), work)
    assert (first_token_s(result) - 8.0 > 15.0) == blocked


def test_short_requests_pass_long_ones_that_have_had_their_share_only_under_mlfq():
    # The interactive request takes the slot of a batch request that has had some 300 tokens, for longer than
    # that one waits in the engine.
    work = requests((0.0, 10, 600, 5_000.0), (0.1, 10, 10, 6_000.0), (3.005, 10, 700))
    finish_s = {}
    for discipline in ("fcfs", "edf", "mlfq"):
        result = run(world(batch_size=1, engine_queue=0, discipline=discipline), work)
        assert result.preemptions == 1
        finish_s[discipline] = result.outcomes.finish_s
    assert finish_s["mlfq"][1] < finish_s["mlfq"][0]
    for discipline in ("fcfs", "edf"):
        assert finish_s[discipline][0] < finish_s[discipline][1]


def test_by_deadline_a_later_request_passes_only_under_edf():
    work = requests((0.0, 10, 300, 9_000.0), (0.1, 10, 10, 9_000.0), (0.2, 10, 10, 500.0))
    by_deadline = run(world(batch_size=1, engine_queue=0, discipline="edf"), work).outcomes.finish_s
    by_arrival = run(world(batch_size=1, engine_queue=0, discipline="fcfs"), work).outcomes.finish_s
    assert by_deadline[2] < by_deadline[1]
    assert by_arrival[1] < by_arrival[2]


def test_a_batch_request_that_has_waited_the_bound_goes_first():
    # Two a second of 0.5 s each, all due earlier than the first one that waits.
    stream = [(at / 2, 10, 50, at / 2 + 500.0) for at in range(1, 80)]
    work = requests((0.0, 10, 100, 5_000.0), (0.1, 10, 10, 9_000.0), *stream)
    settings = {"batch_size": 1, "engine_queue": 0, "discipline": "edf"}
    starved = run(world(**settings), work).outcomes.finish_s
    bounded = run(world(**settings, queues=QueueSettings(batch_starvation_s=10.0)), work).outcomes.finish_s
    assert starved[1] > 35.0
    assert bounded[1] < 12.0


def test_a_preempted_request_goes_before_others_of_its_file():
    # A file of three, all due at once; the first one makes room for the interactive request.
    work = requests(*[(0.0, 10, 60, 5_000.0)] * 3, (0.3, 10, 2))
    result = run(world(batch_size=1, engine_queue=0, discipline="edf"), work)
    assert result.preemptions == 1
    finish_s = list(result.outcomes.finish_s[:3])
    assert finish_s == sorted(finish_s)


def test_without_preemption_batch_requests_keep_their_slots():
    work = requests((0.0, 10, 100, 60.0), (0.305, 10, 2))
    result = run(world(batch_size=1, queues=QueueSettings(preemption=False)), work)
    assert result.preemptions == 0
    assert first_token_s(result) == pytest.approx(1.01, abs=0.03)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("starvation_s", 0.0),
        ("batch_starvation_s", float("inf")),
        ("batch_limit", -1),
        ("estimate_every", -1),
        ("estimate_quantile", 0.3),
    ],
)
def test_a_bad_queue_setting_is_named(key, value):
    with pytest.raises(InvalidSettingError, match=key):
        QueueSettings(**{key: value})


def test_who_asks_must_be_said_for_every_request():
    workload = requests((0.0, 10, 1), (1.0, 10, 1))
    arrays = {name: getattr(workload, name) for name in Workload.__slots__}
    with pytest.raises(InvalidWorkloadError, match="refuse_late"):
        Workload(**arrays | {"refuse_late": np.array([True])})


SCENARIO = """
name = "queues"
duration_s = 60
[[cluster.gpus]]
name = "a100"
nodes = 1
gpus_per_node = 2
[models.m]
profile = "llama3-8b@a100"
initial = { mixed = 1 }
[[traffic]]
rate_per_s = 5
refuse_late = true
[[backlog]]
requests = 10
[simulation]
discipline = "mlfq"
[queues]
shared = true
estimate_every = 5
"""


def scenario(folder, text=SCENARIO):
    file = folder / "s.toml"
    file.write_text(text, encoding="utf-8")
    return read_scenario(file)


def test_a_scenario_says_how_its_queues_are_kept_and_who_asks(tmp_path):
    found = scenario(tmp_path)
    workload = found.reading().workload
    assert found.settings.queues == QueueSettings(shared=True, estimate_every=5)
    assert found.settings.discipline == "mlfq"
    interactive = workload.request_class == RequestClass.INTERACTIVE
    assert (workload.refuse_late == interactive).all()
    nobody = scenario(tmp_path, SCENARIO.replace("refuse_late = true", "")).reading().workload
    assert nobody.refuse_late is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("estimate_every = 5", "estimate_every = -1", r"\[queues\].*estimate_every"),
        ("estimate_every = 5", "every = 5", r"\[queues\].*'every'"),
        ("shared = true", "shared = 1", r"\[queues\].*'shared'"),
        ("refuse_late = true", 'refuse_late = "yes"', r"\[\[traffic\]\] #1.*'refuse_late'"),
        ('"mlfq"', '"lifo"', r"'discipline'.*edf, fcfs, mlfq"),
    ],
)
def test_a_mistake_in_a_scenario_names_its_key(tmp_path, old, new, named):
    with pytest.raises(ConfigError, match=named):
        scenario(tmp_path, SCENARIO.replace(old, new))
