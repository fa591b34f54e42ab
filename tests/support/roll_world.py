"""A cluster in miniature: the real reconciler and operator's acts, agents that obey when they are told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chiron.store import Change, GpuRecord, InstanceRecord, ModelRecord, NodeRecord, Record, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller import operator_acts
from services.global_controller.controller import Draft
from services.global_controller.reconcile import reconcile
from services.global_controller.view import ClusterView, Health, Liveness, NodeView, Plan
from tests.support.cluster_states import FAILED, LOADING, READY, RUNNING, STOPPED, numbered

HOLD_S = 10.0
CRASHES = 6
"""After so many an agent gives an instance up."""
MODEL = "chat"


class RollWorld:
    """One model on some nodes. Versions whose revision starts with `bad` fail in the way that it names."""

    def __init__(self, gpus: Sequence[int], wanted: int, **roll_settings: int) -> None:
        """Applies a first, good version and lets it come up.

        Args:
            gpus: of each node.
            wanted: instances.
            roll_settings: as in RollSettings.
        """
        self.settings = roll_settings
        self.dead: set[str] = set()
        self.health: dict[str, Health] = {}
        self.plan = Plan()
        self.snapshot = Snapshot()
        self._ids = numbered()
        nodes = [
            NodeRecord(f"n{index}", "h", tuple(map(GpuRecord, range(count))))
            for index, count in enumerate(gpus)
        ]
        self._write(nodes)
        self.apply("good", wanted)
        self.settle()

    @property
    def model(self) -> ModelRecord:
        return self.snapshot.models[MODEL]

    @property
    def instances(self) -> list[InstanceRecord]:
        return [one for _, one in sorted(self.snapshot.instances.items())]

    def running(self) -> list[InstanceRecord]:
        """Those that are wanted and hold GPUs on nodes that live."""
        return [
            one
            for one in self.instances
            if one.desired == RUNNING and one.observed.state != FAILED and one.node_id not in self.dead
        ]

    def ready(self) -> list[InstanceRecord]:
        return [one for one in self.running() if one.observed.state == READY]

    def revision(self, record: InstanceRecord) -> str:
        return cluster_pb2.ModelSpec.FromString(record.spec).revision

    # What operators do.

    def apply(self, revision: str, wanted: int | None = None, *, back: bool = False) -> None:
        spec = cluster_pb2.ModelSpec(
            name=MODEL,
            engine="sim",
            gpus_per_instance=1,
            revision=revision,
            min_instances=self.model.desired_instances if wanted is None else wanted,
            roll=cluster_pb2.RollSettings(**self.settings),  # type: ignore[arg-type]
        )
        self._draft(operator_acts.apply_model(self.snapshot, spec, (), rollback_on_failure=back)[0])

    def rollback(self) -> None:
        if any(one.spec_version < self.model.spec_version for one in self.model.history):
            self._draft(operator_acts.rollback_model(self.snapshot, MODEL, 0))

    # What happens.

    def obey(self, record: InstanceRecord) -> None:
        """The node of an instance does the next thing that is wanted of it."""
        if record.node_id in self.dead:
            return
        if record.desired == STOPPED:
            self._write([], [record])
            return
        if record.observed.state == FAILED:
            return
        bad = self.revision(record).startswith("bad")
        if record.observed.state != READY:
            broken = bad and self.revision(record).startswith("bad-load")
            if bad and self.revision(record).startswith("bad-crash"):
                self.crash(record)
            else:
                self._observe(record, FAILED if broken else READY, reason="no such weights" if broken else "")
        elif bad:
            health = self.health.get(record.instance_id, Health())
            self.health[record.instance_id] = dataclasses.replace(health, failed=health.failed + 1)

    def crash(self, record: InstanceRecord) -> None:
        if record.node_id not in self.dead and record.desired == RUNNING and record.observed.state != FAILED:
            restarts = record.observed.restarts + 1
            self._observe(record, LOADING if restarts < CRASHES else FAILED, restarts=restarts)

    def pass_time(self, seconds: float) -> None:
        for one in self.ready():
            health = self.health.get(one.instance_id, Health())
            self.health[one.instance_id] = dataclasses.replace(health, ready_s=health.ready_s + seconds)

    def drain(self, node_id: str, *, undo: bool) -> None:
        self._write([dataclasses.replace(self.snapshot.nodes[node_id], draining=not undo)])

    def reconcile(self) -> Plan:
        """One pass, written down."""
        self.plan = reconcile(self.view(), self._ids)
        self._write([*self.plan.models, *self.plan.puts])
        return self.plan

    def settle(self, passes: int = 200) -> None:
        """Lets everybody do what is to be done until nothing more happens."""
        quiet = 0
        for _ in range(passes):
            before = self.snapshot
            self.reconcile()
            for one in self.instances:
                self.obey(one)
            self.pass_time(HOLD_S / 2)
            # Requests may go on failing for a while before that shows.
            quiet = quiet + 1 if self._alike(before) and self.plan.due_s is None else 0
            if quiet == 4:
                return
        raise AssertionError("it never comes to rest")

    def view(self) -> ClusterView:
        return ClusterView(
            models=tuple(self.snapshot.models.values()),
            instances=tuple(self.snapshot.instances.values()),
            nodes=tuple(
                NodeView(one, Liveness.DEAD if key in self.dead else Liveness.LIVE)
                for key, one in self.snapshot.nodes.items()
            ),
            health=dict(self.health),
            hold_s=HOLD_S,
        )

    def _alike(self, before: Snapshot) -> bool:
        return (before.models, before.instances) == (self.snapshot.models, self.snapshot.instances)

    def _observe(
        self,
        record: InstanceRecord,
        state: types_pb2.InstanceState.ValueType,
        *,
        restarts: int | None = None,
        reason: str = "",
    ) -> None:
        self.health.pop(record.instance_id, None)
        seen = record.observed
        seen = dataclasses.replace(
            seen, state=state, reason=reason, restarts=seen.restarts if restarts is None else restarts
        )
        self._write([dataclasses.replace(record, observed=seen)])

    def _draft(self, draft: Draft | None) -> None:
        if draft is not None:
            self._write(draft.puts)

    def _write(self, puts: Sequence[Record], gone: Sequence[InstanceRecord] = ()) -> None:
        change = Change(self.snapshot.revision + 1, tuple(puts), tuple(one.key for one in gone))
        self.snapshot = self.snapshot.after(change)
