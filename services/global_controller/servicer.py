"""ClusterService: the operator's API."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from chiron.rpc.errors import ChironError, Reason, abort
from chiron.store import Snapshot
from chiron.store.decision_wire import shown_decision
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc
from services.global_controller import operator_acts, views
from services.global_controller.controller import Controller, Draft
from services.global_controller.decisions.book import MOST_AT_ONCE
from services.global_controller.drain_acts import drain_instance, drain_role, drained_by_role
from services.global_controller.instance_limits import set_instance_limits
from services.global_controller.roll_view import model_versions
from services.global_controller.seat import Seat
from services.global_controller.sleep_acts import set_sleeping

DEFAULT_DECISIONS = 100
"""How many decisions ListDecisions returns when asked for 0."""
Context = grpc.aio.ServicerContext[Any, Any]


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Each act is written, then reconciled once, so that the answer says what stands in the way."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    @property
    def _controller(self) -> Controller:
        """The one that leads. Raises ChironError with NOT_LEADER."""
        return self._seat.leading()

    async def ApplyModel(self, request: pb.ApplyModelRequest, context: Context) -> pb.ApplyModelResponse:
        """Creates a model or replaces its spec."""
        changed = False

        def build(snapshot: Snapshot) -> Draft | None:
            nonlocal changed
            unknown = self._controller.registry.unknown()
            draft, changed = operator_acts.apply_model(
                snapshot,
                request.spec,
                unknown,
                rollback_on_failure=request.rollback_on_failure,
                now_unix_ms=time.time_ns() // 1_000_000,
            )
            return draft

        await self._act(context, build)
        return pb.ApplyModelResponse(model=await self._model(request.spec.name, context), changed=changed)

    async def RollbackModel(
        self, request: pb.RollbackModelRequest, context: Context
    ) -> pb.RollbackModelResponse:
        """Returns to an earlier version of a model's spec."""
        await self._act(
            context,
            lambda snapshot: operator_acts.rollback_model(snapshot, request.name, request.to_version),
        )
        return pb.RollbackModelResponse(model=await self._model(request.name, context))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        """The versions of a model's spec, the newest first."""
        snapshot = self._controller.snapshot
        try:
            record = operator_acts.live_model(snapshot, request.name)
        except ChironError as error:
            await abort(context, error)
        return pb.ListModelVersionsResponse(versions=model_versions(record, snapshot.instances.values()))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Removes a model; its instances drain and stop."""
        await self._act(context, lambda snapshot: operator_acts.delete_model(snapshot, request.name))
        return pb.DeleteModelResponse()

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The models by name."""
        return pb.ListModelsResponse(models=self._controller.show().models)

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        """The whole cluster."""
        return pb.GetSnapshotResponse(snapshot=self._controller.show())

    async def WatchCluster(
        self, request: pb.WatchClusterRequest, context: Context
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        """A snapshot, then a new one after each change; a slow reader sees the newest one only."""
        async for snapshot in self._controller.watch():
            yield pb.WatchClusterResponse(snapshot=snapshot)

    async def ScaleModel(self, request: pb.ScaleModelRequest, context: Context) -> pb.ScaleModelResponse:
        """Sets how many instances should run."""

        def build(snapshot: Snapshot) -> Draft | None:
            if request.auto:
                return operator_acts.give_back_count(snapshot, request.name)
            return operator_acts.scale_model(snapshot, request.name, request.instances)

        await self._act(context, build)
        return pb.ScaleModelResponse(model=await self._model(request.name, context))

    async def SetRole(self, request: pb.SetRoleRequest, context: Context) -> pb.SetRoleResponse:
        """Changes an instance's role."""

        def build(snapshot: Snapshot) -> Draft | None:
            if request.auto:
                return operator_acts.give_back_role(snapshot, request.instance_id)
            return operator_acts.set_role(snapshot, request.instance_id, request.role)

        await self._act(context, build)
        return pb.SetRoleResponse(instance=await self._instance(request.instance_id, context))

    async def SetInstanceLimits(
        self, request: pb.SetInstanceLimitsRequest, context: Context
    ) -> pb.SetInstanceLimitsResponse:
        """Sets an instance's limits, or gives them back to its local autoscaler."""

        def build(snapshot: Snapshot) -> Draft | None:
            statuses = self._controller.registry.statuses()
            return set_instance_limits(snapshot, request, statuses.get(request.instance_id))

        await self._act(context, build)
        return pb.SetInstanceLimitsResponse(instance=await self._instance(request.instance_id, context))

    async def SetAutoscaling(
        self, request: pb.SetAutoscalingRequest, context: Context
    ) -> pb.SetAutoscalingResponse:
        """Suspends the autoscaler's acts on a model, or lets it act again."""
        await self._act(
            context,
            lambda snapshot: operator_acts.set_autoscaling(
                snapshot, request.model, paused=request.paused, reason=request.reason
            ),
        )
        return pb.SetAutoscalingResponse(model=await self._model(request.model, context))

    async def SetSleeping(self, request: pb.SetSleepingRequest, context: Context) -> pb.SetSleepingResponse:
        """Puts an instance to sleep, or wakes it."""
        controller = self._controller
        await self._act(
            context,
            lambda snapshot: set_sleeping(
                snapshot, controller.view(snapshot), request.instance_id, sleeping=request.sleeping
            ),
        )
        return pb.SetSleepingResponse(instance=await self._instance(request.instance_id, context))

    async def DrainInstance(
        self, request: pb.DrainInstanceRequest, context: Context
    ) -> pb.DrainInstanceResponse:
        """Has an instance replaced, then stopped."""
        await self._act(context, lambda snapshot: drain_instance(snapshot, request.instance_id))
        return pb.DrainInstanceResponse(instance=await self._instance(request.instance_id, context))

    async def DrainRole(self, request: pb.DrainRoleRequest, context: Context) -> pb.DrainRoleResponse:
        """Does so with all instances of a model that have a role."""
        found = 0

        def build(snapshot: Snapshot) -> Draft | None:
            nonlocal found
            found = len(drained_by_role(snapshot, request.model, request.role))
            return drain_role(snapshot, request.model, request.role)

        await self._act(context, build)
        return pb.DrainRoleResponse(instances=found)

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.DrainNodeResponse:
        """Empties a node, or takes it back into service."""
        await self._act(
            context,
            lambda snapshot: operator_acts.drain_node(snapshot, request.node_id, undo=request.undo),
        )
        record = operator_acts.node(self._controller.snapshot, request.node_id)
        return pb.DrainNodeResponse(node=views.node_status(record, self._controller.registry))

    async def SetGpuCordon(
        self, request: pb.SetGpuCordonRequest, context: Context
    ) -> pb.SetGpuCordonResponse:
        """Takes a GPU out of use, or back into it."""
        try:
            return pb.SetGpuCordonResponse(gpu=await self._controller.gpu_orders.give(request))
        except ChironError as error:
            return await abort(context, error)

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Context
    ) -> pb.ListDecisionsResponse:
        """The newest decisions first."""
        if not 0 <= request.since_s < math.inf:
            await abort(context, ChironError.invalid([("since_s", "must be a number of seconds >= 0")]))
        limit = min(request.limit or DEFAULT_DECISIONS, MOST_AT_ONCE)
        book = self._controller.decisions
        try:
            found = await book.page(
                limit=limit, model=request.model, since_s=request.since_s, before=request.before
            )
        except KeyError:
            await abort(context, _not_kept(request.before))
        return pb.ListDecisionsResponse(decisions=map(shown_decision, found))

    async def GetDecision(self, request: pb.GetDecisionRequest, context: Context) -> pb.GetDecisionResponse:
        """One decision with what led to it and what followed."""
        found = await self._controller.decisions.one(request.decision_id)
        if found is None:
            await abort(context, _not_kept(request.decision_id))
        decision, causes, followed_by = found
        return pb.GetDecisionResponse(
            decision=shown_decision(decision),
            causes=map(shown_decision, causes),
            followed_by=map(shown_decision, followed_by),
        )

    async def WatchDecisions(
        self, request: pb.WatchDecisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """The newest decisions, then each new one and each whose outcome changes."""
        newest = min(request.newest, MOST_AT_ONCE)
        async for decision in self._controller.decisions.watch(newest, request.model):
            yield pb.WatchDecisionsResponse(decision=shown_decision(decision))

    async def _act(self, context: Context, build: Callable[[Snapshot], Draft | None]) -> None:
        controller = self._controller
        try:
            await controller.write(build)
        except ChironError as error:
            await abort(context, error)
        await controller.reconcile()

    async def _instance(self, instance_id: str, context: Context) -> pb.InstanceStatus:
        shown = next(
            (one for one in self._controller.show().instances if one.instance_id == instance_id), None
        )
        if shown is None:
            text = f"instance {instance_id} has just gone"
            await abort(context, ChironError(Reason.INSTANCE_NOT_FOUND, text))
        return shown

    async def _model(self, name: str, context: Context) -> pb.ModelStatus:
        record = self._controller.snapshot.models.get(name)
        if record is None:
            await abort(context, ChironError(Reason.MODEL_NOT_FOUND, f"model {name!r} has just gone"))
        snapshot = self._controller.snapshot
        dead = self._controller.registry.dead(snapshot.nodes.values())
        autoscale = self._controller.autoscaling.status(record)
        return views.model_status(record, snapshot, dead, self._controller.reasons, autoscale)


def _not_kept(decision_id: str) -> ChironError:
    what = f"no decision {decision_id!r} is kept" if decision_id else "no decision has been made yet"
    return ChironError(Reason.DECISION_NOT_FOUND, what)
