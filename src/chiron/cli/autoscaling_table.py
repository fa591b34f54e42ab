"""The table of models that the global autoscaler looks after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from chiron.cli.fitting import Column, FittingTable
from chiron.v1 import cluster_pb2 as pb


def autoscaling_tables(models: Iterable[pb.ModelStatus]) -> Sequence[FittingTable]:
    """A row for each model that is autoscaled; no table without one."""
    table = FittingTable(
        Column("autoscaling"),
        Column("state"),
        Column("IBP"),
        Column("Θ", rank=1),
        Column("BBP"),
        Column("wanted", rank=2),
        Column("last tick", rank=3),
        Column("why", prose=True),
    )
    scaled = [model for model in models if model.HasField("autoscale")]
    for model in scaled:
        told = model.autoscale
        state = pb.AutoscaleState.Name(told.state).removeprefix("AUTOSCALE_STATE_").lower()
        table.add_row(
            model.spec.name,
            Text(state, style="green" if told.state == pb.AUTOSCALE_STATE_ACTIVE else "yellow"),
            f"{told.ibp:.2f}",
            f"{told.theta:.2f}",
            f"{told.bbp:g}",
            _wanted(told),
            f"{told.tick_age_ms / 1000:.1f} s ago" if told.tick_age_ms else "",
            told.reason,
        )
    return [table] if scaled else []


def _wanted(told: pb.AutoscaleStatus) -> str:
    """Instances by role, those of which there are none left out."""
    counts = (
        ("interactive", told.wanted_interactive),
        ("mixed", told.wanted_mixed),
        ("batch", told.wanted_batch),
    )
    return ", ".join(f"{count} {role}" for role, count in counts if count) or "none"
