"""Minimums that count at certain times of the week, by the wall clock of a time zone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from chiron.requests.validation import Violation
from chiron.v1 import cluster_pb2

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


def minimum_now(spec: cluster_pb2.ModelSpec, now: datetime) -> int:
    """Fewest instances at a time: the spec's, or the largest of the schedules that count then.

    Never more than the spec's maximum. What counts is what a clock on the wall of the time zone shows: an
    hour that is skipped in spring is over as it would begin, one that comes twice in autumn counts twice.

    Args:
        spec: a valid one.
        now: an aware time.
    """
    counting = [one.min_instances for one in spec.autoscaling.scheduled_minimums if _counts(one, now)]
    wanted = max((spec.min_instances, *counting))
    return min(wanted, spec.max_instances) if spec.max_instances else wanted


def check_schedules(spec: cluster_pb2.ModelSpec) -> Iterator[Violation]:
    """Every violation of the scheduled minimums as (path in the spec, what is wrong)."""
    if spec.autoscaling.scheduled_minimums and not spec.autoscaling.enabled:
        yield "autoscaling.scheduled_minimums", "need autoscaling.enabled: without it nothing keeps them"
    for index, one in enumerate(spec.autoscaling.scheduled_minimums):
        path = f"autoscaling.scheduled_minimums[{index}]"
        for day in one.days:
            if day not in DAYS:
                yield f"{path}.days", f"must be of {', '.join(DAYS)}, not {day!r}"
        if bool(one.begins) != bool(one.ends):
            yield f"{path}.begins", "needs ends beside it, and ends needs begins"
        for field, text in (("begins", one.begins), ("ends", one.ends)):
            if text and not _TIME.fullmatch(text):
                yield f"{path}.{field}", f"must be HH:MM, not {text!r}"
        try:
            _zone(one.time_zone)
        except (ValueError, OSError) as error:
            yield f"{path}.time_zone", f"unknown time zone {one.time_zone!r}: {error}"
        except KeyError:
            yield f"{path}.time_zone", f"the host's tz database has no time zone {one.time_zone!r}"
        if one.min_instances < 1:
            yield f"{path}.min_instances", "must be >= 1"
        if spec.max_instances and one.min_instances > spec.max_instances:
            most = spec.max_instances
            yield f"{path}.min_instances", f"must be at most max_instances ({most}), not {one.min_instances}"


def _counts(schedule: cluster_pb2.ScheduledMinimum, now: datetime) -> bool:
    local = now.astimezone(_zone(schedule.time_zone))
    today = _has_day(schedule, local)
    if not schedule.begins:
        return today
    begins, ends = time.fromisoformat(schedule.begins), time.fromisoformat(schedule.ends)
    clock = local.time()
    if begins < ends:
        return today and begins <= clock < ends
    return (today and clock >= begins) or (_has_day(schedule, local - timedelta(days=1)) and clock < ends)


def _has_day(schedule: cluster_pb2.ScheduledMinimum, local: datetime) -> bool:
    return not schedule.days or DAYS[local.weekday()] in schedule.days


def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name or "UTC")
