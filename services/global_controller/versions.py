"""The versions of a model's spec: which are kept, and how a model points at another one. Pure."""

from __future__ import annotations

import dataclasses

from chiron.rpc.errors import ChironError, Reason
from chiron.store import ModelRecord, Roll, SpecVersion
from services.global_controller.model_roles import with_desired
from services.global_controller.specs import clamp_instances

VERSIONS_KEPT = 5
"""Earlier versions of a spec that a model's record keeps beside the present one."""


def find_version(model: ModelRecord, spec_version: int) -> SpecVersion | None:
    """A version that is kept, the present one included."""
    return next((one for one in kept_versions(model) if one.spec_version == spec_version), None)


def kept_versions(model: ModelRecord) -> list[SpecVersion]:
    """All versions that are kept, the newest first."""
    return sorted((model.version, *model.history), key=lambda one: -one.spec_version)


def next_version(model: ModelRecord | None, seen: list[int]) -> int:
    """A version that is higher than all that the model has had and all that were `seen` at its workers."""
    had = [model.newest_version, model.spec_version] if model else [0]
    return max([*had, *seen]) + 1


def pointed_at(model: ModelRecord, version: SpecVersion, roll: Roll) -> ModelRecord:
    """The model with another version wanted, the one before kept.

    The version from which the roll comes stays whatever its age: a failure leads back to it.
    """
    others = [one for one in kept_versions(model) if one.spec_version != version.spec_version]
    kept = others[:VERSIONS_KEPT]
    kept += [one for one in others[VERSIONS_KEPT:] if one.spec_version == roll.from_version][:1]
    pointed = dataclasses.replace(
        model,
        spec=version.spec,
        spec_version=version.spec_version,
        rollout_version=version.rollout_version,
        applied_unix_ms=version.applied_unix_ms,
        newest_version=max(model.newest_version, model.spec_version, version.spec_version),
        history=tuple(kept),
        roll=roll,
    )
    spec = version.parsed_spec()
    pinned = model.autoscaling.pinned_instances
    if pinned is not None:
        orders = dataclasses.replace(model.autoscaling, pinned_instances=clamp_instances(pinned, spec))
        pointed = dataclasses.replace(pointed, autoscaling=orders)
    return with_desired(pointed, clamp_instances(model.desired_instances, spec))


def version_to_return_to(model: ModelRecord, asked: int) -> SpecVersion:
    """Where a rollback leads: the version that was `asked` for; 0: the newest one before the present one.

    Raises ChironError (VERSION_NOT_FOUND) that names the versions there are.
    """
    others = [one for one in kept_versions(model) if one.spec_version != model.spec_version]
    if asked:
        fitting = [one for one in kept_versions(model) if one.spec_version == asked]
        what = f"no version {asked} of {model.name!r} is kept"
    else:
        fitting = [one for one in others if one.spec_version < model.spec_version]
        what = f"no version of {model.name!r} before {model.spec_version} is kept"
    if not fitting:
        there = ", ".join(str(one.spec_version) for one in others) or "none"
        raise ChironError(Reason.VERSION_NOT_FOUND, f"{what}; there are, beside the present one: {there}")
    return fitting[0]
