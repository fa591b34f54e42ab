"""What the store holds. Every value is immutable, so that nobody can change state by accident."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from chiron.internal.v1 import control_pb2
from chiron.store.rolls import Roll, SpecVersion
from chiron.v1 import access_pb2, cluster_pb2, types_pb2

_K = TypeVar("_K")
_V = TypeVar("_V")


class Kind(StrEnum):
    """Which collection a record belongs to."""

    MODEL = "model"
    NODE = "node"
    INSTANCE = "instance"
    TICKET_KEYS = "ticket_keys"
    TENANT = "tenant"
    API_KEY = "api_key"


Key = tuple[Kind, str]
"""Kind and id (a model's name, a node's or an instance's id)."""


RoleCounts = tuple[tuple[types_pb2.Role.ValueType, int], ...]
"""(role, instances), sorted, none of them 0."""


@dataclass(frozen=True, slots=True)
class AutoscalingOrders:
    """What operators have said to the autoscaler about a model."""

    paused: bool = False
    pause_reason: str = ""
    pinned_instances: int | None = None
    """The number of instances that an operator has set; None: the autoscaler sets it."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that was applied, or the tombstone of one that was deleted."""

    name: str
    spec: bytes
    """The normalised ModelSpec, serialised."""
    spec_version: int
    """Each applied spec gets a higher one, over deletions too; a rollback returns to a lower one."""
    rollout_version: int
    """The version whose workers serve this spec: the first one that asked for the same workers."""
    desired_instances: int
    deleted: bool = False
    """True for a tombstone: what is left of the model must stop."""
    applied_unix_ms: int = 0
    """When this version was applied first. Wall clock, for people; nothing is computed from it."""
    newest_version: int = 0
    """The highest version ever given; 0: spec_version is."""
    history: tuple[SpecVersion, ...] = ()
    """Other versions of the spec, the newest first."""
    roll: Roll = field(default_factory=Roll)
    other_roles: RoleCounts = ()
    """Of the desired instances, those with another role than the spec's."""
    autoscaling: AutoscalingOrders = field(default_factory=AutoscalingOrders)

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return Kind.MODEL, self.name

    @property
    def version(self) -> SpecVersion:
        """The version that is wanted now."""
        return SpecVersion(self.spec, self.spec_version, self.rollout_version, self.applied_unix_ms)

    def parsed_spec(self) -> cluster_pb2.ModelSpec:
        """A ModelSpec of the caller's own."""
        return cluster_pb2.ModelSpec.FromString(self.spec)


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU as its node's agent last described it."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_bytes: int = 0
    healthy: bool = True
    reason: str = ""
    """Why it is not healthy."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node that has joined at least once. Whether it lives is no state: its agent's stream tells."""

    node_id: str
    host: str
    gpus: tuple[GpuRecord, ...]
    agent_version: str = ""
    draining: bool = False

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return Kind.NODE, self.node_id


@dataclass(frozen=True, slots=True)
class Observed:
    """What the node's agent last said of an instance, without the figures that change every second."""

    state: types_pb2.InstanceState.ValueType = types_pb2.INSTANCE_STATE_PENDING
    reason: str = ""
    incarnation: int = 0
    address: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What is wanted of an instance, and what was seen of it."""

    instance_id: str
    model: str
    node_id: str
    gpu_indexes: tuple[int, ...]
    role: types_pb2.Role.ValueType
    spec: bytes
    """The serialised ModelSpec that this instance runs; the model's own may be newer."""
    spec_version: int
    """The version whose workers this one belongs to (ModelRecord.rollout_version when it was placed); 0: not
    known, because another controller started the worker."""
    desired: control_pb2.DesiredState.ValueType = control_pb2.DESIRED_STATE_RUNNING
    generation: int = 1
    """Increases with each change of what is wanted."""
    observed: Observed = field(default_factory=Observed)
    roll: int = 0
    """Number of the model's roll that placed it; 0: none."""
    served: bool = False
    """Whether it has ever been seen ready."""
    batch_size: int = 0
    """What an operator has set, in requests; 0: the local autoscaler decides."""
    step_token_budget: int = 0
    """Likewise, in tokens."""
    role_pinned: bool = False
    """An operator has set its role: the autoscaler leaves it."""
    draining: bool = False
    """An operator wants it empty: another one takes its place."""

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return Kind.INSTANCE, self.instance_id


@dataclass(frozen=True, slots=True)
class TicketKeysRecord:
    """The keys that tickets are signed with; there is one record of it."""

    ring: bytes = field(repr=False)
    """The serialised keys: secret, never shown and never logged."""
    rotated_unix_ms: int = 0
    """Wall clock of the last rotation, which is what keys are kept by."""

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return TICKET_KEYS


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant and what it may do."""

    name: str
    spec: bytes
    """The serialised Tenant."""

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return Kind.TENANT, self.name

    def parsed_spec(self) -> access_pb2.Tenant:
        """A Tenant of the caller's own."""
        return access_pb2.Tenant.FromString(self.spec)


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    """What is kept of an API key: enough to know it again, not enough to use it."""

    key_id: str
    digest: bytes = field(repr=False)
    """See chiron.auth.api_keys."""
    tenant: str = ""
    role: access_pb2.AccessRole.ValueType = access_pb2.ACCESS_ROLE_UNSPECIFIED
    label: str = ""
    created_unix_ms: int = 0
    revoked: bool = False
    terms: bytes = b""
    """The serialised KeyTerms."""

    @property
    def key(self) -> Key:
        """Where the store keeps it."""
        return Kind.API_KEY, self.key_id

    def parsed_terms(self) -> access_pb2.KeyTerms:
        """KeyTerms of the caller's own."""
        return access_pb2.KeyTerms.FromString(self.terms)


TICKET_KEYS: Key = (Kind.TICKET_KEYS, "ring")
Record = ModelRecord | NodeRecord | InstanceRecord | TicketKeysRecord | TenantRecord | ApiKeyRecord


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction changed."""

    revision: int
    puts: tuple[Record, ...] = ()
    deletes: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state at one revision; the mappings are read-only."""

    revision: int = 0
    models: Mapping[str, ModelRecord] = field(default_factory=lambda: MappingProxyType({}))
    nodes: Mapping[str, NodeRecord] = field(default_factory=lambda: MappingProxyType({}))
    instances: Mapping[str, InstanceRecord] = field(default_factory=lambda: MappingProxyType({}))
    revisions: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))
    """Revision of each record's last change; a key that is not there counts as 0."""
    ticket_keys: TicketKeysRecord | None = None
    tenants: Mapping[str, TenantRecord] = field(default_factory=lambda: MappingProxyType({}))
    api_keys: Mapping[str, ApiKeyRecord] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, change: Change) -> Snapshot:
        """The state once `change` has happened; this one stays as it is."""
        models, nodes, instances = _copy(self.models), _copy(self.nodes), _copy(self.instances)
        revisions, ticket_keys = _copy(self.revisions), self.ticket_keys
        # There may be many of these, and they change rarely: what nobody touched stays the same object.
        touched = {key[0] for key in (*(record.key for record in change.puts), *change.deletes)}
        tenants = _copy(self.tenants) if Kind.TENANT in touched else {}
        api_keys = _copy(self.api_keys) if Kind.API_KEY in touched else {}
        for record in change.puts:
            revisions[record.key] = change.revision
            match record:
                case ModelRecord():
                    models[record.name] = record
                case NodeRecord():
                    nodes[record.node_id] = record
                case InstanceRecord():
                    instances[record.instance_id] = record
                case TicketKeysRecord():
                    ticket_keys = record
                case TenantRecord():
                    tenants[record.name] = record
                case ApiKeyRecord():
                    api_keys[record.key_id] = record
        for kind, name in change.deletes:
            revisions.pop((kind, name), None)
            match kind:
                case Kind.MODEL:
                    models.pop(name, None)
                case Kind.NODE:
                    nodes.pop(name, None)
                case Kind.INSTANCE:
                    instances.pop(name, None)
                case Kind.TICKET_KEYS:
                    ticket_keys = None
                case Kind.TENANT:
                    tenants.pop(name, None)
                case Kind.API_KEY:
                    api_keys.pop(name, None)
        return Snapshot(
            change.revision,
            MappingProxyType(models),
            MappingProxyType(nodes),
            MappingProxyType(instances),
            MappingProxyType(revisions),
            ticket_keys,
            MappingProxyType(tenants) if Kind.TENANT in touched else self.tenants,
            MappingProxyType(api_keys) if Kind.API_KEY in touched else self.api_keys,
        )


def _copy(mapping: Mapping[_K, _V]) -> dict[_K, _V]:
    # `dict` of a proxy asks it for one item after the other, which takes twenty times as long.
    return mapping | {} if isinstance(mapping, MappingProxyType) else dict(mapping)
