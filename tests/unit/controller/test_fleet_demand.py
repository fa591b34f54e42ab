"""Traffic: nothing is counted twice, nothing is lost with a report, intervals leave no gaps."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2
from chiron.policy.snapshots import Traffic
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.demand import Demand


def router_report(interval_ms: float, interactive: int = 0, batch: int = 0) -> control_pb2.RouterReport:
    arrived = types_pb2.ClassCounts(interactive=interactive, batch=batch)
    demand = control_pb2.ModelDemand(model="m", arrived=arrived)
    return control_pb2.RouterReport(interval_ms=interval_ms, demand=[demand])


def sums(scale: int) -> cluster_pb2.FinishedRequests:
    return cluster_pb2.FinishedRequests(
        requests=scale,
        output_tokens=10 * scale,
        prompt_tokens=100 * scale,
        output_tokens_sq=1000 * scale,
        service_ms=2000 * scale,
    )


def status(
    interactive: int, batch: int = 0, *, name: str = "a", incarnation: int = 1, load: bool = True
) -> cluster_pb2.InstanceStatus:
    made = cluster_pb2.InstanceStatus(instance_id=name, model="m", incarnation=incarnation)
    if load:
        made.load.finished_interactive.CopyFrom(sums(interactive))
        made.load.finished_batch.CopyFrom(sums(batch))
    return made


def take(demand: Demand, queued: int = 0) -> Traffic:
    return demand.take({"m": queued})["m"]


def test_arrivals_of_all_routers_add_up_once() -> None:
    demand = Demand(10.0)
    demand.hear_router(router_report(1000, interactive=3, batch=1), 11.0)
    demand.hear_router(router_report(1000, interactive=4), 11.5)
    first = take(demand, queued=7)
    assert (first.arrived_interactive, first.arrived_batch, first.queued_interactive) == (7, 1, 7)
    assert take(demand) == Traffic(interval_s=0.0)


def test_intervals_cover_the_time_from_the_first_reports_beginning_without_gaps() -> None:
    demand = Demand(10.0)
    assert take(demand).interval_s == 0.0
    demand.hear_router(router_report(1000), 11.0)
    demand.hear_router(router_report(1000), 11.5)
    assert take(demand).interval_s == pytest.approx(1.5)
    demand.hear_router(router_report(1000), 12.0)
    demand.hear_router(router_report(1000), 12.5)
    assert take(demand).interval_s == pytest.approx(1.0)
    assert take(demand).interval_s == 0.0


def test_of_a_router_that_was_cut_off_the_intervals_part_counts() -> None:
    demand = Demand(0.0)
    for second in range(1, 101):
        demand.hear_router(router_report(1000, interactive=10, batch=20), float(second))
        if second == 95:
            # Cut off since 10 s, at the same rate; told with the reports of the tick from 90 s to 100 s.
            demand.hear_router(router_report(85_000, interactive=850, batch=1700), 95.0)
        elif second <= 10 or second > 95:
            demand.hear_router(router_report(1000, interactive=10, batch=20), float(second))
        if second in (10, 90):
            take(demand)
    traffic = take(demand)
    assert traffic.interval_s == 10.0
    assert traffic.arrived_interactive == pytest.approx(200, abs=10), "at most a report's length more"
    assert traffic.arrived_batch == pytest.approx(400, abs=20)


def test_a_controller_that_has_just_started_counts_no_time_before_it() -> None:
    late, punctual = router_report(70_000, interactive=700), router_report(1000, interactive=10)
    for first, second in ((late, punctual), (punctual, late)):
        demand = Demand(100.0)
        demand.hear_router(first, 101.0)
        demand.hear_router(second, 101.0)
        traffic = take(demand)
        assert (traffic.interval_s, traffic.arrived_interactive) == (1.0, 20)


def test_a_router_alone_that_was_cut_off_is_told_with_its_whole_time() -> None:
    demand = Demand(10.0)
    demand.hear_router(router_report(1000, interactive=10), 11.0)
    take(demand)
    assert take(demand).interval_s == 0.0
    demand.hear_router(router_report(70_000, interactive=700), 81.0)
    traffic = take(demand)
    assert (traffic.interval_s, traffic.arrived_interactive) == (70.0, 700)


def test_ticks_shorter_than_reports_lose_no_arrival() -> None:
    demand = Demand(10.0)
    arrived, covered = 0, 0.0
    for half in range(22, 42):
        demand.hear_router(router_report(1000, interactive=10), half / 2)
        traffic = take(demand)
        arrived, covered = arrived + traffic.arrived_interactive, covered + traffic.interval_s
    assert (arrived, covered) == (200, 10.5)


def test_answers_are_told_by_class_with_their_sums() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(0)])
    demand.hear_agent([status(3, batch=2)])
    assert take(demand) == Traffic(
        interval_s=0.0,
        finished_interactive=3,
        finished_batch=2,
        finished_output_tokens=50,
        finished_prompt_tokens=500,
        finished_service_s=10.0,
        finished_output_tokens_sq=5000.0,
        finished_batch_output_tokens=20,
        finished_batch_prompt_tokens=200,
        finished_batch_service_s=4.0,
        finished_batch_output_tokens_sq=2000.0,
    )


def test_a_report_that_is_lost_loses_no_answer() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(0)])
    demand.hear_agent([status(5)])
    assert take(demand).finished_interactive == 5
    demand.hear_agent([status(5, load=False)])
    demand.hear_agent([status(9)])
    assert take(demand).finished_interactive == 4


def test_a_new_incarnation_counts_from_zero() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(0)])
    demand.hear_agent([status(5)])
    demand.hear_agent([status(0, incarnation=2, load=False)])
    demand.hear_agent([status(2, incarnation=2)])
    assert take(demand).finished_interactive == 7


def test_sums_that_shrink_count_as_nothing_and_are_where_counting_goes_on() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(5, batch=4)])
    demand.hear_agent([status(0, batch=1)])
    assert take(demand) == Traffic(interval_s=0.0)
    demand.hear_agent([status(2, batch=1)])
    traffic = take(demand)
    assert (traffic.finished_interactive, traffic.finished_batch) == (2, 0)


def test_what_ended_before_an_instance_was_first_heard_does_not_count() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(1000)])
    assert take(demand).finished_interactive == 0
    demand.hear_agent([status(1001)])
    assert take(demand).finished_interactive == 1


def test_instances_that_are_gone_are_forgotten() -> None:
    demand = Demand(10.0)
    demand.hear_agent([status(5), status(7, name="b")])
    demand.forget_others({"b"})
    demand.hear_agent([status(6), status(8, name="b")])
    assert take(demand).finished_interactive == 1


def test_a_model_that_nobody_asks_about_is_dropped() -> None:
    demand = Demand(10.0)
    demand.hear_router(router_report(1000, interactive=3), 11.0)
    assert demand.take({}) == {}
    assert take(demand).arrived_interactive == 0
