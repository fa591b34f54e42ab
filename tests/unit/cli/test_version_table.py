"""What `chiron models history` prints."""

from __future__ import annotations

import io

from rich.console import Console

from chiron.cli.versions import changed_fields, versions_table
from chiron.v1 import cluster_pb2 as pb


def version(number: int, **fields: object) -> pb.ModelVersion:
    spec = pb.ModelSpec(**{"name": "toy", "engine": "sim"} | fields)  # type: ignore[arg-type]
    return pb.ModelVersion(spec_version=number, spec=spec)


def test_each_version_names_what_it_changed() -> None:
    newest, older = version(3, weights="/w2", max_batch_size=8), version(1, weights="/w1")
    newest.instances = 2
    older.current = True
    older.applied.FromSeconds(1_700_000_000)
    out = io.StringIO()
    Console(file=out, width=200).print(versions_table([newest, older]))
    rows = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert rows == [
        "version wanted instances applied changed",
        "v3 2 weights, max_batch_size",
        "v1 yes 0 2023-11-14 22:13:20 UTC (the oldest that is kept)",
    ]


def test_messages_and_lists_are_compared_whole() -> None:
    plain = version(1)
    full = version(2, adapters=[pb.Adapter(name="a", path="/a")], roll=pb.RollSettings(hold_s=1))
    full.spec.engine_args["profile"] = "toy"
    assert changed_fields(plain, full) == ["engine_args", "adapters", "roll"]
    assert changed_fields(full, full) == []
