"""What the controller knows without writing it down: streams, when they were heard, the newest figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord, NodeRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.pulse import Pulse
from services.global_controller.view import Liveness, NodeView

_LONGEST_SETTLING = 3
"""In liveness timeouts."""
Level = tuple[tuple[str, int, int], ...]
"""What is wanted of a node, in short: (instance id, generation, its model's present spec version), sorted."""


class Heard(NamedTuple):
    """What a report changed outside the store."""

    standing: bool
    """The node has become live."""
    figures: bool
    """A load, or what a local autoscaler makes of it, differs from the last report's."""


@dataclass(slots=True, eq=False)
class AgentLink:
    """One agent's stream."""

    node_id: str
    state_id: str
    run_id: str
    """Both as in AgentHello."""
    heard: float
    """Monotonic time of the last message, in seconds."""
    connected: bool = True
    reported: bool = False
    """Whether this stream has brought a report."""
    unknown: tuple[InstanceRecord, ...] = ()
    statuses: Mapping[str, cluster_pb2.InstanceStatus] = field(default_factory=dict)
    """The last report, by instance id."""
    gpus: tuple[cluster_pb2.Gpu, ...] = ()
    """The last report's."""
    problems: tuple[str, ...] = ()
    """Likewise."""
    sleep_host_bytes: int = 0
    """Likewise."""
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    """See observe.Sent."""
    level: Level = ()
    """What the agent is to be told."""
    hand_overs: control_pb2.HandOvers | None = None
    """How fast its instances that drain may hand over, until the agent has been told."""
    wake: Pulse = field(default_factory=Pulse)
    """Beats when `level` or `hand_overs` has changed or the stream is to end."""
    closed: bool = False
    """The stream is to end."""
    leaving: bool = False
    """The agent is stopping."""
    revived: bool = False
    """A message has come after the node had been silent for the liveness timeout."""
    left: bool = False
    """The node has left in good order and is on record no more."""


@dataclass(slots=True, eq=False)
class RouterLink:
    """One router's stream."""

    router_id: str
    address: str
    heard: float
    """Monotonic time of the last message, in seconds."""
    report: control_pb2.RouterReport = field(default_factory=control_pb2.RouterReport)
    """The last one."""
    queued: types_pb2.ClassCounts = field(default_factory=types_pb2.ClassCounts)
    wake: Pulse = field(default_factory=Pulse)
    """Beats when the routing table has changed or the stream is to end."""
    closed: bool = False
    """The stream is to end."""


def close(link: AgentLink | RouterLink) -> None:
    """Tells the stream's own loop to end."""
    link.closed = True
    link.wake.beat()


class Registry:
    """Nodes and routers as their streams show them."""

    def __init__(self, liveness_timeout_s: float, clock: Callable[[], float]) -> None:
        self._timeout_s = liveness_timeout_s
        self._clock = clock
        self._started = clock()
        self._settling_since = self._started
        self._settles_at = self._started + liveness_timeout_s
        self._on_record: Collection[str] = ()
        self._closed = False
        self.agents: dict[str, AgentLink] = {}
        self.routers: dict[str, RouterLink] = {}

    def held_by_another(self, node_id: str, state_id: str) -> bool:
        """Whether an agent of another state folder holds the node, and was heard within the liveness timeout.

        Two agents of one node id would both start its instances.
        """
        holder = self.agents.get(node_id)
        return holder is not None and holder.state_id != state_id and self.age_s(holder) < self._timeout_s

    def held_by_twin(self, node_id: str, state_id: str, run_id: str) -> AgentLink | None:
        """The open stream of another agent with a copy of the same state folder, if it holds the node.

        One whose stream is closed may be the predecessor of an agent that starts again: it holds nothing. So
        does one that was not heard within the liveness timeout. An agent without a `run_id` has no twin.
        """
        holder = self.agents.get(node_id)
        if holder is None or holder.closed or holder.state_id != state_id:
            return None
        if not run_id or holder.run_id in ("", run_id) or self.age_s(holder) >= self._timeout_s:
            return None
        return holder

    def join(self, node_id: str, state_id: str, run_id: str = "") -> AgentLink:
        """A new stream of a node's agent takes the place of an earlier one."""
        earlier = self.agents.get(node_id)
        link = AgentLink(node_id, state_id, run_id, self._clock(), closed=self._closed)
        if earlier is not None:
            # What ran there goes on running until the first report says otherwise.
            link.unknown, link.statuses = earlier.unknown, earlier.statuses
            link.gpus, link.problems = earlier.gpus, earlier.problems
            link.sleep_host_bytes = earlier.sleep_host_bytes
            close(earlier)
        self.agents[node_id] = link
        self._returns(node_id)
        return link

    def leave(self, link: AgentLink) -> None:
        """The stream has ended; the node, unless it has left, has the liveness timeout to come back."""
        link.connected = False
        if link.left and self.is_current(link):
            del self.agents[link.node_id]
        close(link)

    def is_current(self, link: AgentLink) -> bool:
        """False once another stream of the same node has joined."""
        return self.agents.get(link.node_id) is link

    def close_all(self) -> None:
        """Ends every stream, also those that are about to join: the controller stops."""
        self._closed = True
        links: list[AgentLink | RouterLink] = [*self.agents.values(), *self.routers.values()]
        for link in links:
            close(link)

    def wake_all(self) -> None:
        """Every stream looks again for what it has to tell."""
        links: list[AgentLink | RouterLink] = [*self.agents.values(), *self.routers.values()]
        for link in links:
            link.wake.beat()

    def hear(self, link: AgentLink, report: control_pb2.AgentReport) -> Heard:
        """Takes a report's figures."""
        standing = not link.reported or link.revived or self.age_s(link) >= self._timeout_s
        link.revived = False
        statuses = {one.status.instance_id: one.status for one in report.instances}
        gpus, problems = tuple(report.gpus), tuple(report.problems)
        changed = _figures(statuses) != _figures(link.statuses)
        figures = changed or (gpus, problems) != (link.gpus, link.problems)
        link.gpus, link.problems = gpus, problems
        link.sleep_host_bytes = report.sleep_host_bytes
        if not link.reported:
            self._returns(link.node_id)
        link.heard, link.reported, link.statuses = self._clock(), True, statuses
        return Heard(standing, figures)

    def arrived(self, link: AgentLink) -> None:
        """The agent lives: a message of it has come, which may have to wait until it is taken in."""
        link.revived = link.revived or self.age_s(link) >= self._timeout_s
        link.heard = self._clock()

    def join_router(self, hello: control_pb2.RouterHello) -> RouterLink:
        """A new stream of a router takes the place of an earlier one."""
        link = RouterLink(hello.router_id, hello.address, self._clock(), closed=self._closed)
        if hello.router_id in self.routers:
            close(self.routers[hello.router_id])
        self.routers[hello.router_id] = link
        return link

    def leave_router(self, link: RouterLink) -> None:
        """The stream has ended."""
        close(link)
        if self.routers.get(link.router_id) is link:
            del self.routers[link.router_id]

    def hear_router(self, link: RouterLink, report: control_pb2.RouterReport) -> bool:
        """Takes a router's queues and ejections; True when they differ from the last ones."""
        link.heard = self._clock()
        queued = _queued(report)
        changed = (
            queued != link.queued
            or _ejections(report) != _ejections(link.report)
            or waiting_items(report) != waiting_items(link.report)
        )
        link.queued, link.report = queued, report
        return changed

    def hear_call(self, link: RouterLink, call: control_pb2.RouterCall) -> None:
        """Takes what a router tells of waiting requests between two reports, as if the last one had it."""
        link.heard = self._clock()
        demand = {one.model: one for one in link.report.demand}
        for waiting in call.models:
            told = demand.get(waiting.model) or link.report.demand.add(model=waiting.model)
            told.queued.CopyFrom(waiting.queued)
        link.queued = _queued(link.report)

    def age_s(self, link: AgentLink | RouterLink) -> float:
        """Time since the link was last heard, in seconds."""
        return self._clock() - link.heard

    def view(self, node: NodeRecord) -> NodeView:
        """A node with its liveness at this moment."""
        link = self.agents.get(node.node_id)
        silent_s = self._clock() - (link.heard if link else self._started)
        if silent_s >= self._timeout_s and not self.settling():
            liveness = Liveness.DEAD
        elif link is None:
            liveness = Liveness.UNHEARD
        elif not link.connected or silent_s >= self._timeout_s:
            liveness = Liveness.SILENT
        else:
            liveness = Liveness.LIVE if link.reported else Liveness.JOINING
        return NodeView(node, liveness, silent_s, leaving=link is not None and link.leaving)

    def dead(self, nodes: Iterable[NodeRecord]) -> frozenset[str]:
        """The ids of those nodes that count as dead at this moment."""
        return frozenset(node.node_id for node in nodes if self.view(node).liveness is Liveness.DEAD)

    def settle(self, on_record: Collection[str]) -> None:
        """Settling begins: an absent report means that nothing is known, not that nothing runs.

        Args:
            on_record: nodes that were there before; once each has reported, there is nothing to wait for.
        """
        self._started = self._settling_since = self._clock()
        self._settles_at = self._started + self._timeout_s
        self._on_record = frozenset(on_record)

    def settling(self) -> bool:
        """True until every node on record has been heard, or one liveness timeout has passed.

        For longer, up to three timeouts, while nodes on record still come back.
        """
        return self._clock() < self._settles_at

    def _returns(self, node_id: str) -> None:
        """A node on record is coming back: others that are as slow may be about to."""
        if self.settling() and node_id in self._on_record:
            longer = self._clock() + self._timeout_s / 2
            most = self._settling_since + _LONGEST_SETTLING * self._timeout_s
            self._settles_at = max(self._settles_at, min(longer, most))

    def awaited(self) -> Sequence[str]:
        """Nodes on record that have not reported since settling began."""
        return sorted(
            node_id
            for node_id in self._on_record
            if (link := self.agents.get(node_id)) is None
            or not link.reported
            or link.heard < self._settling_since
        )

    def settle_early(self) -> bool:
        """Ends settling when every node on record has reported; True when it has just ended.

        With no node on record it does not end early: a controller that has lost its memory knows of none.
        """
        if not self.settling() or not self._on_record or self.awaited():
            return False
        self._settles_at = self._clock()
        return True

    def notice_stall(self, due: float | None) -> bool:
        """Settles again when the controller itself stood still: what looks silent may wait to be read.

        Args:
            due: monotonic time by which the controller meant to run again, in seconds; None: any.
        """
        now = self._clock()
        stalled = due is not None and now - due > self._timeout_s / 2
        if stalled:
            self._settling_since = now
            self._settles_at = now + self._timeout_s
            self._on_record = frozenset(self.agents)
        return stalled

    def next_deadline(self) -> float | None:
        """When the next node dies of silence or settling ends (monotonic, seconds); None: nothing is due."""
        now = self._clock()
        ends = [self._settles_at, *(link.heard + self._timeout_s for link in self.agents.values())]
        return min((end for end in ends if end > now), default=None)

    def unknown(self) -> Iterable[InstanceRecord]:
        """Workers that agents report and the store did not know at that time."""
        for link in self.agents.values():
            yield from link.unknown

    def loads(self) -> Mapping[str, cluster_pb2.InstanceLoad]:
        """The last reported load of each instance."""
        return _loads(self.statuses())

    def sleep_host_bytes(self) -> Mapping[str, int]:
        """Host memory that sleepers may take, by node."""
        return {node_id: link.sleep_host_bytes for node_id, link in self.agents.items()}

    def kept_host_bytes(self) -> Mapping[str, int]:
        """Host memory that each sleeper was measured to take, by instance id."""
        return {
            key: status.kept.host_bytes for key, status in self.statuses().items() if status.HasField("kept")
        }

    def statuses(self) -> Mapping[str, cluster_pb2.InstanceStatus]:
        """What was last reported of each instance."""
        return {key: status for link in self.agents.values() for key, status in link.statuses.items()}


def _queued(report: control_pb2.RouterReport) -> types_pb2.ClassCounts:
    return types_pb2.ClassCounts(
        interactive=sum(demand.queued.interactive for demand in report.demand),
        batch=sum(demand.queued.batch for demand in report.demand),
    )


def _loads(statuses: Mapping[str, cluster_pb2.InstanceStatus]) -> Mapping[str, cluster_pb2.InstanceLoad]:
    return {key: status.load for key, status in statuses.items()}


def _figures(
    statuses: Mapping[str, cluster_pb2.InstanceStatus],
) -> Mapping[str, tuple[cluster_pb2.InstanceLoad, cluster_pb2.LocalControl]]:
    return {key: (status.load, status.local) for key, status in statuses.items()}


def _ejections(report: control_pb2.RouterReport) -> list[tuple[str, str]]:
    return [(one.instance_id, one.reason) for one in report.ejected]


def waiting_items(report: control_pb2.RouterReport) -> int:
    """Items that wait in the durable queue that the router works on."""
    return sum(group.requests for model in report.batch_queue.models for group in model.groups)
