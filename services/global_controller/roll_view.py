"""A model's roll and the versions of its spec as operators see them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2
from services.global_controller.fleet import is_coming, is_current, is_ready, is_stopping
from services.global_controller.versions import kept_versions


def roll_status(model: ModelRecord, instances: Iterable[InstanceRecord]) -> cluster_pb2.RollStatus | None:
    """The model's last roll; None: there has been none.

    Args:
        model: its record.
        instances: all of the model's.
    """
    known = list(instances)
    old = [one for one in known if not is_stopping(one) and not is_current(model, one.spec_version)]
    roll = model.roll
    if roll.state == cluster_pb2.ROLL_STATE_UNSPECIFIED and not old:
        return None
    new = [one for one in known if not is_stopping(one) and is_current(model, one.spec_version)]
    begun = roll.state != cluster_pb2.ROLL_STATE_UNSPECIFIED
    rolling = roll.rolling or not begun
    return cluster_pb2.RollStatus(
        # Instances that were found running roll without anyone having asked for it.
        state=roll.state if begun else cluster_pb2.ROLL_STATE_ROLLING,
        from_version=roll.from_version,
        to_version=roll.to_version if begun else model.spec_version,
        replaced=sum(map(is_ready, new)),
        remaining=len(old),
        reason=_waits_for(known, old, new) if rolling else roll.reason,
        rollback_on_failure=roll.rollback_on_failure,
    )


def model_versions(
    model: ModelRecord, instances: Iterable[InstanceRecord]
) -> Iterable[cluster_pb2.ModelVersion]:
    """The versions that are kept, the newest first."""
    running = [one for one in instances if one.model == model.name and not is_stopping(one)]
    for version in kept_versions(model):
        shown = cluster_pb2.ModelVersion(
            spec_version=version.spec_version,
            spec=version.parsed_spec(),
            current=version.spec_version == model.spec_version,
            instances=sum(one.spec_version == version.rollout_version for one in running),
        )
        if version.applied_unix_ms:
            shown.applied.FromMilliseconds(version.applied_unix_ms)
        yield shown


def _waits_for(
    known: Sequence[InstanceRecord], old: Sequence[InstanceRecord], new: Sequence[InstanceRecord]
) -> str:
    """What the next step waits for, in one sentence."""
    loading = [one.instance_id for one in new if is_coming(one)]
    leaving = [one.instance_id for one in known if is_stopping(one)]
    if loading:
        text = f"{', '.join(loading)} must become ready"
    elif leaving:
        text = f"{', '.join(leaving)} must finish its requests and stop"
    elif new:
        text = "the new instances must stay ready for the hold time"
    else:
        text = "an instance of the new version must be placed"
    if not any(map(is_ready, (*old, *new))):
        text += "; until then no instance serves and requests wait"
    return text
