"""Decisions for tests that do not look at who made them."""

from __future__ import annotations

from chiron.store import DecisionRecord
from services.global_controller.view import Act


def decide(act: Act) -> DecisionRecord:
    """A decision of term 1."""
    return DecisionRecord("d", 0, 1, act.action, act.model, act.instance_id, act.node_id, act.reason)
