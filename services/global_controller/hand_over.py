"""Tells nodes how fast their instances that drain may hand running streams over.

The figures are those of `chiron.policy.hand_over.grants` on what agents and routers last reported. They are
on no record: each holds for a few seconds, so that without a leader a drain serves to the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.hand_over import Grant, grants
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase
from chiron.store import InstanceRecord
from chiron.v1 import types_pb2

if TYPE_CHECKING:
    from services.global_controller.controller import Controller

_DRAINING = types_pb2.INSTANCE_STATE_DRAINING
INTERVAL_S = 1.0
"""From one look at what drains to the next: agents and routers report as often."""
VALID_S = 3.0
"""How long a grant holds."""


class HandOverOrders:
    """One reign's."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def run(self) -> None:
        """Tells nodes, while instances drain, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.tell()

    def tell(self) -> None:
        """Looks once, and tells the nodes whose instances may hand over."""
        controller = self._controller
        registry = controller.registry
        draining = (status.state == _DRAINING for status in registry.statuses().values())
        if registry.settling() or not any(draining):
            return
        snapshot = controller.snapshot
        for node_id, orders in orders_of(controller.fleet.look(snapshot), snapshot.instances).items():
            link = registry.agents.get(node_id)
            if link is not None:
                link.hand_overs = orders
                link.wake.beat()


def orders_of(
    fleet: FleetSnapshot, records: Mapping[str, InstanceRecord]
) -> dict[str, control_pb2.HandOvers]:
    """What each node is told. Pure.

    Args:
        fleet: the cluster.
        records: of its instances, by id; those that are not on record neither give nor take.
    """
    found: dict[str, control_pb2.HandOvers] = defaultdict(control_pb2.HandOvers)
    for model in fleet.models:
        for same in _by_version(model, records):
            leaving = {one.instance_id for one in same.instances if one.phase is Phase.DRAINING}
            for instance_id, grant in grants(same, leaving).items():
                if grant:
                    order = found[records[instance_id].node_id].orders.add(instance_id=instance_id)
                    order.request.CopyFrom(request_of(grant))
    return dict(found)


def request_of(grant: Grant) -> worker_pb2.HandOverRequest:
    """A grant as a worker is told of it."""
    return worker_pb2.HandOverRequest(
        interactive_per_s=grant.interactive_per_s,
        batch_per_s=grant.batch_per_s,
        tokens_per_s=grant.tokens_per_s,
        prefill_tokens_per_s=grant.prefill_tokens_per_s,
        valid_s=VALID_S,
    )


def _by_version(model: ModelFleet, records: Mapping[str, InstanceRecord]) -> Iterable[ModelFleet]:
    """The model's instances by the version of its spec: a stream goes on where the same weights are."""
    known = [one for one in model.instances if one.instance_id in records]
    for version in sorted({records[one.instance_id].spec_version for one in known}):
        mine = tuple(one for one in known if records[one.instance_id].spec_version == version)
        yield dataclasses.replace(model, instances=mine)
