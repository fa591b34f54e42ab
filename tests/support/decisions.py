"""Decisions for tests that do not look at who made them."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.store import DecisionRecord, Record, Snapshot
from services.global_controller.view import Act


def explain(acts: Sequence[Act], snapshot: Snapshot, puts: Sequence[Record]) -> list[DecisionRecord]:
    """Decisions of term 1."""
    return [
        DecisionRecord("d", 0, 1, act.action, act.model, act.instance_id, act.node_id, act.reason)
        for act in acts
    ]
