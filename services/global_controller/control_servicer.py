"""ControlService: the streams of agents and routers.

What goes down is always the newest level. Nothing queues for a slow reader: while one write waits for it,
changes merge, and a router that has missed too many epochs gets the whole table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chiron.internal.v1 import auth_pb2, control_pb2_grpc
from chiron.internal.v1 import control_pb2 as pb
from chiron.rpc.errors import ChironError, Reason, abort
from services.global_controller import routing
from services.global_controller.controller import Controller
from services.global_controller.registry import AgentLink, RouterLink, close

_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Agents and routers dial; the controller dials nobody."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._turned_away: set[tuple[str, str]] = set()
        """(node_id, state_id) of agents whose refusal has been logged."""

    async def ConnectAgent(
        self, request_iterator: AsyncIterator[pb.ConnectAgentRequest], context: Context
    ) -> AsyncIterator[pb.ConnectAgentResponse]:
        """Welcome, then what is wanted of the node each time that it changes."""
        controller = self._controller
        messages = aiter(request_iterator)
        first = await anext(messages, pb.ConnectAgentRequest())
        if problem := self._check_agent(first):
            await abort(context, problem)
        await controller.ticket_keys.welcome(first.hello.keys)
        link = await controller.join(first.hello)

        async def take(message: pb.ConnectAgentRequest) -> None:
            await controller.report(link, message.report)

        try:
            async with _reading(messages, "report", take, link) as reader:
                yield pb.ConnectAgentResponse(welcome=self._welcome())
                told = auth_pb2.TicketKeys()
                while not link.closed:
                    seen = link.wake.count
                    if told != (keys := controller.ticket_keys.message):
                        yield pb.ConnectAgentResponse(keys=keys)
                        told = keys
                    yield pb.ConnectAgentResponse(desired=controller.desired(link))
                    await link.wake.after(seen)
            await self._end(context, reader, controller.registry.is_current(link), f"node {link.node_id}")
        finally:
            controller.leave(link)

    async def ConnectRouter(
        self, request_iterator: AsyncIterator[pb.ConnectRouterRequest], context: Context
    ) -> AsyncIterator[pb.ConnectRouterResponse]:
        """The routing table, then deltas."""
        controller = self._controller
        messages = aiter(request_iterator)
        first = await anext(messages, pb.ConnectRouterRequest())
        if first.WhichOneof("message") != "hello":
            await abort(context, ChironError.invalid([("message", "the first must be hello")]))
        if not first.hello.router_id:
            await abort(context, ChironError.invalid([("hello.router_id", "is required")]))
        await controller.ticket_keys.welcome(first.hello.keys)
        link = controller.registry.join_router(first.hello)
        controller.routers_changed()

        async def take(message: pb.ConnectRouterRequest) -> None:
            controller.router_reported(link, message.report)

        try:
            async with _reading(messages, "report", take, link) as reader:
                told = controller.ticket_keys.message
                yield pb.ConnectRouterResponse(keys=told)
                await self._until_worth_sending(link, first.hello.epoch)
                epoch = 0
                while not link.closed:
                    seen = link.wake.count
                    if told != (keys := controller.ticket_keys.message):
                        yield pb.ConnectRouterResponse(keys=keys)
                        told = keys
                    delta = controller.tables.delta_after(epoch)
                    if delta is not None:
                        yield pb.ConnectRouterResponse(delta=delta)
                        epoch = delta.epoch
                    elif epoch != controller.tables.epoch:
                        table = controller.tables.snapshot(controller.registry.loads())
                        yield pb.ConnectRouterResponse(snapshot=table)
                        epoch = table.epoch
                    else:
                        await link.wake.after(seen)
            current = controller.registry.routers.get(link.router_id) is link
            await self._end(context, reader, current, f"router {link.router_id}")
        finally:
            controller.registry.leave_router(link)
            controller.routers_changed()

    def _check_agent(self, first: pb.ConnectAgentRequest) -> ChironError | None:
        hello = first.hello
        if first.WhichOneof("message") != "hello":
            return ChironError.invalid([("message", "the first must be hello")])
        if not hello.node_id:
            return ChironError.invalid([("hello.node_id", "is required")])
        if not hello.state_id:
            return ChironError.invalid([("hello.state_id", "is required")])
        if self._controller.registry.held_by_another(hello.node_id, hello.state_id):
            return self._turn_away(hello)
        if hello.highest_term > self._controller.term:
            text = f"the agent has seen term {hello.highest_term}; this is {self._controller.term}"
            return ChironError(Reason.STALE_TERM, text)
        return None

    def _turn_away(self, hello: pb.AgentHello) -> ChironError:
        text = (
            f"node_id {hello.node_id!r} belongs to another agent, with another state_dir, which is alive or "
            "was until a moment ago; give each agent a node_id of its own"
        )
        # It comes again every two seconds.
        if (hello.node_id, hello.state_id) not in self._turned_away:
            self._turned_away.add((hello.node_id, hello.state_id))
            _log.error("refused an agent that advertises host %s: %s", hello.host, text)
        return ChironError(Reason.BUSY, text)

    def _welcome(self) -> pb.AgentWelcome:
        config = self._controller.config
        return pb.AgentWelcome(
            term=self._controller.term,
            report_interval_ms=config.report_interval_ms,
            liveness_timeout_ms=round(config.liveness_timeout_s * 1000),
        )

    async def _until_worth_sending(self, link: RouterLink, epoch: int) -> None:
        """Leaves a router its table of an earlier controller until this one knows as much."""
        if epoch == 0 or routing.belongs_to(epoch, self._controller.term):
            return
        seen = link.wake.count
        while not link.closed and not self._controller.settled.is_set():
            seen = await link.wake.after(seen)

    async def _end(self, context: Context, reader: asyncio.Task[None], current: bool, who: str) -> None:
        if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
            raise error
        if not current:
            await abort(context, ChironError(Reason.ABORTED, f"another stream of {who} has taken over"))


@asynccontextmanager
async def _reading(
    messages: AsyncIterator[Any],
    kind: str,
    take: Callable[[Any], Awaitable[None]],
    link: AgentLink | RouterLink,
) -> AsyncIterator[asyncio.Task[None]]:
    """Takes the caller's messages of one kind, one at a time, while the body writes; the link closes when
    they end."""

    async def read() -> None:
        async for message in messages:
            if message.WhichOneof("message") == kind:
                await take(message)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: close(link))
    try:
        yield reader
    finally:
        reader.cancel()
