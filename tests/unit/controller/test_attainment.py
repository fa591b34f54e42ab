"""What share of requests kept its SLO, as the controller sums it."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.attainment import Attainments


def status(name: str = "a", incarnation: int = 1, **interactive: int) -> cluster_pb2.InstanceStatus:
    load = cluster_pb2.InstanceLoad(finished_interactive=cluster_pb2.FinishedRequests(**interactive))
    return cluster_pb2.InstanceStatus(instance_id=name, model="m", incarnation=incarnation, load=load)


def answers(met: int, *, ttft: int = 0, itl: int = 0, both: int = 0) -> dict[str, int]:
    """Sums of so many answers that kept the SLO, and that missed it by what."""
    requests = met + ttft + itl + both
    return {
        "requests": requests,
        "with_slo": requests,
        "ttft_met": met + itl,
        "itl_met": met + ttft,
        "slo_met": met,
    }


def total(attainments: Attainments, now: float = 100.0) -> cluster_pb2.ClassAttainment:
    return attainments.of("m", now).since_start.interactive


def test_answers_are_counted_by_what_they_missed() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 1.0)
    kept.hear_agent([status(**answers(5, ttft=3, itl=2, both=1))], 2.0)
    assert total(kept) == cluster_pb2.ClassAttainment(requests=11, met=5, missed_ttft=4, missed_itl=3)


def test_sums_that_were_there_before_belong_to_an_earlier_controller() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status(**answers(50))], 1.0)
    kept.hear_agent([status(**answers(53))], 2.0)
    assert (total(kept).requests, total(kept).met) == (3, 3)


def test_a_new_incarnation_counts_from_zero_and_a_report_without_figures_changes_nothing() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 1.0)
    kept.hear_agent([status(**answers(5))], 2.0)
    kept.hear_agent([cluster_pb2.InstanceStatus(instance_id="a", model="m", incarnation=2)], 3.0)
    kept.hear_agent([status(incarnation=2, **answers(2))], 4.0)
    assert total(kept).met == 7


def test_what_failed_and_who_left_late_has_missed() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 1.0)
    kept.hear_agent([status(slo_failed=2, slo_left=3)], 2.0)
    assert total(kept) == cluster_pb2.ClassAttainment(requests=5, missed_ttft=3, failed=2)


def test_routers_add_what_never_reached_a_worker_and_the_queues_items() -> None:
    kept = Attainments(0.0)
    demand = control_pb2.ModelDemand(
        model="m",
        slo_arrived=9,
        slo_refused=types_pb2.ClassCounts(interactive=2, batch=1),
        slo_failed=types_pb2.ClassCounts(interactive=1),
        slo_left=1,
        deadlines_met=4,
        deadlines_missed=2,
    )
    assert kept.hear_router(control_pb2.RouterReport(demand=[demand]), 1.0)
    told = kept.of("m", 2.0).since_start
    assert told.interactive == cluster_pb2.ClassAttainment(
        requests=4, missed_ttft=1, refused=2, failed=1, arrived=9
    )
    assert told.batch == cluster_pb2.ClassAttainment(requests=7, met=4, missed_deadline=2, refused=1)
    silent = control_pb2.RouterReport(demand=[control_pb2.ModelDemand(model="m")])
    assert not kept.hear_router(silent, 3.0), "nothing new to show"


def test_batch_answers_are_judged_by_their_deadline() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 1.0)
    told = status()
    told.load.finished_batch.MergeFrom(cluster_pb2.FinishedRequests(with_slo=5, slo_met=3, slo_failed=1))
    kept.hear_agent([told], 2.0)
    batch = kept.of("m", 3.0).since_start.batch
    assert batch == cluster_pb2.ClassAttainment(requests=6, met=3, missed_deadline=2, failed=1)


def test_windows_forget_what_is_older_than_they_are_long() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 0.0)
    for second in range(1, 1001):
        kept.hear_agent([status(**answers(second))], float(second))
    told = kept.of("m", 1000.0)
    assert (told.last_minute.window_s, told.last_ten_minutes.window_s) == (60.0, 600.0)
    assert 59 <= told.last_minute.interactive.met <= 61
    assert 590 <= told.last_ten_minutes.interactive.met <= 601
    assert told.since_start.interactive.met == 1000
    later = kept.of("m", 1100.0)
    assert later.last_minute.interactive == cluster_pb2.ClassAttainment()
    assert 490 <= later.last_ten_minutes.interactive.met <= 501


def test_a_young_controller_says_how_much_its_windows_cover() -> None:
    told = Attainments(10.0).of("m", 25.0)
    assert [one.window_s for one in (told.last_minute, told.last_ten_minutes, told.since_start)] == [15.0] * 3


def test_what_is_gone_is_forgotten_and_comes_back_as_new() -> None:
    kept = Attainments(0.0)
    kept.hear_agent([status()], 1.0)
    kept.hear_agent([status(**answers(5))], 2.0)
    kept.forget_others({"b"}, {"m"})
    kept.hear_agent([status(**answers(9))], 3.0)
    assert total(kept).met == 5
    kept.forget_others({"a"}, ())
    assert total(kept).met == 0
