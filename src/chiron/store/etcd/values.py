"""Records as etcd's values: deterministic protobuf with a schema version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from chiron.internal.v1 import state_pb2
from chiron.store.decision_wire import outcome_message, read_decision, read_outcome, stored_decision
from chiron.store.decisions import DecisionRecord, Outcome
from chiron.store.records import (
    ApiKeyRecord,
    AutoscalingOrders,
    GpuRecord,
    InstanceRecord,
    ModelRecord,
    NodeRecord,
    Observed,
    Record,
    TenantRecord,
    TicketKeysRecord,
)
from chiron.store.rolls import Roll, SpecVersion
from chiron.v1 import cluster_pb2

SCHEMA_VERSION = 1


class SchemaError(Exception):
    """A value was written by a newer Chiron, or by something else; the text names its key."""


class _Stored(Protocol):
    schema_version: int

    def ParseFromString(self, serialized: bytes) -> int: ...


S = TypeVar("S", bound=_Stored)


def parse(kind: type[S], key: bytes, value: bytes) -> S:
    """Reads a stored value. Raises SchemaError."""
    stored = kind()
    try:
        stored.ParseFromString(value)
    except Exception as error:  # protobuf's DecodeError has no type that its implementations share
        raise SchemaError(f"{key!r} holds no {kind.__name__}: {error}") from error
    if not 1 <= stored.schema_version <= SCHEMA_VERSION:
        raise SchemaError(
            f"{key!r} has schema version {stored.schema_version}; this Chiron knows 1 to {SCHEMA_VERSION}"
        )
    return stored


def encode_head(revision: int, decisions: int, commit_id: bytes) -> bytes:
    """The value of the head."""
    head = state_pb2.StoredHead(
        schema_version=SCHEMA_VERSION, revision=revision, decisions=decisions, commit_id=commit_id
    )
    return head.SerializeToString(deterministic=True)


def encode_term(term: int, holder: bytes) -> bytes:
    """The value of the term."""
    stored = state_pb2.StoredTerm(schema_version=SCHEMA_VERSION, term=term, holder=holder)
    return stored.SerializeToString(deterministic=True)


def encode_candidate(address: str) -> bytes:
    """The value of a controller's key in the election."""
    stored = state_pb2.StoredCandidate(schema_version=SCHEMA_VERSION, address=address)
    return stored.SerializeToString(deterministic=True)


def encode_record(record: Record, revision: int) -> bytes:
    """The value of a record."""
    stored = state_pb2.StoredRecord(schema_version=SCHEMA_VERSION, revision=revision)
    match record:
        case ModelRecord():
            stored.model.CopyFrom(_model(record))
        case NodeRecord():
            stored.node.CopyFrom(_node(record))
        case InstanceRecord():
            stored.instance.CopyFrom(_instance(record))
        case TicketKeysRecord():
            stored.ticket_keys.keys.ParseFromString(record.ring)
            stored.ticket_keys.rotated_unix_ms = record.rotated_unix_ms
        case TenantRecord():
            stored.tenant.CopyFrom(state_pb2.StoredTenant(name=record.name, spec=record.spec))
        case ApiKeyRecord():
            stored.api_key.CopyFrom(_api_key(record))
    return stored.SerializeToString(deterministic=True)


def decode_record(key: bytes, value: bytes) -> tuple[Record, int]:
    """A record and the revision at which it was written. Raises SchemaError."""
    stored = parse(state_pb2.StoredRecord, key, value)
    match stored.WhichOneof("record"):
        case "model":
            return _read_model(stored.model), stored.revision
        case "node":
            return _read_node(stored.node), stored.revision
        case "instance":
            return _read_instance(stored.instance), stored.revision
        case "ticket_keys":
            ring = stored.ticket_keys.keys.SerializeToString(deterministic=True)
            return TicketKeysRecord(ring, stored.ticket_keys.rotated_unix_ms), stored.revision
        case "tenant":
            return TenantRecord(stored.tenant.name, stored.tenant.spec), stored.revision
        case "api_key":
            return _read_api_key(stored.api_key), stored.revision
        case _:
            raise SchemaError(f"{key!r} holds no record that this Chiron knows")


def encode_decisions(decisions: Sequence[DecisionRecord]) -> bytes:
    """The value that holds one transaction's decisions."""
    stored = state_pb2.StoredDecisions(schema_version=SCHEMA_VERSION)
    stored.decisions.extend(map(stored_decision, decisions))
    for one in decisions:
        if one.outcome is not None:
            stored.outcomes.add(decision_id=one.decision_id, outcome=outcome_message(one.outcome))
    return stored.SerializeToString(deterministic=True)


def decode_decisions(key: bytes, value: bytes, later: Mapping[str, Outcome]) -> list[DecisionRecord]:
    """The inverse, oldest first. Raises SchemaError. later: outcomes that have been written since."""
    stored = parse(state_pb2.StoredDecisions, key, value)
    outcomes = {**_outcomes(stored), **later}
    return [read_decision(one, outcomes.get(one.decision_id)) for one in stored.decisions]


def encode_outcomes(outcomes: Mapping[str, Outcome]) -> bytes:
    """The value that holds what came of one transaction's decisions, by their ids."""
    stored = state_pb2.StoredDecisions(schema_version=SCHEMA_VERSION)
    for decision_id, outcome in outcomes.items():
        stored.outcomes.add(decision_id=decision_id, outcome=outcome_message(outcome))
    return stored.SerializeToString(deterministic=True)


def decode_outcomes(key: bytes, value: bytes) -> dict[str, Outcome]:
    """The inverse. Raises SchemaError."""
    return _outcomes(parse(state_pb2.StoredDecisions, key, value))


def _outcomes(stored: state_pb2.StoredDecisions) -> dict[str, Outcome]:
    return {one.decision_id: read_outcome(one.outcome) for one in stored.outcomes}


def _api_key(record: ApiKeyRecord) -> state_pb2.StoredApiKey:
    return state_pb2.StoredApiKey(
        key_id=record.key_id,
        digest=record.digest,
        tenant=record.tenant,
        role=record.role,
        label=record.label,
        created_unix_ms=record.created_unix_ms,
        revoked=record.revoked,
        terms=record.terms,
    )


def _read_api_key(stored: state_pb2.StoredApiKey) -> ApiKeyRecord:
    return ApiKeyRecord(
        stored.key_id,
        stored.digest,
        stored.tenant,
        stored.role,
        stored.label,
        stored.created_unix_ms,
        stored.revoked,
        stored.terms,
    )


def _model(record: ModelRecord) -> state_pb2.StoredModel:
    return state_pb2.StoredModel(
        name=record.name,
        spec=record.spec,
        spec_version=record.spec_version,
        rollout_version=record.rollout_version,
        desired_instances=record.desired_instances,
        deleted=record.deleted,
        applied_unix_ms=record.applied_unix_ms,
        newest_version=record.newest_version,
        history=[
            state_pb2.StoredSpecVersion(
                spec=one.spec,
                spec_version=one.spec_version,
                rollout_version=one.rollout_version,
                applied_unix_ms=one.applied_unix_ms,
            )
            for one in record.history
        ],
        roll=state_pb2.StoredRoll(
            number=record.roll.number,
            state=record.roll.state,
            from_version=record.roll.from_version,
            to_version=record.roll.to_version,
            rollback_on_failure=record.roll.rollback_on_failure,
            reason=record.roll.reason,
        ),
        other_roles=[
            state_pb2.StoredRoleCount(role=role, instances=count) for role, count in record.other_roles
        ],
        autoscaling=state_pb2.StoredAutoscaling(
            paused=record.autoscaling.paused,
            pause_reason=record.autoscaling.pause_reason,
            pinned_instances=record.autoscaling.pinned_instances,
        ),
    )


def _read_model(stored: state_pb2.StoredModel) -> ModelRecord:
    return ModelRecord(
        name=stored.name,
        spec=stored.spec,
        spec_version=stored.spec_version,
        rollout_version=stored.rollout_version,
        desired_instances=stored.desired_instances,
        deleted=stored.deleted,
        applied_unix_ms=stored.applied_unix_ms,
        newest_version=stored.newest_version,
        history=tuple(
            SpecVersion(one.spec, one.spec_version, one.rollout_version, one.applied_unix_ms)
            for one in stored.history
        ),
        roll=Roll(
            number=stored.roll.number,
            state=stored.roll.state,
            from_version=stored.roll.from_version,
            to_version=stored.roll.to_version,
            rollback_on_failure=stored.roll.rollback_on_failure,
            reason=stored.roll.reason,
        ),
        other_roles=tuple((one.role, one.instances) for one in stored.other_roles),
        autoscaling=_read_orders(stored.autoscaling),
    )


def _read_orders(stored: state_pb2.StoredAutoscaling) -> AutoscalingOrders:
    pinned = stored.pinned_instances if stored.HasField("pinned_instances") else None
    return AutoscalingOrders(stored.paused, stored.pause_reason, pinned)


def _node(record: NodeRecord) -> state_pb2.StoredNode:
    return state_pb2.StoredNode(
        node_id=record.node_id,
        host=record.host,
        gpus=[
            cluster_pb2.Gpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                healthy=gpu.healthy,
                reason=gpu.reason,
            )
            for gpu in record.gpus
        ],
        agent_version=record.agent_version,
        draining=record.draining,
    )


def _read_node(stored: state_pb2.StoredNode) -> NodeRecord:
    return NodeRecord(
        node_id=stored.node_id,
        host=stored.host,
        gpus=tuple(
            GpuRecord(gpu.index, gpu.uuid, gpu.name, gpu.memory_bytes, gpu.healthy, gpu.reason)
            for gpu in stored.gpus
        ),
        agent_version=stored.agent_version,
        draining=stored.draining,
    )


def _instance(record: InstanceRecord) -> state_pb2.StoredInstance:
    seen = record.observed
    return state_pb2.StoredInstance(
        instance_id=record.instance_id,
        model=record.model,
        node_id=record.node_id,
        gpu_indexes=record.gpu_indexes,
        role=record.role,
        spec=record.spec,
        spec_version=record.spec_version,
        desired=record.desired,
        generation=record.generation,
        observed=state_pb2.StoredObserved(
            state=seen.state,
            reason=seen.reason,
            incarnation=seen.incarnation,
            address=seen.address,
            restarts=seen.restarts,
        ),
        roll=record.roll,
        served=record.served,
        batch_size=record.batch_size,
        step_token_budget=record.step_token_budget,
        role_pinned=record.role_pinned,
        draining=record.draining,
    )


def _read_instance(stored: state_pb2.StoredInstance) -> InstanceRecord:
    seen = stored.observed
    return InstanceRecord(
        instance_id=stored.instance_id,
        model=stored.model,
        node_id=stored.node_id,
        gpu_indexes=tuple(stored.gpu_indexes),
        role=stored.role,
        spec=stored.spec,
        spec_version=stored.spec_version,
        desired=stored.desired,
        generation=stored.generation,
        observed=Observed(seen.state, seen.reason, seen.incarnation, seen.address, seen.restarts),
        roll=stored.roll,
        served=stored.served,
        batch_size=stored.batch_size,
        step_token_budget=stored.step_token_budget,
        role_pinned=stored.role_pinned,
        draining=stored.draining,
    )
