"""Values in etcd: the same bytes for the same record, and an honest refusal of what is not understood."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import control_pb2, state_pb2
from chiron.store import (
    ApiKeyRecord,
    AutoscalingOrders,
    DecisionRecord,
    GpuRecord,
    InstanceRecord,
    Kind,
    ModelRecord,
    NodeRecord,
    Observed,
    Record,
    Roll,
    SpecVersion,
    TenantRecord,
    TicketKeysRecord,
)
from chiron.store.etcd import SchemaError
from chiron.store.etcd.keys import Keys, range_end
from chiron.store.etcd.values import (
    SCHEMA_VERSION,
    decode_decisions,
    decode_record,
    encode_decisions,
    encode_record,
)
from chiron.v1 import access_pb2, cluster_pb2, types_pb2

RECORDS: list[Record] = [
    ModelRecord(
        "chat",
        b"\x00\xff",
        3,
        2,
        5,
        deleted=True,
        applied_unix_ms=1_700_000_000_000,
        newest_version=4,
        history=(SpecVersion(b"newer", 4, 4, 1_700_000_000_001), SpecVersion(b"", 2, 2)),
        roll=Roll(7, cluster_pb2.ROLL_STATE_STALLED, 4, 3, True, "chat-1 failed"),
        other_roles=((types_pb2.ROLE_INTERACTIVE, 1), (types_pb2.ROLE_BATCH, 2)),
        autoscaling=AutoscalingOrders(paused=True, pause_reason="load test", pinned_instances=0),
    ),
    NodeRecord("a", "10.0.0.1", (GpuRecord(1, "GPU-1", "A100", 80 << 30, False, "XID 79"),), "0.1.0", True),
    InstanceRecord(
        "chat-1",
        "chat",
        "a",
        (0, 3),
        types_pb2.ROLE_BATCH,
        b"spec",
        7,
        control_pb2.DESIRED_STATE_STOPPED,
        9,
        Observed(types_pb2.INSTANCE_STATE_FAILED, "why", 1 << 60, "10.0.0.1:1", 2),
        7,
        served=True,
        batch_size=8,
        step_token_budget=512,
        role_pinned=True,
        draining=True,
    ),
    TenantRecord("acme", b"spec"),
    ApiKeyRecord(
        "k1",
        b"digest",
        "acme",
        access_pb2.ACCESS_ROLE_ADMIN,
        "label",
        1_700_000_000_000,
        revoked=True,
        terms=b"terms",
    ),
    TicketKeysRecord(KeyRing.draw().to_bytes(), 1_700_000_000_000),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_field_of_a_record_is_kept(record: Record) -> None:
    # A field that a test value leaves at its default would be kept by chance.
    for field in dataclasses.fields(record):
        if field.default is not dataclasses.MISSING:
            assert getattr(record, field.name) != field.default, field.name
    assert decode_record(b"key", encode_record(record, 12)) == (record, 12)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "a", "b"]])
def test_the_bytes_do_not_depend_on_the_order_of_a_mapping(names: list[str]) -> None:
    numbers = {name: float(ord(name)) for name in names}
    decision = DecisionRecord("d1", -5, 2, "place", "chat", "chat-1", "a", "because", numbers)
    in_order = dataclasses.replace(decision, numbers=dict(sorted(numbers.items())))
    assert encode_decisions([decision]) == encode_decisions([in_order])
    assert decode_decisions(b"key", encode_decisions([decision]), {}) == [decision]


def test_a_newer_schema_is_refused_naming_the_key_and_both_versions() -> None:
    value = state_pb2.StoredRecord(schema_version=SCHEMA_VERSION + 1).SerializeToString()
    with pytest.raises(SchemaError, match=rf"'/p/k' has schema version {SCHEMA_VERSION + 1}; .* 1 to 1"):
        decode_record(b"/p/k", value)


@pytest.mark.parametrize("value", [b"", b"\xff\xff", b"not protobuf at all"])
def test_what_is_no_record_is_refused_naming_the_key(value: bytes) -> None:
    with pytest.raises(SchemaError, match="'/p/k'"):
        decode_record(b"/p/k", value)


def test_a_kind_of_record_that_is_not_known_is_refused() -> None:
    value = state_pb2.StoredRecord(schema_version=SCHEMA_VERSION).SerializeToString()
    with pytest.raises(SchemaError, match="no record that this Chiron knows"):
        decode_record(b"/p/k", value)


@pytest.mark.parametrize("name", ["chat", "with/slash", "head", "ünï"])
def test_a_records_key_leads_back_to_it(name: str) -> None:
    keys = Keys("/chiron/x")
    for kind in Kind:
        key = keys.record((kind, name))
        assert keys.parse(key) == (kind, name)
        assert keys.state <= key < range_end(keys.state)


def test_numbers_of_decisions_sort_as_keys_do() -> None:
    keys = Keys("/chiron/x")
    numbers = [0, 1, 9, 10, 255, 256, 1 << 40]
    assert sorted(map(keys.decisions, numbers)) == [keys.decisions(number) for number in numbers]


@pytest.mark.parametrize("prefix", ["", "/", "/chiron/"])
def test_a_prefix_that_cannot_be_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix: must be a name"):
        Keys(prefix)
