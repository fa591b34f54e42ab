"""How many of a model's wanted instances have which role. Pure.

A model's record counts those with another role than its spec's; all others have the spec's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from chiron.policy import words
from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import types_pb2

Role: TypeAlias = types_pb2.Role.ValueType


def api_role(role: words.Role) -> Role:
    """A policy's word for a role as the API's."""
    return types_pb2.Role.ValueType(role)


def role_name(role: Role) -> str:
    """interactive, mixed or batch."""
    return types_pb2.Role.Name(role).removeprefix("ROLE_").lower()


def spec_role(model: ModelRecord) -> Role:
    """The role of new instances where nothing else is said."""
    return model.parsed_spec().role or types_pb2.ROLE_MIXED


def wanted_roles(model: ModelRecord) -> Counter[Role]:
    """Role → instances of it that should run; they add up to the model's desired instances."""
    wanted = Counter(dict(_fitting(Counter(dict(model.other_roles)), model.desired_instances)))
    wanted[spec_role(model)] += model.desired_instances - wanted.total()
    return wanted


def with_desired(model: ModelRecord, instances: int) -> ModelRecord:
    """The model with so many instances wanted: what it gains or loses has the spec's role, if it can."""
    others = _fitting(Counter(dict(model.other_roles)), instances)
    return dataclasses.replace(model, desired_instances=instances, other_roles=_stored(others))


def with_more(model: ModelRecord, role: Role, instances: int) -> ModelRecord:
    """The model with so many more instances of a role wanted; a negative number: with so many less."""
    others = _others(model)
    if role != spec_role(model):
        others[role] += instances
    return with_desired(
        dataclasses.replace(model, other_roles=_stored(others)), model.desired_instances + instances
    )


def with_change(model: ModelRecord, before: Role, after: Role) -> ModelRecord:
    """The model with one instance of one role wanted instead of one of another."""
    others, own = _others(model), spec_role(model)
    for role, change in ((before, -1), (after, 1)):
        if role != own:
            others[role] += change
    return with_desired(dataclasses.replace(model, other_roles=_stored(others)), model.desired_instances)


class RoleSeats:
    """The roles of instances that are to be placed, one after the other."""

    def __init__(self, model: ModelRecord, held: Iterable[InstanceRecord]) -> None:
        """`held`: the instances that are there already."""
        self._own = spec_role(model)
        self._left = wanted_roles(model)
        self._left.subtract(record.role for record in held)

    def take(self) -> Role:
        """The role of which most are missing; the spec's when none is."""
        role = max(self._left, key=lambda one: (self._left[one], one == self._own, -one), default=self._own)
        if self._left[role] <= 0:
            role = self._own
        self._left[role] -= 1
        return role


def beyond_wanted(model: ModelRecord, held: Iterable[InstanceRecord]) -> Counter[Role]:
    """Role → instances of it beyond those wanted; below 0: so many are missing."""
    found = Counter(record.role for record in held)
    found.subtract(wanted_roles(model))
    return found


def _others(model: ModelRecord) -> Counter[Role]:
    own = spec_role(model)
    return Counter({role: count for role, count in model.other_roles if role != own})


def _fitting(others: Mapping[Role, int], instances: int) -> Counter[Role]:
    """At most so many in all; of the role with the most one goes after the other."""
    kept = Counter({role: count for role, count in others.items() if count > 0})
    excess = kept.total() - instances
    for _ in range(max(0, excess)):
        most = max(kept, key=lambda role: (kept[role], role))
        kept[most] -= 1
    return kept


def _stored(others: Mapping[Role, int]) -> tuple[tuple[Role, int], ...]:
    return tuple(sorted((role, count) for role, count in others.items() if count > 0))
