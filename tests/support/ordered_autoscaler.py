"""A global autoscaler of a controller's process that brings each model to what a file says."""

from __future__ import annotations

import json
import os
from pathlib import Path

from chiron.policy.decisions import FleetDecision
from chiron.policy.snapshots import FleetSnapshot
from chiron.policy.words import Role
from tests.support.target_autoscaler import Target

NAME = "tests.support.ordered_autoscaler:Ordered"
FILE_VARIABLE = "CHIRON_TEST_ORDERS"


class Ordered(Target):
    """Reads its orders anew at each tick."""

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        told = json.loads(Path(os.environ[FILE_VARIABLE]).read_text(encoding="utf-8"))
        Target.wanted = {
            model: {Role[role.upper()]: count for role, count in roles.items()}
            for model, roles in told.items()
        }
        Target.snapshots.clear()
        return super().decide(snapshot)


def order(file: Path, **wanted: dict[str, int]) -> None:
    """Writes the orders; a reader sees the old ones or the new ones, whole."""
    made = file.with_suffix(".new")
    made.write_text(json.dumps(wanted), encoding="utf-8")
    made.replace(file)
