"""Every field of a snapshot has a source: a new one fails here until the table and the converter have it."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy import snapshots
from chiron.policy.snapshots import ModelFleet
from chiron.policy.sources import SOURCES, Live, NoLiveSource, no_live_source
from chiron.v1 import cluster_pb2, types_pb2

ROOT = Path(__file__).parents[3]
KINDS = [
    kind for kind in vars(snapshots).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)
]
CONVERTERS = {
    "InstanceSample": "services/local_agent/samples.py",
    "FleetInstance": "services/global_controller/fleet_instances.py",
    "BatchBacklog": "services/global_controller/fleet_snapshot.py",
    "Traffic": "services/global_controller/demand.py",
    "ModelFleet": "services/global_controller/fleet_snapshot.py",
    "FleetSnapshot": "services/global_controller/fleet_snapshot.py",
}
MESSAGES = {
    name: message
    for module in (control_pb2, worker_pb2, cluster_pb2, types_pb2)
    for name, message in module.DESCRIPTOR.message_types_by_name.items()
}


def names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_source(kind: type) -> None:
    assert list(SOURCES[kind]) == names(kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_source_on_the_wire_exists(kind: type) -> None:
    paths = [path for source in SOURCES[kind].values() if isinstance(source, Live) for path in source.wire]
    for path in paths:
        message, _, field = path.partition(".")
        assert field in MESSAGES[message].fields_by_name, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_converter_leaves_no_field_to_its_default(kind: type) -> None:
    tree = ast.parse((ROOT / CONVERTERS[kind.__name__]).read_text())
    made = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind.__name__
    ]
    assert made == [set(names(kind))]


def test_what_has_no_live_source_says_why_where_the_field_is() -> None:
    text = " ".join(Path(snapshots.__file__).read_text().split())
    reasons = [
        source.reason
        for sources in SOURCES.values()
        for source in sources.values()
        if isinstance(source, NoLiveSource)
    ]
    for reason in reasons:
        assert f"No live source: {reason}." in text
    assert text.count("No live source: ") == len(reasons)


def test_only_a_recorded_exception_has_a_value_without_a_source() -> None:
    assert no_live_source(ModelFleet, "gpu_type", str) == ""
    with pytest.raises(
        TypeError, match=r"ModelFleet\.priority is not recorded as a int without a live source"
    ):
        no_live_source(ModelFleet, "priority", int)


def test_the_page_of_sources_is_written_from_the_table() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/snapshot_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
