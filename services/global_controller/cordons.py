"""Cordons of GPUs, which agents keep: an operator's order goes to the agent, and counts once it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import cluster_pb2
from services.global_controller.pulse import Pulse
from services.global_controller.registry import AgentLink, Registry


class GpuOrders:
    """Orders under way, by node. They end with the answer or with this controller; the operator is told."""

    def __init__(self, registry: Registry, *, patience_s: float = 5.0) -> None:
        """`patience_s`: time that an agent has to carry an order out."""
        self._registry = registry
        self._patience_s = patience_s
        self._orders: dict[str, dict[str, control_pb2.GpuOrder]] = {}
        self._reported = Pulse()

    def of(self, node_id: str) -> Sequence[control_pb2.GpuOrder]:
        """What the node's agent is to be told now."""
        return list(self._orders.get(node_id, {}).values())

    def reported(self) -> None:
        """An agent has reported."""
        if self._orders:
            self._reported.beat()

    async def give(self, request: cluster_pb2.SetGpuCordonRequest) -> cluster_pb2.Gpu:
        """Sets or lifts a cordon; returns the GPU as its agent then reports it. Raises ChironError."""
        link = self._registry.agents.get(request.node_id)
        if link is None or not link.connected:
            text = f"node {request.node_id!r} is not connected, and its agent keeps the cordons of its GPUs"
            raise ChironError(Reason.NODE_NOT_FOUND, text)
        gpu = _gpu(link, request.gpu)
        if gpu is None:
            there = ", ".join(str(one.index) for one in link.gpus) or "none"
            raise ChironError.invalid([("gpu", f"{request.node_id} has GPUs {there}, not {request.gpu}")])
        order = control_pb2.GpuOrder(
            gpu_uuid=gpu.uuid, cordoned=request.cordoned, reason=request.reason or "an operator said so"
        )
        self._orders.setdefault(request.node_id, {})[gpu.uuid] = order
        link.wake.beat()
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._obeyed(request)
        except TimeoutError:
            text = f"the agent of {request.node_id} has not carried it out within {self._patience_s:g} s"
            raise ChironError(Reason.BUSY, text) from None
        finally:
            # Another order for the same GPU may have taken its place.
            if self._orders.get(request.node_id, {}).get(gpu.uuid) is order:
                del self._orders[request.node_id][gpu.uuid]

    async def _obeyed(self, request: cluster_pb2.SetGpuCordonRequest) -> cluster_pb2.Gpu:
        while True:
            seen = self._reported.count
            link = self._registry.agents.get(request.node_id)
            gpu = _gpu(link, request.gpu) if link is not None else None
            if gpu is not None and gpu.cordoned == request.cordoned:
                return gpu
            await self._reported.after(seen)


def _gpu(link: AgentLink, index: int) -> cluster_pb2.Gpu | None:
    return next((gpu for gpu in link.gpus if gpu.index == index), None)
