"""Minimums by the clock on the wall, over nights, time zones and the changes of summer time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from chiron.v1 import cluster_pb2 as pb
from services.global_controller.schedules import minimum_now
from services.global_controller.specs import check_spec


def spec(*schedules: dict[str, object], most: int = 0) -> pb.ModelSpec:
    minimums = [pb.ScheduledMinimum(**{"min_instances": 5} | one) for one in schedules]  # type: ignore[arg-type]
    return pb.ModelSpec(
        name="chat",
        gpus_per_instance=1,
        engine="sim",
        min_instances=1,
        max_instances=most,
        autoscaling=pb.AutoscalingSpec(enabled=True, scheduled_minimums=minimums),
    )


BERLIN = "Europe/Berlin"
DAYTIME = {"days": ["mon", "tue"], "begins": "08:00", "ends": "18:00", "time_zone": BERLIN}
NIGHT = {"days": ["fri"], "begins": "22:00", "ends": "06:00"}
ROUND = {"days": ["mon"], "begins": "08:00", "ends": "08:00"}
SKIPPED = {"begins": "02:15", "ends": "02:45", "time_zone": BERLIN}


@pytest.mark.parametrize(
    ("schedule", "at", "fewest"),
    [
        # Monday, 23 November 2026; Berlin is one hour ahead.
        (DAYTIME, "2026-11-23T06:59", 1),
        (DAYTIME, "2026-11-23T07:00", 5),
        (DAYTIME, "2026-11-23T16:59", 5),
        (DAYTIME, "2026-11-23T17:00", 1),
        (DAYTIME, "2026-11-25T10:00", 1),
        # In summer it is two hours ahead.
        (DAYTIME, "2026-07-06T06:00", 5),
        (DAYTIME, "2026-07-06T16:00", 1),
        # A night belongs to the day on which it begins.
        (NIGHT, "2026-11-27T21:59", 1),
        (NIGHT, "2026-11-27T22:00", 5),
        (NIGHT, "2026-11-28T05:59", 5),
        (NIGHT, "2026-11-28T06:00", 1),
        (NIGHT, "2026-11-28T23:00", 1),
        # One that ends when it begins counts for 24 hours.
        (ROUND, "2026-11-23T07:59", 1),
        (ROUND, "2026-11-23T08:00", 5),
        (ROUND, "2026-11-24T07:59", 5),
        (ROUND, "2026-11-24T08:00", 1),
        # 02:00 to 03:00 is skipped on 29 March and comes twice on 25 October.
        (SKIPPED, "2026-03-29T00:59", 1),
        (SKIPPED, "2026-03-29T01:00", 1),
        (SKIPPED, "2026-10-25T00:20", 5),
        (SKIPPED, "2026-10-25T00:50", 1),
        (SKIPPED, "2026-10-25T01:20", 5),
        ({"days": ["sat"]}, "2026-11-28T12:00", 5),
        ({"days": ["sat"]}, "2026-11-29T00:00", 1),
    ],
)
def test_what_the_wall_clock_shows_counts(schedule: dict[str, object], at: str, fewest: int) -> None:
    assert minimum_now(spec(schedule), datetime.fromisoformat(at).replace(tzinfo=UTC)) == fewest


def test_the_largest_minimum_counts_up_to_the_maximum() -> None:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert minimum_now(spec({"min_instances": 3}, {"min_instances": 7}), now) == 7
    assert minimum_now(spec({"min_instances": 7}, most=4), now) == 4
    assert minimum_now(pb.ModelSpec(min_instances=2), now) == 2


@pytest.mark.parametrize(
    ("schedule", "field", "what"),
    [
        ({"days": ["monday"]}, "days", "must be of mon, tue, wed, thu, fri, sat, sun, not 'monday'"),
        ({"begins": "08:00"}, "begins", "needs ends beside it, and ends needs begins"),
        ({"begins": "8:00", "ends": "24:00"}, "begins", "must be HH:MM, not '8:00'"),
        ({"begins": "08:00", "ends": "24:00"}, "ends", "must be HH:MM, not '24:00'"),
        ({"time_zone": "Berlin"}, "time_zone", "the host's tz database has no time zone 'Berlin'"),
        ({"time_zone": "../x"}, "time_zone", "unknown time zone '../x'"),
        ({"min_instances": 0}, "min_instances", "must be >= 1"),
        ({"min_instances": 9}, "min_instances", "must be at most max_instances (8), not 9"),
    ],
)
def test_a_wrong_schedule_is_refused_by_its_field(schedule: dict[str, object], field: str, what: str) -> None:
    [(path, found), *_] = check_spec(spec(schedule, most=8))
    assert path == f"spec.autoscaling.scheduled_minimums[0].{field}"
    assert found.startswith(what)


def test_without_autoscaling_they_would_be_kept_by_nobody_and_are_refused() -> None:
    idle = spec(DAYTIME)
    assert check_spec(idle) == []
    idle.autoscaling.enabled = False
    assert check_spec(idle) == [
        ("spec.autoscaling.scheduled_minimums", "need autoscaling.enabled: without it nothing keeps them")
    ]
