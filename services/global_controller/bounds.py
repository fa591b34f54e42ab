"""Between how many instances the autoscaler may move a model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from chiron.store import ModelRecord
from services.global_controller.schedules import minimum_now
from services.global_controller.specs import MOST_INSTANCES


@dataclass(frozen=True, slots=True)
class Bounds:
    """In instances."""

    fewest: int
    most: int
    """At least `fewest`."""


def is_autoscaled(model: ModelRecord) -> bool:
    """Whether the model's spec leaves its instances to the autoscaler."""
    return not model.deleted and model.parsed_spec().autoscaling.enabled


def bounds_now(model: ModelRecord, now: datetime) -> Bounds:
    """The bounds at this time, an aware one: schedules change them."""
    spec = model.parsed_spec()
    return Bounds(minimum_now(spec, now), spec.max_instances or MOST_INSTANCES)
