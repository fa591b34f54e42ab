"""The operator's calls to the global controller that leads, with one clear line for every failure."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from chiron.cluster.leaderless import Standing, ask_each
from chiron.rpc.controllers import Controllers, check_addresses, leader_of, split_addresses
from chiron.rpc.errors import Reason, reason_of
from chiron.rpc.identity import present
from chiron.rpc.servers import open_control_channel
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc, types_pb2

T = TypeVar("T")


class AdminError(Exception):
    """A refused or failed call; the text is one line.

    Attributes:
        code: the gRPC status.
        reason: the controller's reason, e.g. MODEL_NOT_FOUND; empty when it gave none.
    """

    def __init__(self, message: str, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class AddressError(AdminError):
    """What is given is no address of a controller: nobody was called."""

    def __init__(self, message: str) -> None:
        super().__init__(message, grpc.StatusCode.INVALID_ARGUMENT, "")


class ClusterAdmin:
    """ClusterService of whichever controller leads; use it as an async context manager.

    While controllers answer and none of them leads, it tries again until the time of the call has passed.
    """

    def __init__(self, addresses: str | Sequence[str], *, timeout_s: float = 10.0, api_key: str = "") -> None:
        """Connects lazily.

        Args:
            addresses: host:port of the controllers, as a list or separated by commas.
            timeout_s: how long a call may take, in seconds; of a stream, how long it may lack a leader.
            api_key: an administrator's; empty: this process's own, where it has one.

        Raises:
            AddressError: no address, or one that is not host:port.
        """
        listed = split_addresses(addresses) if isinstance(addresses, str) else tuple(addresses)
        if not listed:
            raise AddressError("no address of a controller is given")
        try:
            check_addresses("controller", listed)
        except ValueError as error:
            raise AddressError(str(error)) from error
        self.addresses = listed
        self._timeout_s = timeout_s
        shown = api_key or present().api_key
        self._open_channel = partial(open_control_channel, api_key=shown)
        self._controllers = Controllers(listed, spread_s=0.2, open_channel=self._open_channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; streams end."""
        await self._controllers.close()

    async def apply_model(
        self, spec: pb.ModelSpec, *, rollback_on_failure: bool = False
    ) -> pb.ApplyModelResponse:
        """Creates the model or replaces its spec; a refusal names the model."""
        request = pb.ApplyModelRequest(spec=spec, rollback_on_failure=rollback_on_failure)
        try:
            response: pb.ApplyModelResponse = await self._call(
                lambda stub, timeout: stub.ApplyModel(request, timeout=timeout)
            )
            return response
        except AdminError as error:
            if not error.reason:
                raise
            raise AdminError(f"model {spec.name!r}: {error}", error.code, error.reason) from error

    async def rollback_model(self, name: str, to_version: int = 0) -> pb.ModelStatus:
        """Returns to an earlier version of the spec; 0: the newest one before the present one."""
        if not to_version:
            # A call that is repeated because its answer was lost must not lead back twice.
            versions = await self.versions(name)
            present = next(one.spec_version for one in versions if one.current)
            to_version = max((n for n in (one.spec_version for one in versions) if n < present), default=0)
        request = pb.RollbackModelRequest(name=name, to_version=to_version)
        response: pb.RollbackModelResponse = await self._call(
            lambda stub, timeout: stub.RollbackModel(request, timeout=timeout)
        )
        return response.model

    async def versions(self, name: str) -> list[pb.ModelVersion]:
        """The versions of a model's spec that are kept, the newest first."""
        request = pb.ListModelVersionsRequest(name=name)
        response = await self._call(lambda stub, timeout: stub.ListModelVersions(request, timeout=timeout))
        return list(response.versions)

    async def delete_model(self, name: str) -> None:
        """Removes the model; its instances drain. Raises AdminError where there is none."""
        await self.versions(name)
        request = pb.DeleteModelRequest(name=name)
        try:
            await self._call(lambda stub, timeout: stub.DeleteModel(request, timeout=timeout))
        except AdminError as error:
            # It was there: an earlier try, whose answer was lost, has removed it.
            if error.reason != Reason.MODEL_NOT_FOUND.name:
                raise

    async def list_models(self) -> list[pb.ModelStatus]:
        """Every model with its state."""
        request = pb.ListModelsRequest()
        response = await self._call(lambda stub, timeout: stub.ListModels(request, timeout=timeout))
        return list(response.models)

    async def set_gpu_cordon(self, node_id: str, gpu: int, *, cordoned: bool, reason: str = "") -> pb.Gpu:
        """Takes a GPU out of use, or back into it; returns it as its agent then reports it."""
        request = pb.SetGpuCordonRequest(node_id=node_id, gpu=gpu, cordoned=cordoned, reason=reason)
        response: pb.SetGpuCordonResponse = await self._call(
            lambda stub, timeout: stub.SetGpuCordon(request, timeout=timeout)
        )
        return response.gpu

    async def decisions(
        self, *, limit: int = 0, model: str = "", since_s: float = 0.0, before: str = ""
    ) -> list[pb.Decision]:
        """One page of decisions, the newest first; see ListDecisionsRequest."""
        request = pb.ListDecisionsRequest(limit=limit, model=model, since_s=since_s, before=before)
        response = await self._call(lambda stub, timeout: stub.ListDecisions(request, timeout=timeout))
        return list(response.decisions)

    async def decision(self, decision_id: str) -> pb.GetDecisionResponse:
        """A decision with what led to it and what followed; empty: the newest."""
        request = pb.GetDecisionRequest(decision_id=decision_id)
        response: pb.GetDecisionResponse = await self._call(
            lambda stub, timeout: stub.GetDecision(request, timeout=timeout)
        )
        return response

    async def set_autoscaling(self, name: str, *, paused: bool, reason: str = "") -> pb.ModelStatus:
        """Suspends the autoscaler's acts on a model, or lets it act again."""
        request = pb.SetAutoscalingRequest(model=name, paused=paused, reason=reason)
        response: pb.SetAutoscalingResponse = await self._call(
            lambda stub, timeout: stub.SetAutoscaling(request, timeout=timeout)
        )
        return response.model

    async def scale_model(self, name: str, instances: int, *, auto: bool = False) -> pb.ModelStatus:
        """Sets how many instances a model has; `auto`: gives the number back to the autoscaler."""
        request = pb.ScaleModelRequest(name=name, instances=instances, auto=auto)
        response: pb.ScaleModelResponse = await self._call(
            lambda stub, timeout: stub.ScaleModel(request, timeout=timeout)
        )
        return response.model

    async def set_role(
        self, instance_id: str, role: types_pb2.Role.ValueType, *, auto: bool = False
    ) -> pb.InstanceStatus:
        """Sets an instance's role; `auto`: gives it back to the autoscaler."""
        request = pb.SetRoleRequest(instance_id=instance_id, role=role, auto=auto)
        response: pb.SetRoleResponse = await self._call(
            lambda stub, timeout: stub.SetRole(request, timeout=timeout)
        )
        return response.instance

    async def drain_instance(self, instance_id: str) -> pb.InstanceStatus:
        """Has an instance replaced, then stopped; nothing on it is aborted."""
        request = pb.DrainInstanceRequest(instance_id=instance_id)
        response: pb.DrainInstanceResponse = await self._call(
            lambda stub, timeout: stub.DrainInstance(request, timeout=timeout)
        )
        return response.instance

    async def drain_role(self, model: str, role: types_pb2.Role.ValueType) -> int:
        """Does so with all instances of a model that have a role; returns how many."""
        request = pb.DrainRoleRequest(model=model, role=role)
        response: pb.DrainRoleResponse = await self._call(
            lambda stub, timeout: stub.DrainRole(request, timeout=timeout)
        )
        return response.instances

    async def drain_node(self, node_id: str, *, undo: bool = False) -> pb.NodeStatus:
        """Empties a node, or takes it back into service."""
        request = pb.DrainNodeRequest(node_id=node_id, undo=undo)
        response: pb.DrainNodeResponse = await self._call(
            lambda stub, timeout: stub.DrainNode(request, timeout=timeout)
        )
        return response.node

    async def set_instance_limits(
        self, instance_id: str, *, batch_size: int | None = None, step_token_budget: int | None = None
    ) -> pb.InstanceStatus:
        """Sets an instance's limits by hand; 0 gives one back to its local autoscaler, None leaves it."""
        request = pb.SetInstanceLimitsRequest(
            instance_id=instance_id, batch_size=batch_size, step_token_budget=step_token_budget
        )
        response: pb.SetInstanceLimitsResponse = await self._call(
            lambda stub, timeout: stub.SetInstanceLimits(request, timeout=timeout)
        )
        return response.instance

    async def set_sleeping(self, instance_id: str, *, sleeping: bool) -> pb.InstanceStatus:
        """Puts an instance to sleep once its requests have finished, or wakes it."""
        request = pb.SetSleepingRequest(instance_id=instance_id, sleeping=sleeping)
        response: pb.SetSleepingResponse = await self._call(
            lambda stub, timeout: stub.SetSleeping(request, timeout=timeout)
        )
        return response.instance

    async def snapshot(self) -> pb.ClusterSnapshot:
        """The whole cluster now."""
        request = pb.GetSnapshotRequest()
        response: pb.GetSnapshotResponse = await self._call(
            lambda stub, timeout: stub.GetSnapshot(request, timeout=timeout)
        )
        return response.snapshot

    async def standings(self) -> list[Standing]:
        """Each controller as it answers now, for when none of them leads."""
        return await ask_each(self.addresses, self._open_channel)

    async def watch(self) -> AsyncGenerator[pb.ClusterSnapshot]:
        """A snapshot, then a new one after each change, from one leader after the other.

        Ends with AdminError when the stream breaks and no controller takes it up within the timeout; with one
        address alone, as soon as it breaks.
        """
        async with aclosing(self._watch(lambda stub: stub.WatchCluster(pb.WatchClusterRequest()))) as answers:
            async for response in answers:
                yield response.snapshot

    async def watch_decisions(self, *, newest: int, model: str = "") -> AsyncGenerator[pb.Decision]:
        """The newest decisions, then each new one and each whose outcome changes; ends as `watch` does.

        After a change of the leader the newest ones come again.
        """
        request = pb.WatchDecisionsRequest(newest=newest, model=model)
        async with aclosing(self._watch(lambda stub: stub.WatchDecisions(request))) as answers:
            async for response in answers:
                yield response.decision

    async def _watch(self, begin: Callable[[Any], Any]) -> AsyncGenerator[Any]:
        failures = _Failures(self.addresses, self._timeout_s)
        while True:
            address = self._controllers.address
            call = begin(cluster_pb2_grpc.ClusterServiceStub(self._controllers.channel()))
            error: grpc.aio.AioRpcError | None = None
            try:
                async for response in call:
                    self._controllers.found()
                    failures.clear()
                    yield response
            except grpc.aio.AioRpcError as failure:
                error = failure
            finally:
                call.cancel()
            round_over = self._controllers.failed(error, at=address)
            if told := failures.after(address, error, round_over and len(self.addresses) == 1):
                raise told from error
            await self._controllers.pause()

    async def _call(
        self,
        make: Callable[[Any, float], Any],
        stub_of: Callable[[grpc.aio.Channel], Any] = cluster_pb2_grpc.ClusterServiceStub,
    ) -> Any:
        failures = _Failures(self.addresses, self._timeout_s)
        while True:
            address, left_s = self._controllers.address, failures.left_s
            stub = stub_of(self._controllers.channel())
            try:
                answer = await make(stub, max(0.05, left_s))
            except grpc.aio.AioRpcError as error:
                round_over = self._controllers.failed(error, at=address)
                if told := failures.after(address, error, round_over):
                    raise told from error
            else:
                self._controllers.found()
                return answer
            await self._controllers.pause()


class _Failures:
    """What was tried for one call, and when that is enough."""

    def __init__(self, addresses: Sequence[str], timeout_s: float) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s
        self.clear()

    def clear(self) -> None:
        """The call has succeeded; what follows counts anew."""
        self._started = time.monotonic()
        self._causes: dict[str, str] = {}
        self._electing = False

    @property
    def left_s(self) -> float:
        """Time left, in seconds."""
        return self._started + self._timeout_s - time.monotonic()

    def after(self, address: str, error: grpc.aio.AioRpcError | None, round_over: bool) -> AdminError | None:
        """The error to end with, after a failure at `address`; None: another try is worth it."""
        if error is None:
            self._causes[address] = "it ended the stream"
            code = grpc.StatusCode.UNAVAILABLE
        else:
            code, reason = error.code(), reason_of(error)
            text = " ".join((error.details() or code.name).split())
            waits = leader_of(error) is not None
            if reason and not waits:
                return AdminError(text, code, reason)
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return AdminError(
                    f"{address} does not serve chiron.v1.ClusterService as a controller does ({text}); "
                    "is it the address of a controller?",
                    code,
                    "",
                )
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = f"no answer within {self._timeout_s:g} s"
            elif code is not grpc.StatusCode.UNAVAILABLE:
                return AdminError(text, code, reason)
            self._electing = self._electing or waits
            self._causes[address] = text
        if self.left_s > 0 and (self._electing or not round_over):
            return None
        return AdminError(self._summary(), code, "")

    def _summary(self) -> str:
        if len(self._causes) == 1 and len(self._addresses) == 1:
            [(address, cause)] = self._causes.items()
            return f"cannot reach the controller at {address}: {cause}"
        tried = "; ".join(f"{address}: {cause}" for address, cause in self._causes.items())
        return f"no controller that leads answers at {', '.join(self._addresses)} ({tried})"
