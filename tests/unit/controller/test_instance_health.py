"""How long an instance counts as ready, and what its requests came to."""

from __future__ import annotations

from chiron.v1 import cluster_pb2
from services.global_controller.health import HealthBook
from services.global_controller.view import Health
from tests.support.cluster_states import LOADING, READY


def status(state: int = READY, *, incarnation: int = 1, age_s: float = 0.0) -> cluster_pb2.InstanceStatus:
    load = cluster_pb2.InstanceLoad(failed_requests=2)
    load.finished_interactive.requests, load.finished_batch.requests = 5, 6
    return cluster_pb2.InstanceStatus(
        state=state,  # type: ignore[arg-type]
        incarnation=incarnation,
        state_age_ms=age_s * 1e3,
        load=load,
    )


def test_time_counts_from_the_first_report_less_what_the_agent_knows() -> None:
    book = HealthBook()
    assert book.take({"i": status(age_s=40)}, 100.0) == {"i": Health(ready_s=40.0, served=11, failed=2)}
    assert book.take({"i": status(age_s=43)}, 103.5)["i"].ready_s == 43.5


def test_one_that_is_not_ready_has_no_health_and_begins_anew() -> None:
    book = HealthBook()
    book.take({"i": status()}, 100.0)
    assert book.take({"i": status(LOADING)}, 105.0) == {}
    assert book.take({"i": status()}, 110.0)["i"].ready_s == 0.0


def test_a_worker_that_started_again_between_two_reports_begins_anew() -> None:
    book = HealthBook()
    book.take({"i": status()}, 100.0)
    assert book.take({"i": status(incarnation=2, age_s=1)}, 110.0)["i"].ready_s == 1.0


def test_one_that_has_gone_is_forgotten() -> None:
    book = HealthBook()
    book.take({"i": status()}, 100.0)
    assert book.take({}, 105.0) == {}
    assert book.take({"i": status()}, 110.0)["i"].ready_s == 0.0
