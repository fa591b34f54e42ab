"""Writes docs/snapshots.md: every field of a policy's snapshots with where it comes from in a live cluster.

python tools/snapshot_docs.py            # writes the page
python tools/snapshot_docs.py --check    # exits with 1 when the page is stale
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from generated_page import write_or_check

from chiron.policy.sources import SOURCES, Live, Source

PAGE = Path(__file__).parents[1] / "docs" / "snapshots.md"
_HEAD = """# Where snapshots come from

Policies decide on the frozen dataclasses of `chiron.policy.snapshots`; their docstrings give meaning and
units. This page says, for a live cluster, which protobuf message carries each field, who fills it and how
fresh it is (`make docs` writes it from `chiron.policy.sources`). The simulator fills the same types.

Two pure functions make them: `services.local_agent.samples.sample_of` an `InstanceSample` from one
`WatchStatisticsResponse`, `services.global_controller.fleet_snapshot.fleet_snapshot` a `FleetSnapshot` from
the agents' and routers' reports and the controller's records. Workers tell their agents at 1 Hz and at once
on a change of state, and agents and routers the controller likewise.

What arrives is counted by routers, what finished by workers: a router passes answers on unread, and the
client of a lookaside request streams from the worker. A worker's sums only grow, so that a report that is
lost loses no count; what ends between a worker's last report and its own end is not counted. Routers tell
differences: what was on its way when a stream broke is lost, what could not be sent is told later.
"""


def render() -> str:
    """The page."""
    parts = [_HEAD]
    for snapshot, sources in SOURCES.items():
        parts.append(f"## {snapshot.__name__}\n\n{_table(sources)}\n")
    return "\n".join(parts)


def _table(sources: Mapping[str, Source]) -> str:
    lines = ["| field | message | filled by | freshness |", "|---|---|---|---|"]
    for field, source in sources.items():
        if isinstance(source, Live):
            wire = ", ".join(f"`{each}`" for each in source.wire) or "none"
            lines.append(f"| `{field}` | {wire} | {source.by} | {source.fresh} |")
        else:
            lines.append(f"| `{field}` | no live source: {source.reason} | always `{source.value!r}` | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, render()))
