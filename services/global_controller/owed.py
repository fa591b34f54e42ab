"""What of a model's wanted number its minimum alone has asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2
from services.global_controller.bounds import is_autoscaled
from services.global_controller.fleet import is_stopping, is_to_sleep
from services.global_controller.model_roles import with_desired


def without_owed(
    model: ModelRecord, wanted: cluster_pb2.ModelSpec, instances: Iterable[InstanceRecord]
) -> ModelRecord:
    """The model without the instances that only its minimum asks for, where a lower one is to count.

    What runs stays until the autoscaler lets it go; what has no place is wanted by nobody any more. A number
    that an operator has set stays.

    Args:
        model: an existing model, its earlier spec in force.
        wanted: the spec that takes its place.
        instances: of all models.
    """
    lowered = model.parsed_spec().min_instances - wanted.min_instances
    if lowered <= 0 or not is_autoscaled(model) or model.autoscaling.pinned_instances is not None:
        return model
    placed = sum(
        one.model == model.name and not is_stopping(one) and not is_to_sleep(one) for one in instances
    )
    unplaced = max(0, model.desired_instances - placed)
    return with_desired(model, model.desired_instances - min(unplaced, lowered))
