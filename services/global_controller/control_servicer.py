"""ControlService: the streams of agents and routers.

What goes down is always the newest level. Nothing queues for a slow reader: while one write waits for it,
changes merge, and a router that has missed too many epochs gets the whole table.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from chiron.internal.v1 import auth_pb2, control_pb2_grpc
from chiron.internal.v1 import control_pb2 as pb
from chiron.rpc.errors import ChironError, Reason, abort
from services.global_controller import routing
from services.global_controller.controller import Controller
from services.global_controller.inbox import Inbox
from services.global_controller.registry import AgentLink, RouterLink, close
from services.global_controller.seat import Seat
from services.global_controller.turns import Turns

_log = logging.getLogger(__name__)
_AT_ONCE, _LONGEST_TURN_S = 8, 2.0
"""How many agents join and routers take a whole table at once, and how long one waits for it, in seconds."""
_LATE_END_S = 1.0
"""How long the end of an agent's stream may take to be noticed after the next one has come, in seconds."""
_REMEMBERED = 1000
_ANOTHER = (
    "with another state_dir, which is alive or was until a moment ago; give each agent a node_id of its own"
)
_COPIED = (
    "which is connected now and runs with a copy of this state_dir; "
    "give each agent a node_id and a state_dir of its own"
)
Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Agents and routers dial; the controller dials nobody."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._turns = Turns(_AT_ONCE, _LONGEST_TURN_S)
        self._turned_away: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        """(node_id, state_id, run_id) of agents whose refusal has been logged, the newest last."""

    async def ConnectAgent(
        self, request_iterator: AsyncIterator[pb.ConnectAgentRequest], context: Context
    ) -> AsyncIterator[pb.ConnectAgentResponse]:
        """Welcome, then what is wanted of the node each time that it changes."""
        controller = self._seat.leading()
        messages = aiter(request_iterator)
        first = await anext(messages, pb.ConnectAgentRequest())
        if problem := self._check_agent(controller, first):
            await abort(context, problem)
        if await _has_twin(controller, first.hello):
            await abort(context, self._turn_away(first.hello, _COPIED))
        await controller.ticket_keys.welcome(first.hello.keys)
        async with self._turns.turn():
            # Others may have joined since.
            if problem := self._check_holder(controller, first.hello):
                await abort(context, problem)
            link = await controller.join(first.hello)
        try:
            async with _doing(_take_reports(controller, link, messages), link) as reader:
                yield pb.ConnectAgentResponse(welcome=_welcome(controller))
                told = auth_pb2.TicketKeys()
                while not link.closed:
                    seen = link.wake.count
                    if told != (keys := controller.ticket_keys.message):
                        yield pb.ConnectAgentResponse(keys=keys)
                        told = keys
                    yield pb.ConnectAgentResponse(desired=controller.desired(link))
                    if (granted := link.hand_overs) is not None:
                        link.hand_overs = None
                        yield pb.ConnectAgentResponse(hand_overs=granted)
                    await link.wake.after(seen)
            await self._end(context, reader, controller.registry.is_current(link), f"node {link.node_id}")
        finally:
            controller.leave(link)

    async def ConnectRouter(
        self, request_iterator: AsyncIterator[pb.ConnectRouterRequest], context: Context
    ) -> AsyncIterator[pb.ConnectRouterResponse]:
        """The routing table, then deltas."""
        controller = self._seat.leading()
        messages = aiter(request_iterator)
        first = await anext(messages, pb.ConnectRouterRequest())
        if first.WhichOneof("message") != "hello":
            await abort(context, ChironError.invalid([("message", "the first must be hello")]))
        if not first.hello.router_id:
            await abort(context, ChironError.invalid([("hello.router_id", "is required")]))
        await controller.ticket_keys.welcome(first.hello.keys)
        link = controller.registry.join_router(first.hello)
        controller.routers_changed()
        try:
            async with _doing(_take_demand(controller, link, messages), link) as reader:
                told = controller.ticket_keys.message
                yield pb.ConnectRouterResponse(keys=told)
                await _until_worth_sending(controller, link, first.hello.epoch)
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
                        async with self._turns.turn():
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

    def _check_agent(self, controller: Controller, first: pb.ConnectAgentRequest) -> ChironError | None:
        hello = first.hello
        if first.WhichOneof("message") != "hello":
            return ChironError.invalid([("message", "the first must be hello")])
        if not hello.node_id:
            return ChironError.invalid([("hello.node_id", "is required")])
        if not hello.state_id:
            return ChironError.invalid([("hello.state_id", "is required")])
        if controller.registry.held_by_another(hello.node_id, hello.state_id):
            return self._turn_away(hello, _ANOTHER)
        if hello.highest_term > controller.term:
            text = f"the agent has seen term {hello.highest_term}; this is {controller.term}"
            return ChironError(Reason.STALE_TERM, text)
        return None

    def _check_holder(self, controller: Controller, hello: pb.AgentHello) -> ChironError | None:
        registry = controller.registry
        if registry.held_by_another(hello.node_id, hello.state_id):
            return self._turn_away(hello, _ANOTHER)
        if registry.held_by_twin(hello.node_id, hello.state_id, hello.run_id) is not None:
            return self._turn_away(hello, _COPIED)
        return None

    def _turn_away(self, hello: pb.AgentHello, why: str) -> ChironError:
        text = f"node_id {hello.node_id!r} belongs to another agent, {why}"
        # It comes again every two seconds.
        key = (hello.node_id, hello.state_id, hello.run_id)
        if key not in self._turned_away:
            self._turned_away[key] = None
            _log.error("refused an agent that advertises host %s: %s", hello.host, text)
        self._turned_away.move_to_end(key)
        while len(self._turned_away) > _REMEMBERED:
            self._turned_away.popitem(last=False)
        return ChironError(Reason.BUSY, text)

    async def _end(self, context: Context, reader: asyncio.Task[None], current: bool, who: str) -> None:
        if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
            raise error
        if not current:
            await abort(context, ChironError(Reason.ABORTED, f"another stream of {who} has taken over"))


async def _has_twin(controller: Controller, hello: pb.AgentHello) -> bool:
    """Whether the node is another agent's with a copy of the folder.

    After an agent's death its successor may be read first: the stream of the dead one has a moment to end.
    """

    def twin() -> AgentLink | None:
        return controller.registry.held_by_twin(hello.node_id, hello.state_id, hello.run_id)

    with suppress(TimeoutError):
        async with asyncio.timeout(_LATE_END_S):
            while (holder := twin()) is not None:
                await holder.wake.after(holder.wake.count)
    return twin() is not None


def _welcome(controller: Controller) -> pb.AgentWelcome:
    config = controller.config
    return pb.AgentWelcome(
        term=controller.term,
        report_interval_ms=config.report_interval_ms,
        liveness_timeout_ms=round(config.liveness_timeout_s * 1000),
    )


async def _until_worth_sending(controller: Controller, link: RouterLink, epoch: int) -> None:
    """Leaves a router its table of an earlier controller until this one knows as much."""
    if epoch == 0 or routing.belongs_to(epoch, controller.term):
        return
    seen = link.wake.count
    while not link.closed and not controller.settled.is_set():
        seen = await link.wake.after(seen)


async def _take_reports(
    controller: Controller, link: AgentLink, messages: AsyncIterator[pb.ConnectAgentRequest]
) -> None:
    """Takes an agent's reports in; while the store keeps one waiting, only the newest of the next ones."""
    inbox: Inbox[pb.AgentReport] = Inbox()

    async def read() -> None:
        try:
            async for message in messages:
                if message.WhichOneof("message") == "report":
                    controller.registry.arrived(link)
                    inbox.put(message.report)
        finally:
            inbox.end()

    reading = asyncio.create_task(read())
    try:
        while (report := await inbox.take()) is not None:
            await controller.report(link, report)
        await reading
    finally:
        reading.cancel()


async def _take_demand(
    controller: Controller, link: RouterLink, messages: AsyncIterator[pb.ConnectRouterRequest]
) -> None:
    """Takes a router's reports in, each of which counts."""
    async for message in messages:
        match message.WhichOneof("message"):
            case "report":
                controller.router_reported(link, message.report)
            case "call":
                controller.router_called(link, message.call)


@asynccontextmanager
async def _doing(
    reading: Coroutine[Any, Any, None], link: AgentLink | RouterLink
) -> AsyncIterator[asyncio.Task[None]]:
    """Reads what the caller sends while the body writes; the link closes when that ends."""
    reader = asyncio.create_task(reading)
    reader.add_done_callback(lambda _: close(link))
    try:
        yield reader
    finally:
        reader.cancel()
