"""The versions of a model's spec as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from chiron.cli.fitting import Column, FittingTable
from chiron.v1 import cluster_pb2 as pb


def versions_table(versions: Sequence[pb.ModelVersion]) -> FittingTable:
    """A row for each version, the newest first, with the fields in which it differs from the one below."""
    table = FittingTable(
        Column("version"),
        Column("wanted"),
        Column("instances"),
        Column("applied", rank=1),
        Column("changed", prose=True),
    )
    for index, version in enumerate(versions):
        older = versions[index + 1] if index + 1 < len(versions) else None
        table.add_row(
            f"v{version.spec_version}",
            "yes" if version.current else "",
            str(version.instances),
            _time(version),
            "(the oldest that is kept)" if older is None else ", ".join(changed_fields(older, version)),
        )
    return table


def changed_fields(older: pb.ModelVersion, newer: pb.ModelVersion) -> list[str]:
    """Names of the spec's fields that differ."""
    return [
        field.name
        for field in pb.ModelSpec.DESCRIPTOR.fields
        if _only(older.spec, field.name) != _only(newer.spec, field.name)
    ]


def _only(spec: pb.ModelSpec, field: str) -> pb.ModelSpec:
    """The spec with this field alone."""
    copy = pb.ModelSpec()
    copy.CopyFrom(spec)
    for descriptor, _ in spec.ListFields():
        if descriptor.name != field:
            copy.ClearField(descriptor.name)  # type: ignore[arg-type]
    return copy


def _time(version: pb.ModelVersion) -> str:
    if not version.HasField("applied"):
        return ""
    return version.applied.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
